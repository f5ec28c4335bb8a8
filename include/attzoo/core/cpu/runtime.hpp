#pragma once
/// \file
/// LibTorch's tensors, threads and memory in the kernels' terms.

#include <attzoo/kernel/attention/problem.hpp>

#include <torch/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace attzoo::core {

/// LibTorch's threads, as many as at::get_num_threads() says, and its CPU allocator.
class TorchRuntime final : public kernel::Runtime {
 public:
  ATTZOO_API void run(const std::function<void()>& worker) override;
  ATTZOO_API std::shared_ptr<void> allocate(size_t bytes) override;
};

/// Of a plain() tensor [B, H, N, features], which must outlive it.
ATTZOO_API kernel::View view(const torch::Tensor& t);

/// Empty [B, H, N, features] on the CPU with the memory order of `like`: heads inside of positions,
/// if they are there.
ATTZOO_API torch::Tensor empty_as(const torch::Tensor& like, int64_t features,
                                  torch::ScalarType dtype);

/// Calls f with a number of the type that is computed in: double for float64 tensors, else float.
template <class F>
void with_compute_type(const torch::Tensor& t, F&& f) {
  if (t.scalar_type() == torch::kFloat64) {
    f(double());
  } else {
    f(float());
  }
}

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/cpu/runtime.ipp>
#endif
