#pragma once
/// \file
/// Where the kernel's threads and memory come from, and how work is shared among them.

#include <attzoo/kernel/view.hpp>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
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

/// Memory from which buffers are taken one after the other; without any, their sizes are counted.
template <class T>
class Scratch {
 public:
  Scratch() = default;
  Scratch(Runtime& runtime, int64_t size)
      : memory_(runtime.allocate(static_cast<size_t>(size) * sizeof(T))) {
#ifndef NDEBUG
    std::fill_n(static_cast<T*>(memory_.get()), size, std::numeric_limits<T>::quiet_NaN());
#endif
  }
  T* take(int64_t n) {
    T* at = memory_ ? static_cast<T*>(memory_.get()) + used_ : nullptr;
    used_ += (n + kPad - 1) / kPad * kPad;
    return at;
  }
  int64_t used() const { return used_; }

 private:
  std::shared_ptr<void> memory_;
  int64_t used_ = 0;
};

/// Buffers in one allocation: `Buffers`, constructed from a Scratch and the arguments, is laid out
/// twice, first to count.
template <class T, class Buffers>
class Allocated : private Scratch<T>, public Buffers {
 public:
  template <class... A>
  explicit Allocated(Runtime& runtime, const A&... a)
      : Scratch<T>(runtime, size(a...)), Buffers(static_cast<Scratch<T>&>(*this), a...) {}

 private:
  template <class... A>
  static int64_t size(const A&... a) {
    Scratch<T> count;
    Buffers(count, a...);
    return count.used();
  }
};

/// Zeros n numbers.
template <class T>
ATTZOO_ALWAYS_INLINE void clear(T* p, int64_t n) {
  __builtin_memset(p, 0, static_cast<size_t>(n) * sizeof(T));
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
