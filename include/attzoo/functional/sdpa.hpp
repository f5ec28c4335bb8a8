#pragma once
/// \file
/// PyTorch's functional entry point: tensors of any rank, a mask as a tensor.

#include <attzoo/functional/attention.hpp>

namespace attzoo {

/// Options of `scaled_dot_product_attention`.
struct ScaledDotProductOptions {
  /// bool (true = attend) or floating (added); broadcast against the scores.
  torch::Tensor mask = {};
  double dropout = 0.0;      ///< probability in [0, 1] of dropping a weight
  double temperature = 1.0;  ///< divides the scores, > 0
};

namespace core {

struct ScaledDotProductAttention {
  AttentionResult operator()(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                             const ScaledDotProductOptions& options = {}) const;
};

}  // namespace core

/// softmax(q k^T / (sqrt(D) * temperature) + mask) v on tensors of any rank >= 2, whose leading
/// dimensions broadcast: q [..., L, D], k [..., S, D], v [..., S, Dv] -> output [..., L, Dv],
/// weights [..., L, S], lse [..., L].
/// Throws c10::Error on shapes that do not broadcast, integer masks and otherwise as attention().
/// Example: `scaled_dot_product_attention(q, k, v, {.temperature = 2.0})`. (An object, not a
/// function, lest ATen's function of this name be found by its arguments too.)
inline constexpr core::ScaledDotProductAttention scaled_dot_product_attention{};

}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/functional/sdpa.ipp>
#endif
