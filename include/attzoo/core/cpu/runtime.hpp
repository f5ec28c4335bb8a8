#pragma once
/// \file
/// LibTorch's tensors, threads and memory in the kernels' terms.

#include <ATen/Parallel.h>
#include <torch/types.h>
#include <attzoo/core/checks.hpp>
#include <attzoo/kernel/problem.hpp>

namespace attzoo::core {

class TorchRuntime final : public kernel::Runtime {
 public:
  void run(const std::function<void()>& worker) override {
    at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) { worker(); });
  }
  std::shared_ptr<void> allocate(size_t bytes) override {
    const auto memory = torch::empty({static_cast<int64_t>(bytes)}, torch::kUInt8);
    return {memory.data_ptr(), [memory](void*) {}};
  }
};

/// Of a plain() tensor, which must outlive it.
inline kernel::View view(const torch::Tensor& t) {
  const auto dtype = t.scalar_type();
  return {t.data_ptr(),
          dtype == torch::kFloat64    ? kernel::DType::kFloat64
          : dtype == torch::kFloat32  ? kernel::DType::kFloat32
          : dtype == torch::kBFloat16 ? kernel::DType::kBFloat16
                                      : kernel::DType::kFloat16,
          t.stride(0),
          t.stride(1),
          t.stride(2),
          t.stride(3)};
}

/// Empty [B, H, N, features] with the memory order of `like`: heads inside of positions, if they
/// are there.
inline torch::Tensor empty_as(const torch::Tensor& like, int64_t features,
                              torch::ScalarType dtype) {
  const int64_t B = like.size(0), H = like.size(1), N = like.size(2);
  const auto options = torch::dtype(dtype).device(like.device());
  return like.stride(1) < like.stride(2)
             ? torch::empty({B, N, H, features}, options).transpose(1, 2)
             : torch::empty({B, H, N, features}, options);
}

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
