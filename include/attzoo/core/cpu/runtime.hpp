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
  ATTZOO_API void run(const std::function<void(int)>& worker) override;
  ATTZOO_API int threads() const override;
  ATTZOO_API std::shared_ptr<void> allocate(size_t bytes) override;
};

/// A supported floating dtype, or that of quantize_rows().
ATTZOO_API kernel::DType kernel_dtype(torch::ScalarType dtype);

/// The same memory, and the thread that calls: for work that takes no longer than to wake others.
class CallersThread final : public kernel::Runtime {
 public:
  void run(const std::function<void(int)>& worker) override { worker(0); }
  int threads() const override { return 1; }
  std::shared_ptr<void> allocate(size_t bytes) override { return TorchRuntime().allocate(bytes); }
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

#ifdef ATTZOO_DEFINE_CORE

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

namespace attzoo::core {

ATTZOO_API int TorchRuntime::threads() const { return at::get_num_threads(); }

ATTZOO_API void TorchRuntime::run(const std::function<void(int)>& worker) {
  at::parallel_for(0, threads(), 1, [&](int64_t i, int64_t) { worker(static_cast<int>(i)); });
}

ATTZOO_API std::shared_ptr<void> TorchRuntime::allocate(size_t bytes) {
  const auto memory = std::make_shared<c10::DataPtr>(c10::GetCPUAllocator()->allocate(bytes));
  return {memory, memory->get()};
}

ATTZOO_API kernel::DType kernel_dtype(torch::ScalarType dtype) {
  return dtype == torch::kFloat64    ? kernel::DType::kFloat64
         : dtype == torch::kFloat32  ? kernel::DType::kFloat32
         : dtype == torch::kBFloat16 ? kernel::DType::kBFloat16
         : dtype == torch::kInt8     ? kernel::DType::kInt8
         : dtype == torch::kUInt8    ? kernel::DType::kFloat8
                                     : kernel::DType::kFloat16;
}

ATTZOO_API kernel::View view(const torch::Tensor& t) {
  return {.data = t.data_ptr(),
          .dtype = kernel_dtype(t.scalar_type()),
          .b = t.stride(0),
          .h = t.stride(1),
          .n = t.stride(2),
          .d = t.stride(3)};
}

ATTZOO_API torch::Tensor empty_as(const torch::Tensor& like, int64_t features,
                                  torch::ScalarType dtype) {
  const int64_t B = like.size(0), H = like.size(1), N = like.size(2), row = H * features;
  if (like.stride(1) >= like.stride(2)) return at::detail::empty_cpu({B, H, N, features}, dtype);
  return at::detail::empty_strided_cpu({B, H, N, features}, {N * row, features, row, 1}, dtype);
}

}  // namespace attzoo::core

#endif
