#pragma once
/// \file
/// Self-attention with linear biases: distance lowers a score, and no position embedding is needed.
///
/// Press et al., "Train Short, Test Long: Attention with Linear Biases Enables Input Length
/// Extrapolation", 2021, arXiv:2108.12409:
/// ```
/// head_h = softmax(Q_h K_h^T / sqrt(d_head) - m_h |i - j|) V_h
/// ```
/// with a slope m_h for each head; the paper's causal form is `causal = true`.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L^2 d_model) time, O(L d_model) memory: the bias is computed where it is used.
/// Departs from the Python library: its slopes for H = 1 and for H that is no power of two are not
/// the paper's (`python_slopes` gives them), and its [H, n, n] buffer `alibi_bias` does not exist.

#include <attzoo/module/self_attention.hpp>

namespace attzoo {

/// Options of ALiBiSelfAttention.
struct ALiBiSelfAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_heads = 0;                            ///< divides d_model
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  bool causal = false;                              ///< nobody attends to later tokens
  bool python_slopes = false;                       ///< the Python library's slopes
};

/// The slopes of `num_heads` heads, [H] float32: 2^(-8 (h + 1) / H) for a power of two; else those
/// of the next lower power of two, then every other slope of twice as many heads, as in the paper's
/// code. `python_rule`: the slopes of the lower power of two repeated instead, and 1 for one head.
/// Throws c10::ValueError unless 0 < num_heads <= 2^24.
inline torch::Tensor alibi_slopes(int64_t num_heads, bool python_rule = false) {
  TORCH_CHECK_VALUE(num_heads > 0 && num_heads <= int64_t{1} << 24,
                    "alibi_slopes: num_heads must be > 0 and at most 2^24, got ", num_heads);
  const auto geometric = [](int64_t heads) {
    return torch::exp2(torch::arange(1, heads + 1, torch::kFloat64) *
                       (-8.0 / static_cast<double>(heads)));
  };
  int64_t power = 1;
  while (power * 2 <= num_heads) power *= 2;
  auto slopes = geometric(power);
  if (python_rule && num_heads == 1) slopes = torch::ones(1, torch::kFloat64);
  if (power < num_heads) {
    const auto more = python_rule ? slopes : geometric(2 * power).slice(0, 0, 2 * power, 2);
    slopes = torch::cat({slopes, more.slice(0, 0, num_heads - power)});
  }
  return slopes.to(torch::kFloat32);
}

/// The module; ALiBiSelfAttention holds it.
class ALiBiSelfAttentionImpl
    : public SelfAttention<ALiBiSelfAttentionImpl, ALiBiSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "ALiBiSelfAttention";

  /// With the default of every other option.
  ALiBiSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : ALiBiSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit ALiBiSelfAttentionImpl(const ALiBiSelfAttentionOptions& o) : SelfAttention(o) {
    reset();
  }

  /// Makes and registers the parameters, and the slopes.
  void reset() override {
    SelfAttention::reset();
    slopes = register_buffer("slopes", alibi_slopes(options.num_heads, options.python_slopes));
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    return finish(attend(project(x, inputs), inputs, full(), alibi(slopes)));
  }

  torch::Tensor slopes;  ///< [H], a buffer: saved and loaded with the module
};

/// Example: `ALiBiSelfAttention attn({.d_model = 128, .num_heads = 8, .causal = true});`
using ALiBiSelfAttention = Holder<ALiBiSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(ALiBiSelfAttentionImpl)
