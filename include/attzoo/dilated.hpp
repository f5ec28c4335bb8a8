#pragma once
/// \file
/// Dilated self-attention: every token attends to every r-th one, counted from itself.
///
/// The strided pattern of Child et al., "Generating Long Sequences with Sparse Transformers", 2019,
/// arXiv:1904.10509, in both directions. With r = dilation_rate:
/// ```
/// y_i = softmax_j(q_i . k_j / sqrt(d_head)) v_j    over j = i (mod r)
/// ```
/// and, with window_size w, only those with |i - j| <= floor(w / 2): the dilated sliding window of
/// Beltagy et al., 2020, arXiv:2004.05150.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L^2 / r d_model) time, with a window O(L w / r d_model); O(L d_model) memory.
/// The residues modulo r never exchange anything: stack layers of different rates, or combine this
/// with a local mechanism.

#include <attzoo/module/self_attention.hpp>

namespace attzoo {

/// Options of DilatedSelfAttention.
struct DilatedSelfAttentionOptions {
  int64_t d_model = 0;                                ///< features of the output; > 0
  int64_t num_heads = 1;                              ///< divides d_model
  int64_t dilation_rate = 2;                          ///< >= 1; 1 attends to everything
  std::optional<int64_t> window_size = std::nullopt;  ///< > 0; default unbounded
  std::optional<int64_t> input_dim = std::nullopt;    ///< features of x; default d_model
  double dropout = 0.0;                               ///< of the weights, while training
  bool bias = false;                                  ///< of the four projections
  double temperature = 1.0;                           ///< divides the scores; > 0
  Rope rope = false;                                  ///< rotary positions; d_head must be even
  bool causal = false;                                ///< nobody attends to later tokens
};

/// The module; DilatedSelfAttention holds it.
class DilatedSelfAttentionImpl
    : public SelfAttention<DilatedSelfAttentionImpl, DilatedSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "DilatedSelfAttention";

  /// With the default of every other option.
  explicit DilatedSelfAttentionImpl(int64_t d_model, int64_t dilation_rate = 2,
                                    int64_t num_heads = 1)
      : DilatedSelfAttentionImpl(
            {.d_model = d_model, .num_heads = num_heads, .dilation_rate = dilation_rate}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit DilatedSelfAttentionImpl(const DilatedSelfAttentionOptions& o) : SelfAttention(o) {
    reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const auto heads = project(x, inputs);
    core::AnyMask pattern = dilated(options.dilation_rate);
    if (options.window_size) {
      const int64_t half = *options.window_size / 2;
      pattern = pattern && window(half, half);
    }
    return finish(attend(heads, inputs, pattern));
  }

 protected:
  void check_own_options() const override {
    check_positive("dilation_rate", options.dilation_rate);
    if (options.window_size) check_positive("window_size", *options.window_size);
  }
  Keeps keeps() const override {
    if (!options.window_size) return {};
    return {.reach = *options.window_size / 2};
  }
};

/// Example: `DilatedSelfAttention attn({.d_model = 256, .num_heads = 8, .dilation_rate = 4});`
using DilatedSelfAttention = Holder<DilatedSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(DilatedSelfAttentionImpl)
