#pragma once
/// \file
/// Mamba-2: a selective state space, which is a linear recurrence whose heads forget as the token
/// says.
///
/// Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through
/// Structured State Space Duality", 2024, arXiv:2405.21060. B and C are keys and queries, which the
/// heads of a group share. In every head:
/// ```
/// z, xBC, dt = u W_in                  x, B, C = silu(conv(xBC))
/// dt_t       = softplus(dt_t + dt_bias)
/// S_t        = exp(-exp(A_log) dt_t) S_{t-1} + B_t (dt_t x_t)^T
/// y_t        = (norm((S_t^T C_t + D x_t) * silu(z_t))) W_o
/// ```
///
/// Shapes: u [B, L, input_dim] -> output [B, L, d_model], no lse; weights [B, H, L, L] of dt x, but
/// for D.
/// Cost: O(L state_size head_dim) time in each head, O(L) memory; a cache is O(1).

#include <attzoo/module/recurrent.hpp>

#include <ATen/ops/softplus.h>

#include <optional>

namespace attzoo {

/// Options of Mamba2.
struct Mamba2Options {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_heads = 1;                            ///< of x; num_groups divides
  std::optional<int64_t> head_dim = std::nullopt;   ///< of x; default 2 d_model / num_heads
  int64_t state_size = 128;                         ///< features of B and C; > 0
  int64_t num_groups = 1;                           ///< of heads that share B and C
  int64_t conv_size = 4;                            ///< tokens that the convolution sees; > 0
  double norm_eps = 1e-5;                           ///< of the norm before w_o; >= 0
  double dt_min = 0;                                ///< dt is not below; >= 0
  std::optional<double> dt_max = std::nullopt;      ///< nor above; default no bound
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of u; default d_model
  double dropout = 0.0;                             ///< before w_o, while training
  bool bias = false;                                ///< of the projections
  bool conv_bias = true;                            ///< of the convolution
};

/// The module; Mamba2 holds it.
class Mamba2Impl : public RecurrentAttention<Mamba2Impl, Mamba2Options> {
 public:
  static constexpr const char* kName = "Mamba2";

  /// With the default of every other option.
  Mamba2Impl(int64_t d_model, int64_t num_heads)
      : Mamba2Impl(Mamba2Options{.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit Mamba2Impl(const Mamba2Options& o)
      : RecurrentAttention(o), head_dim_(settle_heads(2 * d_model()).dk) {
    reset();
  }

  /// Makes and registers the parameters.
  void reset() override {
    RecurrentAttention::reset();
    const int64_t H = options.num_heads, inner = H * head_dim_;
    const int64_t groups = options.num_groups * options.state_size;
    w_in = make_projection("w_in", input_dim(), 2 * inner + 2 * groups + H);
    w_o = make_projection("w_o", inner, d_model());
    conv = make_convolution("conv", inner + 2 * groups, options.conv_size, options.conv_bias);
    A_log = register_parameter("A_log", core::initial_A_log(H));
    dt_bias = register_parameter("dt_bias", core::initial_dt_bias(H));
    D = register_parameter("D", torch::ones({H}));
    norm = make_norm("norm", inner, options.norm_eps);
  }

  /// u [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L]. Throws what begin() does.
  AttentionResult forward(const torch::Tensor& u, const AttentionInputs& inputs = {}) {
    auto call = begin(u, inputs);
    const int64_t H = options.num_heads, inner = H * head_dim_, states = options.state_size;
    const int64_t groups = options.num_groups * states;
    const auto in = core::linear(call.x, w_in).split_with_sizes({inner, inner + 2 * groups, H}, -1);
    const auto xBC = call.convolve(conv, in[1]).split_with_sizes({inner, groups, groups}, -1);
    const auto heads = [](const torch::Tensor& t, int64_t size) {
      return core::wide(core::split_heads(t, size));
    };
    const auto x = heads(xBC[0], head_dim_);
    const auto dt = at::softplus(core::wide(in[2]) + core::wide(dt_bias))
                        .clamp(options.dt_min, options.dt_max)
                        .transpose(1, 2);  // [B, H, n]
    const auto o = call.recur(heads(xBC[2], states), heads(xBC[1], states), x * dt.unsqueeze(-1),
                              {.decay = -core::wide(A_log).exp().unsqueeze(1) * dt, .scale = 1.0});
    const auto y = core::join_heads(o + D.view({H, 1, 1}) * x) * torch::silu(in[0]);
    return finish(call, core::norm_in_groups(norm, y, options.num_groups).to(in[0].scalar_type()));
  }

  torch::nn::Linear w_in{
      nullptr};                    ///< z, x, B, C and dt, [2 H dh + 2 groups states + H, input_dim]
  ShortConvolution conv{nullptr};  ///< over the features of x, B and C
  torch::Tensor A_log, dt_bias, D;  ///< [H]
  RMSNorm norm{nullptr};            ///< of each group of heads, [H dh]

 protected:
  void check_own_options() const override {
    check_positive("state_size", options.state_size);
    check_divides("num_groups", options.num_groups, "num_heads", options.num_heads);
    TORCH_CHECK_VALUE(options.dt_min >= 0 && options.dt_min <= options.dt_max.value_or(INFINITY),
                      kName, ": expected 0 <= dt_min <= dt_max, got dt_min=", options.dt_min);
  }

 private:
  int64_t head_dim_;
};

/// Example: `Mamba2 mixer({.d_model = 256, .num_heads = 8});`
using Mamba2 = Holder<Mamba2Impl>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(Mamba2Impl)
