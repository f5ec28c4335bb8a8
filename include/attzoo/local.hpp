#pragma once
/// \file
/// Local (sliding window) self-attention: every token attends to its neighbourhood.
///
/// Child et al., "Generating Long Sequences with Sparse Transformers", 2019, arXiv:1904.10509;
/// Beltagy et al., "Longformer: The Long-Document Transformer", 2020, arXiv:2004.05150. With
/// h = floor(window_size / 2):
/// ```
/// y_i = softmax_j(q_i . k_j / sqrt(d_head)) v_j    over j with |i - j| <= h
/// ```
/// so an even window sees window_size + 1 positions, as in the Python library, and window_size 1
/// the token itself.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L window_size d_model) time, O(L d_model) memory.

#include <attzoo/module/self_attention.hpp>

namespace attzoo {

/// Options of LocalSelfAttention.
struct LocalSelfAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_heads = 8;                            ///< divides d_model
  int64_t window_size = 128;                        ///< width of the neighbourhood; > 0
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  Rope rope = false;                                ///< rotary positions; d_head must be even
  bool causal = false;                              ///< nobody attends to later tokens
};

/// The module; LocalSelfAttention holds it.
class LocalSelfAttentionImpl
    : public SelfAttention<LocalSelfAttentionImpl, LocalSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "LocalSelfAttention";

  /// With the default of every other option.
  explicit LocalSelfAttentionImpl(int64_t d_model)
      : LocalSelfAttentionImpl(LocalSelfAttentionOptions{.d_model = d_model}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit LocalSelfAttentionImpl(const LocalSelfAttentionOptions& o) : SelfAttention(o) {
    reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const auto heads = project(x, inputs);
    const int64_t half = options.window_size / 2;
    return finish(attend(heads, inputs, window(half, half)));
  }

 protected:
  void check_own_options() const override { check_positive("window_size", options.window_size); }
  Keeps keeps() const override { return {.reach = options.window_size / 2}; }
};

/// Example: `LocalSelfAttention attn({.d_model = 256, .window_size = 64, .causal = true});`
using LocalSelfAttention = Holder<LocalSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(LocalSelfAttentionImpl)
