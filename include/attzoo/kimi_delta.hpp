#pragma once
/// \file
/// Kimi Delta Attention: Gated DeltaNet whose every row of the state forgets at a rate of its own.
///
/// Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture", 2025,
/// arXiv:2510.26692. In every head, with q and k of length 1:
/// ```
/// q, k, v = silu(conv(x W_q, x W_k, x W_v))
/// g_t     = -exp(A) softplus(x_t W_f1 W_f2 + dt)        beta_t = sigmoid(x_t W_b)
/// R_t     = diag(exp(g_t)) S_{t-1}
/// S_t     = R_t + k_t (beta_t (v_t - R_t^T k_t))^T
/// y_t     = (norm(S_t^T q_t / sqrt(dh)) * sigmoid(x_t W_g1 W_g2)) W_o
/// ```
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L], no lse.
/// Cost: O(L dh^2) time in each head, O(L) memory; a cache is O(1).

#include <attzoo/module/recurrent.hpp>

#include <optional>

namespace attzoo {

/// Options of KimiDeltaAttention.
struct KimiDeltaAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_heads = 1;                            ///< of queries, keys and values
  std::optional<int64_t> head_dim = std::nullopt;   ///< default d_model / num_heads
  int64_t conv_size = 4;                            ///< tokens that the convolution sees; > 0
  double norm_eps = 1e-6;                           ///< of the norm before w_o; >= 0
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< before w_o, while training
  bool bias = false;                                ///< of the projections
};

/// The module; KimiDeltaAttention holds it.
class KimiDeltaAttentionImpl
    : public RecurrentAttention<KimiDeltaAttentionImpl, KimiDeltaAttentionOptions> {
 public:
  static constexpr const char* kName = "KimiDeltaAttention";

  /// With the default of every other option.
  KimiDeltaAttentionImpl(int64_t d_model, int64_t num_heads)
      : KimiDeltaAttentionImpl(
            KimiDeltaAttentionOptions{.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit KimiDeltaAttentionImpl(const KimiDeltaAttentionOptions& o)
      : RecurrentAttention(o), heads_(settle_heads(d_model())) {
    reset();
  }

  /// Makes and registers the parameters.
  void reset() override {
    RecurrentAttention::reset();
    const int64_t H = heads_.H, dh = heads_.dk;
    w_q = make_projection("w_q", input_dim(), H * dh);
    w_k = make_projection("w_k", input_dim(), H * dh);
    w_v = make_projection("w_v", input_dim(), H * dh);
    w_f1 = make_projection("w_f1", input_dim(), dh);
    w_f2 = make_projection("w_f2", dh, H * dh);
    w_b = make_projection("w_b", input_dim(), H);
    w_g1 = make_projection("w_g1", input_dim(), dh);
    w_g2 = make_projection("w_g2", dh, H * dh);
    w_o = make_projection("w_o", H * dh, d_model());
    conv = make_convolution("conv", 3 * H * dh, options.conv_size);
    A_log = register_parameter("A_log", core::initial_A_log(H));
    dt_bias = register_parameter("dt_bias", core::initial_dt_bias(H * dh));
    norm = make_norm("norm", dh, options.norm_eps);
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L]. Throws what begin() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const int64_t H = heads_.H, dh = heads_.dk;
    auto call = begin(x, inputs);
    const auto qkv = call.convolve(conv, torch::cat(core::linear_each(call.x, {w_q, w_k, w_v}), -1))
                         .chunk(3, -1);
    const auto fbg = core::linear_each(call.x, {w_f1, w_b, w_g1});
    const auto heads = [&](const torch::Tensor& t) { return core::split_heads(t, dh); };
    const auto decay = core::softplus_decay(
        A_log.view({H, 1, 1}), heads(core::linear(fbg[0], w_f2)), dt_bias.view({H, 1, dh}));
    const auto o =
        call.recur(core::l2_norm(heads(qkv[0])), core::l2_norm(heads(qkv[1])), heads(qkv[2]),
                   {.decay = decay, .beta = torch::sigmoid(fbg[1]).transpose(1, 2)});
    const auto gate = torch::sigmoid(heads(core::linear(fbg[2], w_g2)));
    return finish(call, core::join_heads(norm(o) * gate));
  }

  torch::nn::Linear w_q{nullptr}, w_k{nullptr}, w_v{nullptr};  ///< [H dh, input_dim]
  torch::nn::Linear w_f1{nullptr}, w_f2{nullptr};  ///< of g, [dh, input_dim] and [H dh, dh]
  torch::nn::Linear w_b{nullptr};                  ///< of beta, [H, input_dim]
  torch::nn::Linear w_g1{nullptr}, w_g2{nullptr};  ///< output gate, [dh, input_dim], [H dh, dh]
  ShortConvolution conv{nullptr};                  ///< over the features of q, k and v
  torch::Tensor A_log, dt_bias;                    ///< log A [H] and dt [H dh]
  RMSNorm norm{nullptr};                           ///< of each head, [dh]

 private:
  core::RecurrentHeads heads_;
};

/// Example: `KimiDeltaAttention attn({.d_model = 256, .num_heads = 4});`
using KimiDeltaAttention = Holder<KimiDeltaAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(KimiDeltaAttentionImpl)
