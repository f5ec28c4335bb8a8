#pragma once

#include <attzoo/core/cpu/runtime.hpp>

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

namespace attzoo::core {

ATTZOO_API void TorchRuntime::run(const std::function<void()>& worker) {
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) { worker(); });
}

ATTZOO_API std::shared_ptr<void> TorchRuntime::allocate(size_t bytes) {
  const auto memory = std::make_shared<c10::DataPtr>(c10::GetCPUAllocator()->allocate(bytes));
  return {memory, memory->get()};
}

ATTZOO_API kernel::View view(const torch::Tensor& t) {
  const auto dtype = t.scalar_type();
  return {.data = t.data_ptr(),
          .dtype = dtype == torch::kFloat64    ? kernel::DType::kFloat64
                   : dtype == torch::kFloat32  ? kernel::DType::kFloat32
                   : dtype == torch::kBFloat16 ? kernel::DType::kBFloat16
                                               : kernel::DType::kFloat16,
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
