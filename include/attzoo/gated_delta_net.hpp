#pragma once
/// \file
/// Gated DeltaNet: a state that forgets, and that a delta rule corrects: each token replaces what
/// the state says of its key.
///
/// Yang, Kautz and Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024,
/// arXiv:2412.06464; the layer of Qwen3-Next. In every head, with q and k of length 1:
/// ```
/// q, k, v = silu(conv(x W_q, x W_k, x W_v))
/// g_t     = -exp(A) softplus(x_t W_a + dt)         beta_t = sigmoid(x_t W_b)
/// S_t     = exp(g_t) S_{t-1} + k_t (beta_t (v_t - exp(g_t) S_{t-1}^T k_t))^T
/// y_t     = (norm(S_t^T q_t / sqrt(dh)) * silu(x_t W_g)) W_o
/// ```
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, HV, L, L], no lse.
/// Cost: O(L dh value_head_dim) time in each of HV heads, O(L) memory; a cache is O(1).
/// Departs from the paper as its code does: several heads of values may share one of queries and
/// keys, and the convolution is one over all features.

#include <attzoo/module/recurrent.hpp>

#include <optional>

namespace attzoo {

/// Options of GatedDeltaNet.
struct GatedDeltaNetOptions {
  int64_t d_model = 0;                                    ///< features of the output; > 0
  int64_t num_heads = 1;                                  ///< of queries and keys
  std::optional<int64_t> num_value_heads = std::nullopt;  ///< num_heads divides; default num_heads
  std::optional<int64_t> head_dim = std::nullopt;  ///< of q and k; default d_model / num_heads
  std::optional<int64_t> value_head_dim = std::nullopt;  ///< default head_dim
  int64_t conv_size = 4;                                 ///< tokens that the convolution sees; > 0
  double norm_eps = 1e-6;                                ///< of the norm before w_o; >= 0
  std::optional<int64_t> input_dim = std::nullopt;       ///< features of x; default d_model
  double dropout = 0.0;                                  ///< before w_o, while training
  bool bias = false;                                     ///< of the projections
};

/// The module; GatedDeltaNet holds it.
class GatedDeltaNetImpl : public RecurrentAttention<GatedDeltaNetImpl, GatedDeltaNetOptions> {
 public:
  static constexpr const char* kName = "GatedDeltaNet";

  /// With the default of every other option.
  GatedDeltaNetImpl(int64_t d_model, int64_t num_heads)
      : GatedDeltaNetImpl(GatedDeltaNetOptions{.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit GatedDeltaNetImpl(const GatedDeltaNetOptions& o)
      : RecurrentAttention(o), heads_(settle_heads(d_model())) {
    reset();
  }

  /// Makes and registers the parameters.
  void reset() override {
    RecurrentAttention::reset();
    const auto [H, HV, dk, dv] = heads_;
    w_q = make_projection("w_q", input_dim(), H * dk);
    w_k = make_projection("w_k", input_dim(), H * dk);
    w_v = make_projection("w_v", input_dim(), HV * dv);
    w_a = make_projection("w_a", input_dim(), HV);
    w_b = make_projection("w_b", input_dim(), HV);
    w_g = make_projection("w_g", input_dim(), HV * dv);
    w_o = make_projection("w_o", HV * dv, d_model());
    conv = make_convolution("conv", 2 * H * dk + HV * dv, options.conv_size);
    A_log = register_parameter("A_log", core::initial_A_log(HV));
    dt_bias = register_parameter("dt_bias", core::initial_dt_bias(HV));
    norm = make_norm("norm", dv, options.norm_eps);
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, HV, L, L]. Throws what begin()
  /// does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const auto [H, HV, dk, dv] = heads_;
    auto call = begin(x, inputs);
    const auto qkv = call.convolve(conv, torch::cat(core::linear_each(call.x, {w_q, w_k, w_v}), -1))
                         .split_with_sizes({H * dk, H * dk, HV * dv}, -1);
    const auto gates = core::linear_each(call.x, {w_a, w_b, w_g});
    const auto o =
        call.recur(core::l2_norm(core::split_heads(qkv[0], dk)),
                   core::l2_norm(core::split_heads(qkv[1], dk)), core::split_heads(qkv[2], dv),
                   {.decay = core::softplus_decay(A_log, gates[0], dt_bias).transpose(1, 2),
                    .beta = torch::sigmoid(gates[1]).transpose(1, 2)});
    const auto normed = norm(o) * torch::silu(core::split_heads(gates[2], dv));
    return finish(call, core::join_heads(normed));
  }

  torch::nn::Linear w_q{nullptr}, w_k{nullptr};  ///< [H dh, input_dim]
  torch::nn::Linear w_v{nullptr}, w_g{nullptr};  ///< values and output gate, [HV dv, input_dim]
  torch::nn::Linear w_a{nullptr}, w_b{nullptr};  ///< of g and beta, [HV, input_dim]
  ShortConvolution conv{nullptr};                ///< over the features of q, k and v
  torch::Tensor A_log, dt_bias;                  ///< log A and dt, [HV]
  RMSNorm norm{nullptr};                         ///< of each head, [dv]

 private:
  core::RecurrentHeads heads_;
};

/// Example: `GatedDeltaNet attn({.d_model = 256, .num_heads = 4});`
using GatedDeltaNet = Holder<GatedDeltaNetImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(GatedDeltaNetImpl)
