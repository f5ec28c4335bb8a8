#pragma once
/// \file
/// Forgetting attention: a gate of each token and head lowers the scores of all tokens before it.
///
/// Lin et al., "Forgetting Transformer: Softmax Attention with a Forget Gate", 2025,
/// arXiv:2503.02130:
/// ```
/// f_t = sigmoid(w_f x_t + b_f)                                    one number for each head
/// y_i = softmax_j(q_i . k_j / sqrt(d_head) + d_ij) v_j,   d_ij = sum_{j < l <= i} log f_l
/// ```
/// so a token's own gate says what it forgets of those before it. The paper's form is `causal =
/// true`; without, what lies between two tokens counts in both directions, d_ij = d_ji. Positions
/// need no other embedding, but `rope` may be on. The gates' biases begin with `forget_bias`.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L^2 d_model) time, with a sliding window O(L window d_model); O(L d_model) memory.

#include <attzoo/forgetting/gate_cache.hpp>
#include <attzoo/functional/apply_linear.hpp>
#include <attzoo/module/self_attention.hpp>

#include <torch/nn/init.h>

#include <cmath>
#include <memory>

namespace attzoo {

/// Options of ForgettingSelfAttention.
struct ForgettingSelfAttentionOptions {
  int64_t d_model = 0;    ///< features of the output; > 0
  int64_t num_heads = 0;  ///< divides d_model unless there is a head_dim
  std::optional<int64_t> num_kv_heads = std::nullopt;  ///< divides num_heads; default num_heads
  double forget_bias = 0.0;                            ///< of w_f at first; finite
  std::optional<int64_t> input_dim = std::nullopt;     ///< features of x; default d_model
  double dropout = 0.0;                                ///< of the weights, while training
  bool bias = false;                                   ///< of the four projections
  double temperature = 1.0;                            ///< divides q . k; > 0
  Rope rope = false;                                   ///< rotary positions; d_head must be even
  bool causal = false;                                 ///< nobody attends to later tokens
  std::optional<int64_t> head_dim = std::nullopt;  ///< features of a head; default d_model / heads
  bool qk_norm = false;       ///< an RMSNorm over each head of q and of k, before RoPE
  double qk_norm_eps = 1e-6;  ///< of these norms; >= 0
  /// The heads' outputs are multiplied by sigmoid(w_g x) before w_o, as in the paper's Pro block.
  bool output_gate = false;
  /// A token sees so many tokens at most, itself and those before it; > 0, for causal calls alone.
  std::optional<int64_t> sliding_window = std::nullopt;
};

/// The module; ForgettingSelfAttention holds it.
class ForgettingSelfAttentionImpl
    : public SelfAttention<ForgettingSelfAttentionImpl, ForgettingSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "ForgettingSelfAttention";
  static constexpr TakenInputs kTakes{.context = false};

  /// With the default of every other option.
  ForgettingSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : ForgettingSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit ForgettingSelfAttentionImpl(const ForgettingSelfAttentionOptions& o) : SelfAttention(o) {
    reset();
  }

  /// Makes and registers the parameters, w_f too.
  void reset() override {
    SelfAttention::reset();
    w_f = make_projection("w_f", input_dim(), options.num_heads, /*bias=*/true);
    torch::nn::init::constant_(w_f->bias, options.forget_bias);
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// what a cache has. Throws what project() does, and c10::ValueError for a context, whose tokens
  /// have no gates.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const auto heads = project(x, inputs);
    auto gates = torch::log_sigmoid(apply_linear(x, w_f).to(torch::kFloat64)).transpose(1, 2);
    if (const auto& real = inputs.key_padding_mask; real.defined()) {
      gates = gates.masked_fill(real.logical_not().unsqueeze(1), 0);  // padding forgets nothing
    }
    auto sums = core::sums_of_documents(gates, heads.packing);
    if (heads.past) sums = static_cast<core::GateCache&>(inputs.cache.state()).enter(sums);
    return finish(attend(heads, inputs, full(), decay(sums)));
  }

  /// A cache of keys, values and gates; see MakesCache.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    const auto head = new_cache_head(batch, capacity, how, keeps().forgets());
    return Cache(
        std::make_shared<core::GateCache>(head, options.num_heads, kv_heads(), d_head(), keeps()));
  }

  /// Throws c10::NotImplementedError: a context's tokens have no gates.
  Cache make_context_cache(const torch::Tensor&, const torch::Tensor& = {}) const override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, kName,
                                ": a context has no meaning here: its tokens have no gates");
  }

  torch::nn::Linear w_f{nullptr};  ///< the gates' logits: [num_heads, input_dim], with a bias

 protected:
  void check_own_options() const override {
    TORCH_CHECK_VALUE(std::isfinite(options.forget_bias), kName,
                      ": forget_bias must be finite, got ", options.forget_bias);
  }
};

/// Example: `ForgettingSelfAttention attn({.d_model = 128, .num_heads = 8, .causal = true});`
using ForgettingSelfAttention = Holder<ForgettingSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(ForgettingSelfAttentionImpl)
