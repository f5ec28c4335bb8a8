#pragma once
/// \file
/// Multi-scale retention: a state in every head that forgets at a rate of the head's own.
///
/// Sun et al., "Retentive Network: A Successor to Transformer for Large Language Models", 2023,
/// arXiv:2307.08621. In head h = 0, 1, ...:
/// ```
/// q, k = rope(x W_q), rope(x W_k)        v = x W_v        gamma = 1 - 2^(-5 - h)
/// S_t  = gamma S_{t-1} + k_t v_t^T
/// y_t  = (norm(S_t^T q_t / sqrt(dh)) * silu(x_t W_g)) W_o
/// ```
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L], no lse.
/// Cost: O(L dh value_head_dim) time in each head, O(L) memory; a cache is O(1).
/// Departs from the paper as later code does: the norm of a head has a weight. The authors'
/// division by the sum of the weights' sizes is left out, for the norm takes it back.

#include <attzoo/module/recurrent.hpp>

#include <optional>

namespace attzoo {

/// Options of MultiScaleRetention.
struct MultiScaleRetentionOptions {
  int64_t d_model = 0;                             ///< features of the output; > 0
  int64_t num_heads = 1;                           ///< of queries, keys and values
  std::optional<int64_t> head_dim = std::nullopt;  ///< of q and k; default d_model / num_heads
  std::optional<int64_t> value_head_dim = std::nullopt;  ///< default 2 d_model / num_heads
  double norm_eps = 1e-5;                                ///< of the norm before w_o; >= 0
  std::optional<int64_t> input_dim = std::nullopt;       ///< features of x; default d_model
  double dropout = 0.0;                                  ///< before w_o, while training
  bool bias = false;                                     ///< of the projections
  Rope rope = true;                                      ///< rotary positions of q and k
};

/// The module; MultiScaleRetention holds it.
class MultiScaleRetentionImpl
    : public RecurrentAttention<MultiScaleRetentionImpl, MultiScaleRetentionOptions> {
 public:
  static constexpr const char* kName = "MultiScaleRetention";

  /// With the default of every other option.
  MultiScaleRetentionImpl(int64_t d_model, int64_t num_heads)
      : MultiScaleRetentionImpl(
            MultiScaleRetentionOptions{.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit MultiScaleRetentionImpl(const MultiScaleRetentionOptions& o)
      : RecurrentAttention(o), heads_(settle_heads(d_model(), 2 * d_model())) {
    rotate_heads(options.rope, heads_.dk);
    reset();
  }

  /// Makes and registers the parameters.
  void reset() override {
    RecurrentAttention::reset();
    const auto [H, HV, dk, dv] = heads_;
    w_q = make_projection("w_q", input_dim(), H * dk);
    w_k = make_projection("w_k", input_dim(), H * dk);
    w_v = make_projection("w_v", input_dim(), HV * dv);
    w_g = make_projection("w_g", input_dim(), HV * dv);
    w_o = make_projection("w_o", HV * dv, d_model());
    norm = make_norm("norm", dv, options.norm_eps);
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L]. Throws what begin() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const auto [H, HV, dk, dv] = heads_;
    auto call = begin(x, inputs);
    const auto qkvg = core::linear_each(call.x, {w_q, w_k, w_v, w_g});
    const auto gamma = 1 - torch::exp2(-5 - torch::arange(H, torch::kFloat64));
    const auto o =
        call.recur(rotated(call, core::split_heads(qkvg[0], dk)),
                   rotated(call, core::split_heads(qkvg[1], dk)), core::split_heads(qkvg[2], dv),
                   {.decay = gamma.log().to(x.device())});
    return finish(call, core::join_heads(norm(o) * torch::silu(core::split_heads(qkvg[3], dv))));
  }

  torch::nn::Linear w_q{nullptr}, w_k{nullptr};  ///< [H dh, input_dim]
  torch::nn::Linear w_v{nullptr}, w_g{nullptr};  ///< values and output gate, [H dv, input_dim]
  RMSNorm norm{nullptr};                         ///< of each head, [dv]

 private:
  core::RecurrentHeads heads_;
};

/// Example: `MultiScaleRetention attn({.d_model = 256, .num_heads = 4});`
using MultiScaleRetention = Holder<MultiScaleRetentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(MultiScaleRetentionImpl)
