#pragma once
/// \file
/// Longformer self-attention: a sliding window, and a few global tokens that see and are seen by
/// all.
///
/// Beltagy et al., "Longformer: The Long-Document Transformer", 2020, arXiv:2004.05150. With
/// h = floor(window_size / 2) and a set G of global tokens given with each call:
/// ```
/// y_i = softmax_j(q_i . k_j / sqrt(d_head)) v_j
///       over j with |i - j| <= h, or j in G, or i in G
/// ```
/// A causal or user mask cuts global tokens too; in a packed batch they are global in their
/// document. With `global_projections`, as in section 3.1 of the paper, a global token's own row is
/// computed from projections of its own: Q_g, K_g, V_g; without (the Python library), all tokens
/// share one set.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L (window_size + |G|) d_model) time, O(L d_model) memory.

#include <attzoo/module/self_attention.hpp>

namespace attzoo {

/// Options of LongformerSelfAttention.
struct LongformerSelfAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_heads = 0;                            ///< divides d_model
  int64_t window_size = 512;                        ///< width of the neighbourhood; > 0
  bool global_projections = false;                  ///< w_q_global, w_k_global, w_v_global
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the weights, while training
  bool bias = false;                                ///< of the projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  Rope rope = false;                                ///< rotary positions; d_head must be even
  bool causal = false;                              ///< nobody attends to later tokens
};

/// The module; LongformerSelfAttention holds it.
class LongformerSelfAttentionImpl
    : public SelfAttention<LongformerSelfAttentionImpl, LongformerSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "LongformerSelfAttention";
  static constexpr TakenInputs kTakes{.global_attention = true};

  /// With the default of every other option.
  LongformerSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : LongformerSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit LongformerSelfAttentionImpl(const LongformerSelfAttentionOptions& o) : SelfAttention(o) {
    reset();
  }

  /// Makes and registers the parameters, the projections of global tokens too.
  void reset() override {
    SelfAttention::reset();
    if (!options.global_projections) return;
    w_q_global = make_projection("w_q_global", input_dim(), d_model());
    w_k_global = make_projection("w_k_global", input_dim(), d_model());
    w_v_global = make_projection("w_v_global", input_dim(), d_model());
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. inputs.global_attention [L] or [B, L] marks the global tokens; default
  /// none. Throws what project() does; and for a global_attention c10::ValueError if its shape or
  /// device is wrong or there is a context, c10::TypeError if it is not dense.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    TORCH_CHECK_VALUE(!options.global_projections || !inputs.cache.defined() ||
                          !inputs.global_attention.defined() || inputs.cache.length() == 0,
                      kName,
                      ": with global_projections, a cache takes global tokens in its first "
                      "call alone");
    const int64_t half = options.window_size / 2;
    const auto heads = project(x, inputs);
    const auto& is_global = heads.past ? heads.past->global : inputs.global_attention;
    if (!is_global.defined()) return finish(attend(heads, inputs, window(half, half)));
    auto global = global_tokens(is_global);
    if (!options.global_projections) {
      return finish(attend(heads, inputs, window(half, half) || global));
    }
    global.queries = false;  // the local rows see the global columns ...
    auto result = attend(heads, inputs, window(half, half) || global);
    if (heads.past && heads.past->offset > 0) return finish(result);
    global.queries = true;  // ... and the global rows are computed apart
    global.keys = false;
    const auto global_heads =
        project_with(w_q_global, w_k_global, w_v_global, x, inputs, {heads.packing, heads.past});
    return finish(choose_rows(global.is_global, attend(global_heads, inputs, global), result));
  }

  /// Of global tokens; empty without `global_projections`.
  torch::nn::Linear w_q_global{nullptr}, w_k_global{nullptr}, w_v_global{nullptr};

 protected:
  void check_own_options() const override { check_positive("window_size", options.window_size); }
  Keeps keeps() const override { return {.reach = options.window_size / 2}; }

 private:
  /// `yes` in the rows of the tokens [1 or B, L] where `which` is true, `no` in the others.
  static AttentionResult choose_rows(const torch::Tensor& which, const AttentionResult& yes,
                                     const AttentionResult& no) {
    const auto chosen = which.unsqueeze(1);  // [1 or B, 1, L]
    return {torch::where(chosen.unsqueeze(-1), yes.output, no.output),
            no.weights.map(
                [chosen, yes = yes.weights](const torch::Tensor& rows, int64_t begin, int64_t end) {
                  return torch::where(chosen.slice(2, begin, end).unsqueeze(-1),
                                      yes.rows(begin, end), rows);
                }),
            torch::where(chosen, yes.lse, no.lse)};
  }
};

/// Example: `LongformerSelfAttention attn({.d_model = 256, .num_heads = 8});`
/// `auto y = attn(x, {.global_attention = is_global}).output;`
using LongformerSelfAttention = Holder<LongformerSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(LongformerSelfAttentionImpl)
