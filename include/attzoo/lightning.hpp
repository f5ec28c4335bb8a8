#pragma once
/// \file
/// Lightning attention: linear attention whose heads forget, each at a rate of its own, the last
/// layers of a model more slowly than the first.
///
/// Qin et al., "Lightning Attention-2: A Free Lunch for Handling Unlimited Sequence Lengths in
/// Large Language Models", 2024, arXiv:2401.04658; the layer of MiniMax-Text-01. In head h = 0, 1,
/// ... of H, in layer l of N:
/// ```
/// q, k, v = silu(x W_q), silu(x W_k), silu(x W_v)
/// s       = 2^(-8 (h + 1) / H) (1 - l / (N - 1 + 1e-5) + 1e-5)
/// S_t     = exp(-s) S_{t-1} + k_t v_t^T
/// y_t     = (sigmoid(x_t W_g) * norm(S_t^T q_t of all heads)) W_o
/// ```
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L], no lse.
/// Cost: O(L dh^2) time in each head, O(L) memory; a cache is O(1).
/// The rates are those of MiniMax-Text-01, which writes down what the paper leaves open.

#include <attzoo/module/recurrent.hpp>

#include <optional>

namespace attzoo {

/// Options of LightningAttention.
struct LightningAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_heads = 1;                            ///< of queries, keys and values
  std::optional<int64_t> head_dim = std::nullopt;   ///< default d_model / num_heads
  int64_t layer = 0;                                ///< which one of num_layers, from 0
  int64_t num_layers = 1;                           ///< of the model; > 0
  double norm_eps = 1e-6;                           ///< of the norm before w_o; >= 0
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< before w_o, while training
  bool bias = false;                                ///< of the projections
};

/// The module; LightningAttention holds it.
class LightningAttentionImpl
    : public RecurrentAttention<LightningAttentionImpl, LightningAttentionOptions> {
 public:
  static constexpr const char* kName = "LightningAttention";

  /// With the default of every other option.
  LightningAttentionImpl(int64_t d_model, int64_t num_heads)
      : LightningAttentionImpl(
            LightningAttentionOptions{.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit LightningAttentionImpl(const LightningAttentionOptions& o)
      : RecurrentAttention(o), heads_(settle_heads(d_model())) {
    reset();
  }

  /// Makes and registers the parameters.
  void reset() override {
    RecurrentAttention::reset();
    const int64_t features = heads_.H * heads_.dk;
    w_q = make_projection("w_q", input_dim(), features);
    w_k = make_projection("w_k", input_dim(), features);
    w_v = make_projection("w_v", input_dim(), features);
    w_g = make_projection("w_g", input_dim(), features);
    w_o = make_projection("w_o", features, d_model());
    norm = make_norm("norm", features, options.norm_eps);
  }

  /// Natural logs of what a head keeps of its state from token to token: -s, float64 [H].
  torch::Tensor decay() const {
    const auto H = static_cast<double>(heads_.H),
               last = static_cast<double>(options.num_layers - 1);
    const auto head = torch::arange(1, heads_.H + 1, torch::kFloat64);
    return torch::exp2(-8 / H * head) *
           -(1 - static_cast<double>(options.layer) / (last + 1e-5) + 1e-5);
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L]. Throws what begin() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    auto call = begin(x, inputs);
    const auto qkvg = core::linear_each(call.x, {w_q, w_k, w_v, w_g});
    const auto heads = [&](size_t i) { return core::split_heads(torch::silu(qkvg[i]), heads_.dk); };
    const auto o =
        call.recur(heads(0), heads(1), heads(2), {.decay = decay().to(x.device()), .scale = 1.0});
    return finish(call, torch::sigmoid(qkvg[3]) * norm(core::join_heads(o)));
  }

  torch::nn::Linear w_q{nullptr}, w_k{nullptr}, w_v{nullptr};  ///< [H dh, input_dim]
  torch::nn::Linear w_g{nullptr};                              ///< output gate, [H dh, input_dim]
  RMSNorm norm{nullptr};                                       ///< of all heads, [H dh]

 protected:
  void check_own_options() const override {
    TORCH_CHECK_VALUE(
        options.num_layers > 0 && 0 <= options.layer && options.layer < options.num_layers, kName,
        ": layer must be in [0, num_layers), got layer=", options.layer,
        " num_layers=", options.num_layers);
  }

 private:
  core::RecurrentHeads heads_;
};

/// Example: `LightningAttention attn({.d_model = 256, .num_heads = 4});`
using LightningAttention = Holder<LightningAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(LightningAttentionImpl)
