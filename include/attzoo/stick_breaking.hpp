#pragma once
/// \file
/// Stick-breaking self-attention: in the place of a softmax, each token before takes its share of
/// what later ones have left.
///
/// Tan et al., "Scaling Stick-Breaking Attention: An Efficient Implementation and In-depth Study",
/// 2024, arXiv:2410.17980:
/// ```
/// y_i  = sum_{j < i} w_ij v_j + r_i v_i
/// w_ij = sigmoid(z_ij) prod_{j < k < i} (1 - sigmoid(z_ik)),   z_ij = q_i . k_j / sqrt(d_head)
/// r_i  = prod_{k < i} (1 - sigmoid(z_ik)) = 1 - sum_j w_ij,    0 without `remainder`
/// ```
/// The stick is broken from the query backwards, so that of two keys that fit the later one is
/// heard: no positions are needed. Weights sum to 1 at most; a query that no key fits attends to
/// nothing, or with `remainder` to itself. Sums of log(1 - sigmoid) are taken over the keys behind
/// each, in which nothing cancels.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L], those of
/// `remainder` on the diagonal; lse [B, H, L] is log r_i. Always causal, and no token sees itself
/// otherwise. A key that padding, a mask, a document or a window hides breaks off nothing. Cost:
/// O(L^2 d_model) time, O(L d_model) memory; with a sliding_window O(L sliding_window d_model)
/// time. Fused on the CPU, forward and backward; chunks of rows on other devices.

#include <attzoo/module/self_attention.hpp>

namespace attzoo {

/// Options of StickBreakingSelfAttention.
struct StickBreakingSelfAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_heads = 0;                            ///< divides d_model
  bool remainder = false;                           ///< what is left of the stick attends to itself
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  Rope rope = false;                                ///< rotary positions; d_head must be even
  /// A token sees so many tokens at most, those before it and itself, which counts; > 0.
  std::optional<int64_t> sliding_window = std::nullopt;
};

/// The module; StickBreakingSelfAttention holds it.
class StickBreakingSelfAttentionImpl
    : public core::Mechanism<StickBreakingSelfAttentionImpl, StickBreakingSelfAttentionOptions,
                             core::SoftmaxAttention> {
 public:
  static constexpr const char* kName = "StickBreakingSelfAttention";
  static constexpr TakenInputs kTakes{.context = false, .later = false};

  /// With the default of every other option.
  StickBreakingSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : StickBreakingSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit StickBreakingSelfAttentionImpl(const StickBreakingSelfAttentionOptions& o)
      : Mechanism(o, settings(o)) {
    reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the tokens that a cache has. Throws what project() does; and c10::ValueError for a context,
  /// for causal = false, and for a score with a sink.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    check_inputs(inputs);
    const auto heads = project(x, inputs, inputs.cache.defined() ? keeps_window() : Keeps{});
    const core::WindowMask before{{core::to_int(kUnbounded), -1}};
    auto result = attend(heads, inputs, mode(inputs), before, {});
    if (options.remainder) add_remainder(result, heads);
    return finish(std::move(result));
  }

  /// What the next tokens need of those before; see MakesCache and Cache.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    check_options();
    return new_kv_cache(batch, capacity, how, keeps_window());
  }
  /// Throws c10::NotImplementedError: there is no context.
  Cache make_context_cache(const torch::Tensor&, const torch::Tensor& = {}) const override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, kName, kNoContext);
  }

 private:
  static constexpr const char* kNoContext =
      ": a context has no meaning: the stick is broken from a token's own place backwards";

  static SelfAttentionSettings settings(const StickBreakingSelfAttentionOptions& o) {
    auto s = core::settings_of(o);
    s.stick_breaking = true;
    return s;
  }

  void check_inputs(const AttentionInputs& in) const {
    TORCH_CHECK_VALUE(!in.score.sink().defined(), kName,
                      ": a sink of score is part of a softmax's sum and has no meaning here");
    if (in.cache.defined()) return;  // project() refuses both with a cache
    if (in.context.defined()) core::check_context(callee(), in.context, w_q->weight);
    TORCH_CHECK_VALUE(!in.context.defined(), kName, kNoContext);
    TORCH_CHECK_VALUE(in.causal.value_or(true), kName,
                      ": causal = false has no meaning: a token sees those before it");
  }

  /// What is left goes to the value of the query's own token, one of the last L keys.
  static void add_remainder(AttentionResult& result, const Heads& heads) {
    const int64_t L = heads.q.size(2), S = heads.k.size(2);
    const auto rest = result.lse.exp().unsqueeze(-1);  // [B, H, L, 1]
    const auto own = core::dequantized(heads.v.slice(2, S - L), heads.q.scalar_type());
    result.output =
        (result.output.to(rest.scalar_type()) + rest * own).to(result.output.scalar_type());
    result.weights = result.weights.map([=](const torch::Tensor& rows, int64_t begin, int64_t end) {
      const auto token = torch::arange(S, torch::dtype(torch::kInt64).device(rows.device()));
      const auto mine = torch::arange(begin + S - L, end + S - L, token.options()).unsqueeze(1);
      return torch::where(token == mine, rest.slice(2, begin, end).to(rows.scalar_type()), rows);
    });
  }
};

/// Example: `StickBreakingSelfAttention attn({.d_model = 256, .num_heads = 8, .remainder = true});`
using StickBreakingSelfAttention = Holder<StickBreakingSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_RECURRENCE(StickBreakingSelfAttentionImpl)
