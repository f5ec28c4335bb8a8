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

#ifndef ATTZOO_COMPILED
#include <attzoo/core/unchanged.ipp>
#endif
