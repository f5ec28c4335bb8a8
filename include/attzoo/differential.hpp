#pragma once
/// \file
/// Differential attention: the difference of two softmaxes, in which what both attend to cancels.
///
/// Ye et al., "Differential Transformer", 2024, arXiv:2410.05258. A pair of query heads shares a
/// pair of key heads, and one value V of both their widths:
/// ```
/// head = (1 - l_init) RMSNorm((softmax(Q_1 K_1^T / sqrt(d)) - l softmax(Q_2 K_2^T / sqrt(d))) V)
/// l    = exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + l_init,   l_init = 0.8 - 0.6 exp(-0.3 layer)
/// ```
/// The pairs are the heads (2a, 2a + 1), as in the paper; with `half_pairs` (a, a + H / 2), as in
/// Hugging Face's DiffLlama. Masks, patterns and scores of a call are those of the pairs: H / 2.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H / 2, L, L], which sum to
///   1 - l in each row; lse [B, H, L], of all first heads and then of all second ones.
/// Cost: O(L^2 d_model) time, one and a half times multi-head attention's; O(L d_model) memory.

#include <attzoo/module/self_attention.hpp>
#include <attzoo/module/token_cache.hpp>

#include <torch/nn/init.h>

#include <cmath>
#include <memory>

namespace attzoo {

/// Options of DifferentialSelfAttention.
struct DifferentialSelfAttentionOptions {
  int64_t d_model = 0;          ///< features of the output; > 0
  int64_t num_query_heads = 0;  ///< even; divides d_model unless there is a head_dim
  int64_t num_kv_heads = 0;     ///< even; divides num_query_heads
  bool half_pairs = false;      ///< pairs of heads are (a, a + H / 2), not (2a, 2a + 1)
  bool norm_weight = true;      ///< of the pairs' RMSNorm; DiffLlama has none
  int64_t layer = 0;            ///< counted from 0: l_init grows with it; >= 0
  double eps = 1e-5;            ///< of the norm; >= 0
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  /// Features of a context, which every call gives where they are others than x's; default
  /// input_dim.
  std::optional<int64_t> context_dim = std::nullopt;
  double dropout = 0.0;                            ///< of the weights, while training
  bool bias = false;                               ///< of the four projections
  double temperature = 1.0;                        ///< divides the scores; > 0
  Rope rope = false;                               ///< rotary positions; d_head must be even
  bool causal = false;                             ///< nobody attends to later tokens
  std::optional<int64_t> head_dim = std::nullopt;  ///< features of a head; default d_model / heads
  std::optional<bool> out_bias = std::nullopt;     ///< of w_o; default bias
};

/// The module; DifferentialSelfAttention holds it.
class DifferentialSelfAttentionImpl
    : public SelfAttention<DifferentialSelfAttentionImpl, DifferentialSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "DifferentialSelfAttention";

  /// With the default of every other option.
  DifferentialSelfAttentionImpl(int64_t d_model, int64_t num_query_heads, int64_t num_kv_heads)
      : DifferentialSelfAttentionImpl({.d_model = d_model,
                                       .num_query_heads = num_query_heads,
                                       .num_kv_heads = num_kv_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit DifferentialSelfAttentionImpl(const DifferentialSelfAttentionOptions& o)
      : SelfAttention(o) {
    reset();
    callee().heads = o.num_query_heads / 2;
  }

  /// Makes and registers the parameters: the vectors of l normal, of deviation 0.1.
  void reset() override {
    SelfAttention::reset();
    const auto vector = [&](const char* name) {
      auto t = register_parameter(name, torch::empty({d_head()}));
      return torch::nn::init::normal_(t, 0, 0.1), t;
    };
    lambda_q1 = vector("lambda_q1");
    lambda_k1 = vector("lambda_k1");
    lambda_q2 = vector("lambda_q2");
    lambda_k2 = vector("lambda_k2");
    if (!options.norm_weight) return;
    norm_weight = register_parameter("norm_weight", torch::ones({2 * d_head()}));
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H / 2, L, S], lse [B, H, L]; S is
  /// L, or the context's length. Throws what project() does.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const auto heads = project(x, inputs);
    const auto of_pairs = [&](int64_t i) {  // the first or the second heads of all
      auto part = heads;
      part.q = pair(heads.q)[static_cast<size_t>(i)];
      if (core::is_quantized(heads.k)) {  // rows stay whole: the other half meets zeros
        const auto none = torch::zeros_like(part.q);
        part.q = torch::cat(i == 0 ? std::vector{part.q, none} : std::vector{none, part.q}, 3);
      } else {
        part.k = heads.k.chunk(2, 3)[static_cast<size_t>(i)];
      }
      return attend(part, inputs);
    };
    const auto one = of_pairs(0), two = of_pairs(1);
    const auto l = lambda().to(one.output.scalar_type());
    const auto difference = one.output - l * two.output;
    std::optional<torch::Tensor> weight;  // LibTorch 2.11 refuses an undefined one
    if (norm_weight.defined()) weight = norm_weight.to(difference.scalar_type());
    const auto normed = torch::rms_norm(difference, {2 * d_head()}, weight, options.eps);
    return finish({(1 - lambda_init()) * normed,
                   one.weights.map([l, other = two.weights](const torch::Tensor& rows,
                                                            int64_t begin, int64_t end) {
                     return rows - l.to(rows.scalar_type()) * other.rows(begin, end);
                   }),
                   torch::cat({one.lse, two.lse}, 1)});
  }

  /// A cache of pairs of keys and their values; see MakesCache.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    const auto head = new_cache_head(batch, capacity, how, /*unending=*/false);
    const core::KvRows rows{options.num_kv_heads / 2, 2 * d_head(), 2 * d_head()};
    return Cache(std::make_shared<core::KvCache>(head, rows, Keeps{}, /*globals=*/false));
  }

  /// l, a scalar, which learns.
  torch::Tensor lambda() const {
    return (lambda_q1 * lambda_k1).sum().exp() - (lambda_q2 * lambda_k2).sum().exp() +
           lambda_init();
  }
  /// What it is at first, nearly.
  double lambda_init() const {
    return 0.8 - 0.6 * std::exp(-0.3 * static_cast<double>(options.layer));
  }

  torch::Tensor lambda_q1, lambda_k1, lambda_q2, lambda_k2;  ///< [d_head]
  torch::Tensor norm_weight;                                 ///< [2 d_head]; undefined without

 protected:
  void check_own_options() const override {
    const auto even = [](const char* name, int64_t heads) {
      TORCH_CHECK_VALUE(heads % 2 == 0, kName, ": ", name, " must be even, got ", heads);
    };
    even("num_query_heads", options.num_query_heads);
    even("num_kv_heads", options.num_kv_heads);
    TORCH_CHECK_VALUE(options.layer >= 0, kName, ": layer must be >= 0, got ", options.layer);
    TORCH_CHECK_VALUE(options.eps >= 0 && std::isfinite(options.eps), kName,
                      ": eps must be >= 0 and finite, got ", options.eps);
  }

  /// As SelfAttention::project, where keys and values [B, Hkv / 2, S, 2 d_head] are those of pairs.
  Heads project(const torch::Tensor& x, const AttentionInputs& inputs) {
    check_options();
    const auto places = core::check_call(callee(), w_q->weight, x, inputs, mode(inputs));
    auto heads = project_with(w_q, w_k, w_v, x, inputs, places);
    heads.k = torch::cat(pair(heads.k), 3);
    heads.v = torch::cat(pair(heads.v), 3);
    if (heads.past) static_cast<core::KvCache&>(inputs.cache.state()).append(heads);
    return heads;
  }

 private:
  /// The first and the second heads of all pairs, views.
  std::vector<torch::Tensor> pair(const torch::Tensor& heads) const {
    if (options.half_pairs) return heads.chunk(2, 1);
    return {heads.slice(1, 0, heads.size(1), 2), heads.slice(1, 1, heads.size(1), 2)};
  }
};

/// Example: `DifferentialSelfAttention attn({.d_model = 256, .num_query_heads = 8, .num_kv_heads =
/// 8, .layer = 3, .causal = true});`
using DifferentialSelfAttention = Holder<DifferentialSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(DifferentialSelfAttentionImpl)
