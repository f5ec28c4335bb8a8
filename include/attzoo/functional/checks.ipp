#pragma once
// Definitions of checks.hpp.

#include <attzoo/core/attention/reference.hpp>
#include <attzoo/functional/checks.hpp>

#include <cmath>

namespace attzoo::core {

ATTZOO_API void check_arguments(const char* who, const torch::Tensor& q, const torch::Tensor& k,
                                const torch::Tensor& v, double dropout) {
  const char* names[] = {"q", "k", "v"};
  const torch::Tensor* tensors[] = {&q, &k, &v};
  for (int i = 0; i < 3; ++i) {
    check_floating(*tensors[i], who, names[i]);
    TORCH_CHECK_TYPE(tensors[i]->scalar_type() == q.scalar_type(), who, ": ", names[i],
                     " must have q's dtype ", q.scalar_type(), ", got ", tensors[i]->scalar_type());
    TORCH_CHECK_VALUE(tensors[i]->device() == q.device(), who, ": ", names[i],
                      " must be on q's device ", q.device(), ", got ", tensors[i]->device());
  }
  TORCH_CHECK_VALUE(dropout >= 0 && dropout <= 1, who, ": dropout must be in [0, 1], got ",
                    dropout);
}

ATTZOO_API bool is_valid_scale(double scale, const torch::Tensor& q) {
  return std::abs(scale) <= (compute_dtype(q) == torch::kFloat64 ? 1e300 : 1e30);
}

}  // namespace attzoo::core
