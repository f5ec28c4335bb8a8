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
  int64_t num_heads = 0;                            ///< divides d_model unless there is a head_dim
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  /// Features of a context, which every call gives where they are others than x's; default
  /// input_dim.
  std::optional<int64_t> context_dim = std::nullopt;
  double dropout = 0.0;                            ///< of the weights, while training
  bool bias = false;                               ///< of the four projections
  double temperature = 1.0;                        ///< divides the scores; > 0
  Rope rope = false;                               ///< rotary positions; d_head must be even
  bool causal = false;                             ///< nobody attends to later tokens
  std::optional<int64_t> head_dim = std::nullopt;  ///< features of a head; default d_model / heads
  std::optional<bool> out_bias = std::nullopt;     ///< of w_o; default bias
  bool key_bias = true;       ///< of w_k, where there is a bias; false in Whisper
  bool qk_norm = false;       ///< an RMSNorm over each head of q and of k, before RoPE
  double qk_norm_eps = 1e-6;  ///< of these norms; >= 0
  /// Bounds the scaled scores before masks: softcap * tanh(s / softcap), as Gemma 2. > 0.
  std::optional<double> softcap = std::nullopt;
  /// A learnable logit `sinks` of each query head, which the softmax counts but which has no value,
  /// as in GPT-OSS; see attzoo::sink().
  bool sinks = false;
  /// The heads' outputs are multiplied by sigmoid(w_g x) before w_o (arXiv:2505.06708, Qwen3-Next).
  bool output_gate = false;
  /// A token sees so many tokens at most, itself and those before it (Mistral, arXiv:2310.06825);
  /// > 0, for causal calls alone. Cost O(L sliding_window d_model).
  std::optional<int64_t> sliding_window = std::nullopt;
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
  explicit MultiHeadSelfAttentionImpl(const MultiHeadSelfAttentionOptions& o) : SelfAttention(o) {
    reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    return finish(attend(project(x, inputs), inputs));
  }
};

/// Example: `MultiHeadSelfAttention attn({.d_model = 128, .num_heads = 8});`
using MultiHeadSelfAttention = Holder<MultiHeadSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(MultiHeadSelfAttentionImpl)
