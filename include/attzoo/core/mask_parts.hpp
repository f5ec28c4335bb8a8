#pragma once
/// \file
/// A mask given as a tensor: it forbids pairs if it is bool, and changes scores if it is floating.

#include <attzoo/core/score_modifiers.hpp>

namespace attzoo::core {

/// The two things that a mask tensor can be to the core; at most one of them holds it.
struct MaskParts {
  TensorMask mask = {};
  TensorBias bias = {};
};

/// `mask` is of rank 4, bool (true = attend) or floating (added to the scores), or undefined: then
/// neither part does anything.
inline MaskParts mask_parts(const torch::Tensor& mask) {
  MaskParts parts;
  if (mask.defined() && mask.scalar_type() == torch::kBool) {
    parts.mask.mask = mask;
  } else {
    parts.bias.bias = mask;
  }
  return parts;
}

}  // namespace attzoo::core
