#pragma once
/// \file
/// Vanilla self-attention: scaled dot-product attention with one head.
///
/// Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, equation (1):
/// ```
/// Attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V,   Q = x W_q, K = x W_k, V = x W_v
/// ```
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, L, L].
/// Cost: O(L^2 d) time, O(L d) memory.
/// RoPE, when on, rotates all d_model features, as the one head has them all.

#include <attzoo/module/self_attention.hpp>

namespace attzoo {

/// Options of VanillaSelfAttention.
struct VanillaSelfAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  Rope rope = false;                                ///< rotary positions; d_model must be even
  bool causal = false;                              ///< nobody attends to later tokens
};

/// The module; VanillaSelfAttention holds it.
class VanillaSelfAttentionImpl
    : public SelfAttention<VanillaSelfAttentionImpl, VanillaSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "VanillaSelfAttention";

  /// With the default of every other option.
  explicit VanillaSelfAttentionImpl(int64_t d_model)
      : VanillaSelfAttentionImpl(VanillaSelfAttentionOptions{.d_model = d_model}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit VanillaSelfAttentionImpl(const VanillaSelfAttentionOptions& o) : SelfAttention(o) {
    reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, L, S], lse [B, 1, L]; S is L, or
  /// the context's length. Throws what project() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    auto result = finish(attend(project(x, inputs), inputs));
    result.weights = result.weights.without_heads();
    return result;
  }
};

/// Example: `VanillaSelfAttention attn({.d_model = 64}); auto [y, w] = attn(x);`
using VanillaSelfAttention = Holder<VanillaSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(VanillaSelfAttentionImpl)
