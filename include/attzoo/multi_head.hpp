#pragma once
/// \file
/// Multi-head self-attention.
///
/// Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, section 3.2.2:
/// ```
/// MultiHead(x) = Concat(head_1, ..., head_H) W_o
/// head_h       = softmax(Q_h K_h^T / sqrt(d_head)) V_h,   d_head = d_model / H
/// ```
/// where head h owns the features [h d_head, (h + 1) d_head) of Q = x W_q, K = x W_k, V = x W_v.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L^2 d_model) time, O(L d_model) memory.

#include <attzoo/module/self_attention.hpp>

namespace attzoo {

/// Options of MultiHeadSelfAttention.
struct MultiHeadSelfAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_heads = 0;                            ///< divides d_model
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.1;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  Rope rope = false;                                ///< rotary positions; d_head must be even
  bool causal = false;                              ///< nobody attends to later tokens
};

/// The module; MultiHeadSelfAttention holds it.
class MultiHeadSelfAttentionImpl
    : public SelfAttention<MultiHeadSelfAttentionImpl, MultiHeadSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "MultiHeadSelfAttention";

  /// With the default of every other option.
  MultiHeadSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : MultiHeadSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit MultiHeadSelfAttentionImpl(const MultiHeadSelfAttentionOptions& o)
      : SelfAttention(
            o,
            {.heads = {"num_heads", o.num_heads}, .temperature = o.temperature, .rope = o.rope}) {
    reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    return finish(attend(project(x, inputs), inputs));
  }

  /// Prints the options that not all mechanisms have.
  void extra_repr(std::ostream& stream) const override {
    stream << ", num_heads=" << options.num_heads;
  }
};

/// Example: `MultiHeadSelfAttention attn({.d_model = 128, .num_heads = 8});`
using MultiHeadSelfAttention = Holder<MultiHeadSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(MultiHeadSelfAttentionImpl)
