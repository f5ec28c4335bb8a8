#pragma once
/// \file
/// Linear attention of a module's heads: features, sums, and the weights that they amount to.

#include <attzoo/module/parts.hpp>

#include <functional>

namespace attzoo::core {

/// How a LinearSelfAttention attends.
struct SumOptions {
  const char* name;  // in errors
  bool causal;
  double eps;           // added to the normaliser
  bool python_weights;  // the Python library's estimate of the weights
};

/// Output [B, H, L, dh], in float32 at least, and weights [B, H, L, S]; no lse. `phi` maps q and k,
/// in float32 at least, to features. Throws c10::ValueError if it changes shape or dtype.
ATTZOO_API AttentionResult attend_by_sums(
    const Heads& heads, const AttentionInputs& inputs,
    const std::function<torch::Tensor(const torch::Tensor&)>& phi, const SumOptions& options);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/module/attend_by_sums.ipp>
#endif
