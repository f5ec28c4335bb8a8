#pragma once
/// \file
/// Counts the bytes that LibTorch's allocators hand out, for tests and reports on memory.

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <memory>

namespace attzoo::testing {

/// From its construction on, the tensor memory allocated by this thread (on any device), which
/// includes a backward pass on the CPU. Bytes are relative to the moment of construction.
class PeakMemory {
 public:
  PeakMemory()
      : counter_(std::make_shared<Counter>()),
        guard_(c10::DebugInfoKind::PROFILER_STATE, counter_) {}

  int64_t peak() const { return counter_->peak; }    ///< most bytes alive at once
  int64_t live() const { return counter_->live; }    ///< bytes alive now
  int64_t total() const { return counter_->total; }  ///< bytes of all allocations

 private:
  struct Counter final : c10::MemoryReportingInfoBase {
    int64_t live = 0, peak = 0, total = 0;

    void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
      live += size;
      peak = std::max(peak, live);
      total += std::max<int64_t>(size, 0);
    }
    bool memoryProfilingEnabled() const override { return true; }
  };

  std::shared_ptr<Counter> counter_;
  c10::DebugInfoGuard guard_;
};

}  // namespace attzoo::testing
