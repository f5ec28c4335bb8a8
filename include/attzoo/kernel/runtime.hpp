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
#include <vector>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

class Runtime {
 public:
  virtual ~Runtime() = default;
  /// Calls worker(i) on threads i < threads(), at least on one, and waits.
  virtual void run(const std::function<void(int)>& worker) = 0;
  virtual int threads() const = 0;
  /// Memory aligned to 64 bytes, freed with the pointer.
  virtual std::shared_ptr<void> allocate(size_t bytes) = 0;
};

/// Calls worker(i) once for each i < count. Each thread makes a worker of its own, and takes the
/// next i when it is done with one.
template <class MakeWorker>
void for_each_task(Runtime& runtime, int64_t count, const MakeWorker& make_worker) {
  std::atomic<int64_t> next{0};
  runtime.run([&](int) {
    auto worker = make_worker();
    for (int64_t i; (i = next++) < count;) worker(i);
  });
}

/// The same where a call finds the data of the one before: each thread begins with a part of its
/// own, which its caches may still hold, and then helps the others.
template <class MakeWorker>
void for_each_task_again(Runtime& runtime, int64_t count, const MakeWorker& make_worker) {
  const int threads = runtime.threads();
  std::vector<std::atomic<int64_t>> next(static_cast<size_t>(threads));
  for (int i = 0; i < threads; ++i) next[static_cast<size_t>(i)] = count * i / threads;
  runtime.run([&](int thread) {
    auto worker = make_worker();
    for (int other = 0; other < threads; ++other) {
      const int part = (thread + other) % threads;
      const int64_t end = count * (part + 1) / threads;
      for (int64_t i; (i = next[static_cast<size_t>(part)]++) < end;) worker(i);
    }
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
