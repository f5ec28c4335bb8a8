#pragma once
/// \file
/// Where the kernel's threads and memory come from, and how work is shared among them.

#include <attzoo/kernel/compiler.hpp>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

class Runtime {
 public:
  virtual ~Runtime() = default;
  /// Calls `worker` on every thread, at least once, and waits.
  virtual void run(const std::function<void()>& worker) = 0;
  /// Memory aligned to 64 bytes, freed with the pointer.
  virtual std::shared_ptr<void> allocate(size_t bytes) = 0;
};

/// Calls worker(i) once for each i < count. Each thread makes a worker of its own, and takes the
/// next i when it is done with one.
template <class MakeWorker>
void for_each_task(Runtime& runtime, int64_t count, const MakeWorker& make_worker) {
  std::atomic<int64_t> next{0};
  runtime.run([&] {
    auto worker = make_worker();
    for (int64_t i; (i = next++) < count;) worker(i);
  });
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
