#pragma once
/// \file
/// RWKV-7, the time mixing: a generalized delta rule, whose every row forgets and rewrites as the
/// token says.
///
/// Peng et al., "RWKV-7 'Goose' with Expressive Dynamic State Evolution", 2025, arXiv:2503.14456.
/// In every head, with x_c = x_t + mu_c * (x_{t-1} - x_t), a mix for each of c = r, w, k, v, a, g:
/// ```
/// r, k, v = x_r W_r, x_k W_k, x_v W_v
/// w       = -exp(-1/2) sigmoid(w0 + tanh(x_w w1) w2)     a = sigmoid(a0 + (x_a a1) a2)
/// e       = k * k_k, of length 1                         k = k * (1 + (a - 1) * k_a)
/// S_t     = diag(exp(w_t)) S_{t-1} - (a_t * e_t) (e_t^T S_{t-1}) + k_t v_t^T
/// o_t     = norm(S_t^T r_t) + (sum of r_t * r_k * k_t) v_t
/// y_t     = (o_t * sigmoid(x_g g1) g2) W_o
/// ```
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L], no lse.
/// Cost: O(L dh^2) time in each head, O(L) memory; a cache is O(1).
/// Departs from the paper: it is the first layer's. Those behind it mix the values with the first
/// one's, which a module that stands alone does not have.

#include <attzoo/module/recurrent.hpp>

#include <ATen/ops/group_norm.h>

#include <cmath>
#include <optional>

namespace attzoo {

/// Options of RWKV7.
struct RWKV7Options {
  int64_t d_model = 0;                               ///< features of the output; > 0
  int64_t num_heads = 1;                             ///< of receptances (queries), keys and values
  std::optional<int64_t> head_dim = std::nullopt;    ///< default d_model / num_heads
  std::optional<int64_t> decay_rank = std::nullopt;  ///< of w1 w2; default as the authors'
  std::optional<int64_t> rate_rank = std::nullopt;   ///< of a1 a2; default as the authors'
  std::optional<int64_t> gate_rank = std::nullopt;   ///< of g1 g2; default as the authors'
  double norm_eps = 64e-5;                           ///< of the norm of heads; >= 0
  std::optional<int64_t> input_dim = std::nullopt;   ///< features of x; default d_model
  double dropout = 0.0;                              ///< before w_o, while training
  bool bias = false;                                 ///< of w_r, w_k, w_v and w_o
};

/// The module; RWKV7 holds it.
class RWKV7Impl : public RecurrentAttention<RWKV7Impl, RWKV7Options> {
 public:
  static constexpr const char* kName = "RWKV7";

  /// With the default of every other option.
  RWKV7Impl(int64_t d_model, int64_t num_heads)
      : RWKV7Impl(RWKV7Options{.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit RWKV7Impl(const RWKV7Options& o)
      : RecurrentAttention(o), heads_(settle_heads(d_model())) {
    const auto settle = [width = static_cast<double>(input_dim())](auto& rank, double factor,
                                                                   double power) {
      const double of_32 = std::round(factor * std::pow(width, power) / 32);
      if (!rank) rank = 32 * std::max<int64_t>(1, static_cast<int64_t>(of_32));
    };
    settle(options.decay_rank, 1.8, 0.5);
    settle(options.rate_rank, 1.8, 0.5);
    settle(options.gate_rank, 0.6, 0.8);
    reset();
  }

  /// Makes and registers the parameters, with the values that the authors' begin with.
  void reset() override {
    RecurrentAttention::reset();
    const int64_t C = input_dim(), inner = heads_.H * heads_.dk;
    w_r = make_projection("w_r", C, inner);
    w_k = make_projection("w_k", C, inner);
    w_v = make_projection("w_v", C, inner);
    w_o = make_projection("w_o", inner, d_model());
    w1 = make_projection("w1", C, *options.decay_rank, /*bias=*/false);
    w2 = make_projection("w2", *options.decay_rank, inner, /*bias=*/true);
    a1 = make_projection("a1", C, *options.rate_rank, /*bias=*/false);
    a2 = make_projection("a2", *options.rate_rank, inner, /*bias=*/true);
    g1 = make_projection("g1", C, *options.gate_rank, /*bias=*/false);
    g2 = make_projection("g2", *options.gate_rank, inner, /*bias=*/false);
    const auto place = torch::arange(C) / static_cast<double>(C);
    const auto powers = torch::tensor({0.2, 0.9, 0.7, 0.7, 0.9, 0.2}).unsqueeze(1);
    mu = register_parameter("mu", 1 - place.pow(powers));
    k_k = register_parameter("k_k", torch::full({inner}, 0.85));
    k_a = register_parameter("k_a", torch::ones({inner}));
    r_k = register_parameter("r_k", torch::zeros({inner}));
    norm_weight = register_parameter("norm_weight", torch::ones({inner}));
    norm_bias = register_parameter("norm_bias", torch::zeros({inner}));
    const torch::NoGradGuard no_grad;
    w2->bias.copy_(torch::linspace(0, 1, inner).pow(0.85) * 5 - 6.5);
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L]. Throws what begin() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    auto call = begin(x, inputs);
    const auto change = call.shift(call.x) - call.x;
    const auto mixed = [&](int64_t c) { return call.x + change * mu[c]; };
    const auto heads = [&](const torch::Tensor& t) { return core::split_heads(t, heads_.dk); };
    const auto r = core::linear(mixed(0), w_r), v = heads(core::linear(mixed(3), w_v));
    auto k = core::linear(mixed(2), w_k);
    const auto w = core::linear(torch::tanh(core::linear(mixed(1), w1)), w2);
    const auto a = torch::sigmoid(core::linear(core::linear(mixed(4), a1), a2));
    const auto gate = core::linear(torch::sigmoid(core::linear(mixed(5), g1)), g2);
    const auto e = core::l2_norm(heads(k * k_k), 1e-24);
    k = k * (1 + (a - 1) * k_a);
    const auto o = call.recur(heads(r), heads(k), v,
                              {.decay = -std::exp(-0.5) * torch::sigmoid(core::wide(heads(w))),
                               .a = -e,
                               .b = e * heads(a),
                               .scale = 1.0});
    const auto own = heads(r * k * r_k).sum(-1, /*keepdim=*/true) * v;
    return finish(call, (normed(core::join_heads(o)) + core::join_heads(own)) * gate);
  }

  torch::nn::Linear w_r{nullptr}, w_k{nullptr}, w_v{nullptr};  ///< [H dh, input_dim]
  torch::nn::Linear w1{nullptr}, w2{nullptr};  ///< of w, w0 the bias of w2, that of [H dh, rank]
  torch::nn::Linear a1{nullptr}, a2{nullptr};  ///< of a, a0 the bias of a2
  torch::nn::Linear g1{nullptr}, g2{nullptr};  ///< of the output gate
  torch::Tensor mu;                            ///< mixes of r, w, k, v, a, g, [6, input_dim]
  torch::Tensor k_k, k_a, r_k;                 ///< [H dh]
  torch::Tensor norm_weight, norm_bias;        ///< of the heads' norm, [H dh]

 protected:
  void check_own_options() const override {
    check_positive("decay_rank", options.decay_rank.value_or(1));
    check_positive("rate_rank", options.rate_rank.value_or(1));
    check_positive("gate_rank", options.gate_rank.value_or(1));
  }

 private:
  /// Layer normalization of each head: t [B, n, H dh].
  torch::Tensor normed(const torch::Tensor& t) const {
    const auto rows =
        at::group_norm(t.flatten(0, 1), heads_.H, norm_weight, norm_bias, options.norm_eps);
    return rows.view(t.sizes());
  }

  core::RecurrentHeads heads_;
};

/// Example: `RWKV7 mixer({.d_model = 256, .num_heads = 4});`
using RWKV7 = Holder<RWKV7Impl>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(RWKV7Impl)
