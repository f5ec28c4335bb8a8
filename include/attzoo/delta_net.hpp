#pragma once
/// \file
/// DeltaNet: a state that a delta rule corrects: each token replaces what the state says of its
/// key.
///
/// Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", 2024,
/// arXiv:2406.06484. In every head, with q and k of length 1:
/// ```
/// q, k, v = silu(conv(x W_q, x W_k, x W_v))        beta_t = sigmoid(x_t W_b)
/// S_t     = S_{t-1} + k_t (beta_t (v_t - S_{t-1}^T k_t))^T
/// y_t     = norm(S_t^T q_t / sqrt(dh)) W_o
/// ```
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L], no lse.
/// Cost: O(L dh value_head_dim) time in each head, O(L) memory; a cache is O(1).

#include <attzoo/module/recurrent.hpp>

#include <optional>

namespace attzoo {

/// Options of DeltaNet.
struct DeltaNetOptions {
  int64_t d_model = 0;                             ///< features of the output; > 0
  int64_t num_heads = 1;                           ///< of queries, keys and values
  std::optional<int64_t> head_dim = std::nullopt;  ///< of q and k; default d_model / num_heads
  std::optional<int64_t> value_head_dim = std::nullopt;  ///< default head_dim
  int64_t conv_size = 4;                                 ///< tokens that the convolution sees; > 0
  double norm_eps = 1e-5;                                ///< of the norm before w_o; >= 0
  std::optional<int64_t> input_dim = std::nullopt;       ///< features of x; default d_model
  double dropout = 0.0;                                  ///< before w_o, while training
  bool bias = false;                                     ///< of the projections
};

/// The module; DeltaNet holds it.
class DeltaNetImpl : public RecurrentAttention<DeltaNetImpl, DeltaNetOptions> {
 public:
  static constexpr const char* kName = "DeltaNet";

  /// With the default of every other option.
  DeltaNetImpl(int64_t d_model, int64_t num_heads)
      : DeltaNetImpl(DeltaNetOptions{.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit DeltaNetImpl(const DeltaNetOptions& o)
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
    w_b = make_projection("w_b", input_dim(), HV);
    w_o = make_projection("w_o", HV * dv, d_model());
    conv = make_convolution("conv", 2 * H * dk + HV * dv, options.conv_size);
    norm = make_norm("norm", dv, options.norm_eps);
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L]. Throws what begin() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const auto [H, HV, dk, dv] = heads_;
    auto call = begin(x, inputs);
    const auto qkv = call.convolve(conv, torch::cat(core::linear_each(call.x, {w_q, w_k, w_v}), -1))
                         .split_with_sizes({H * dk, H * dk, HV * dv}, -1);
    const auto beta = torch::sigmoid(core::linear(call.x, w_b)).transpose(1, 2);
    const auto o = call.recur(core::l2_norm(core::split_heads(qkv[0], dk)),
                              core::l2_norm(core::split_heads(qkv[1], dk)),
                              core::split_heads(qkv[2], dv), {.beta = beta});
    return finish(call, core::join_heads(norm(o)));
  }

  torch::nn::Linear w_q{nullptr}, w_k{nullptr};  ///< [H dh, input_dim]
  torch::nn::Linear w_v{nullptr};                ///< [H dv, input_dim]
  torch::nn::Linear w_b{nullptr};                ///< of beta, [H, input_dim]
  ShortConvolution conv{nullptr};                ///< over the features of q, k and v
  RMSNorm norm{nullptr};                         ///< of each head, [dv]

 private:
  core::RecurrentHeads heads_;
};

/// Example: `DeltaNet attn({.d_model = 256, .num_heads = 4});`
using DeltaNet = Holder<DeltaNetImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(DeltaNetImpl)
