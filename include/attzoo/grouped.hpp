#pragma once
/// \file
/// Grouped-query self-attention: several query heads share one key-value head.
///
/// Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head
/// Checkpoints", 2023, arXiv:2305.13245. With G = num_query_heads / num_kv_heads:
/// ```
/// head_h = softmax(Q_h K_g^T / sqrt(d_head)) V_g,   g = floor(h / G)
/// ```
/// One key-value head is multi-query attention (Shazeer, 2019, arXiv:1911.02150); as many as query
/// heads is multi-head attention. Keys and values are indexed, never repeated in memory.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, num_query_heads, L, L].
/// Cost: O(L^2 d_model) time, O(L d_model) memory; K and V are num_kv_heads * d_head wide.

#include <attzoo/module/self_attention.hpp>

namespace attzoo {

/// Options of GroupedSelfAttention.
struct GroupedSelfAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_query_heads = 0;                      ///< divides d_model unless there is a head_dim
  int64_t num_kv_heads = 0;                         ///< divides num_query_heads
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

/// The module; GroupedSelfAttention holds it.
class GroupedSelfAttentionImpl
    : public SelfAttention<GroupedSelfAttentionImpl, GroupedSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "GroupedSelfAttention";

  /// With the default of every other option.
  GroupedSelfAttentionImpl(int64_t d_model, int64_t num_query_heads, int64_t num_kv_heads)
      : GroupedSelfAttentionImpl({.d_model = d_model,
                                  .num_query_heads = num_query_heads,
                                  .num_kv_heads = num_kv_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit GroupedSelfAttentionImpl(const GroupedSelfAttentionOptions& o) : SelfAttention(o) {
    reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    return finish(attend(project(x, inputs), inputs));
  }
};

/// Example: `GroupedSelfAttention attn({.d_model = 128, .num_query_heads = 8, .num_kv_heads = 2});`
using GroupedSelfAttention = Holder<GroupedSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(GroupedSelfAttentionImpl)
