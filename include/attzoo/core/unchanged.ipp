#pragma once

#include <attzoo/core/unchanged.hpp>

namespace attzoo::core {

/// Integers that are equal where the tensors' bits are; what strides repeat is there once.
ATTZOO_API torch::Tensor unchanged_bits(torch::Tensor t) {
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.stride(d) == 0 && t.size(d) > 1) t = t.narrow(d, 0, 1);
  }
  t = t.resolve_neg();
  return t.element_size() == 8   ? t.view(torch::kInt64)
         : t.element_size() == 4 ? t.view(torch::kInt32)
         : t.element_size() == 2 ? t.view(torch::kInt16)
                                 : t.view(torch::kUInt8);
}

ATTZOO_API Unchanged::Unchanged(const std::vector<torch::Tensor>& tensors) {
  torch::NoGradGuard no_grad;
  for (const auto& t : tensors) {
    if (!t.defined()) continue;
    const bool counts = !t.is_inference();
    seen_.push_back({t, counts ? int64_t{t._version()} : 0,
                     counts ? torch::Tensor() : unchanged_bits(t).clone()});
  }
}

ATTZOO_API void Unchanged::check(const char* who) const {
  torch::NoGradGuard no_grad;
  for (const auto& [t, version, copy] : seen_) {
    const bool same =
        copy.defined() ? torch::equal(unchanged_bits(t), copy) : t._version() == version;
    TORCH_CHECK_VALUE(same, who, ": a tensor ", t.scalar_type(), " ", t.sizes(),
                      " that is needed again was modified by an inplace operation since the "
                      "forward pass; pass a clone(), or change it later");
  }
}

}  // namespace attzoo::core
