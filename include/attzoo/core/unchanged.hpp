#pragma once
/// \file
/// Notices changes in place between a forward pass and what reads its tensors again.

#include <attzoo/config.hpp>

#include <torch/types.h>

#include <cstdint>
#include <vector>

namespace attzoo::core {

/// Notices that tensors were changed in place: for what reads them again later on, as a backward
/// pass does and weights on demand. Keep one beside the tensors, and call check() before they are
/// read: `[q, k, unchanged = core::Unchanged({q, k})](..) { unchanged.check("LazyWeights"); .. }`.
/// It costs nothing to speak of; but inference tensors count no versions, so theirs are compared
/// with a copy.
class Unchanged {
 public:
  Unchanged() = default;
  /// Undefined tensors are skipped.
  ATTZOO_API explicit Unchanged(const std::vector<torch::Tensor>& tensors);

  /// Throws c10::ValueError that names `who` if one of the tensors was changed since the
  /// construction.
  ATTZOO_API void check(const char* who) const;

 private:
  struct Seen {
    torch::Tensor tensor;
    int64_t version;
    torch::Tensor copy;  // of an inference tensor
  };

  std::vector<Seen> seen_;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

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

#endif
