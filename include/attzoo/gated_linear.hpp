#pragma once
/// \file
/// Gated linear attention: a state whose every row forgets as the token says.
///
/// Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2023,
/// arXiv:2312.06635. In every head:
/// ```
/// q, k, v = x W_q, x W_k, x W_v
/// a_t     = sigmoid(x_t W_a1 W_a2 + b)^(1 / 16)
/// S_t     = diag(a_t) S_{t-1} + k_t v_t^T
/// y_t     = (norm(S_t^T q_t / sqrt(dh)) * silu(x_t W_g)) W_o
/// ```
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L], no lse.
/// Cost: O(L dh value_head_dim) time in each head, O(L) memory; a cache is O(1).

#include <attzoo/module/recurrent.hpp>

#include <ATen/ops/log_sigmoid.h>

#include <optional>

namespace attzoo {

/// Options of GatedLinearAttention.
struct GatedLinearAttentionOptions {
  int64_t d_model = 0;                             ///< features of the output; > 0
  int64_t num_heads = 1;                           ///< of queries, keys and values
  std::optional<int64_t> head_dim = std::nullopt;  ///< of q and k; default d_model / 2 / num_heads
  std::optional<int64_t> value_head_dim = std::nullopt;  ///< default d_model / num_heads
  int64_t gate_rank = 16;                                ///< features between W_a1 and W_a2; > 0
  double gate_normalizer = 16;                           ///< root that a_t is; > 0
  double norm_eps = 1e-5;                                ///< of the norm before w_o; >= 0
  std::optional<int64_t> input_dim = std::nullopt;       ///< features of x; default d_model
  double dropout = 0.0;                                  ///< before w_o, while training
  bool bias = false;                                     ///< of the projections
};

/// The module; GatedLinearAttention holds it.
class GatedLinearAttentionImpl
    : public RecurrentAttention<GatedLinearAttentionImpl, GatedLinearAttentionOptions> {
 public:
  static constexpr const char* kName = "GatedLinearAttention";

  /// With the default of every other option.
  GatedLinearAttentionImpl(int64_t d_model, int64_t num_heads)
      : GatedLinearAttentionImpl(
            GatedLinearAttentionOptions{.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit GatedLinearAttentionImpl(const GatedLinearAttentionOptions& o)
      : RecurrentAttention(o), heads_(settle_heads(d_model() / 2, d_model())) {
    reset();
  }

  /// Makes and registers the parameters.
  void reset() override {
    RecurrentAttention::reset();
    const auto [H, HV, dk, dv] = heads_;
    w_q = make_projection("w_q", input_dim(), H * dk);
    w_k = make_projection("w_k", input_dim(), H * dk);
    w_v = make_projection("w_v", input_dim(), HV * dv);
    w_a1 = make_projection("w_a1", input_dim(), options.gate_rank, /*bias=*/false);
    w_a2 = make_projection("w_a2", options.gate_rank, H * dk, /*bias=*/true);
    w_g = make_projection("w_g", input_dim(), HV * dv);
    w_o = make_projection("w_o", HV * dv, d_model());
    norm = make_norm("norm", dv, options.norm_eps);
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L]. Throws what begin() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const auto [H, HV, dk, dv] = heads_;
    auto call = begin(x, inputs);
    const auto all = core::linear_each(call.x, {w_q, w_k, w_v, w_a1, w_g});
    const auto a = core::wide(core::split_heads(core::linear(all[3], w_a2), dk));
    const auto o = call.recur(core::split_heads(all[0], dk), core::split_heads(all[1], dk),
                              core::split_heads(all[2], dv),
                              {.decay = at::log_sigmoid(a) / options.gate_normalizer});
    return finish(call, core::join_heads(norm(o) * torch::silu(core::split_heads(all[4], dv))));
  }

  torch::nn::Linear w_q{nullptr}, w_k{nullptr};    ///< [H dh, input_dim]
  torch::nn::Linear w_v{nullptr}, w_g{nullptr};    ///< values and output gate, [H dv, input_dim]
  torch::nn::Linear w_a1{nullptr}, w_a2{nullptr};  ///< [gate_rank, input_dim], [H dh, gate_rank]
  RMSNorm norm{nullptr};                           ///< of each head, [dv]

 protected:
  void check_own_options() const override {
    check_positive("gate_rank", options.gate_rank);
    TORCH_CHECK_VALUE(options.gate_normalizer > 0, kName, ": gate_normalizer must be > 0, got ",
                      options.gate_normalizer);
  }

 private:
  core::RecurrentHeads heads_;
};

/// Example: `GatedLinearAttention attn({.d_model = 256, .num_heads = 4});`
using GatedLinearAttention = Holder<GatedLinearAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(GatedLinearAttentionImpl)
