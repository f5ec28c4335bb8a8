#pragma once
/// \file
/// The eager reference: attention by its definition, everything materialised, differentiable any
/// number of times, on any device. Every fused path is tested against it.
///
/// ```
/// scores  = score_mod(scale * q k^T)      -inf where the mask forbids
/// weights = softmax(scores)               0 where nothing may be attended
/// output  = dropout(weights) v            lse = log(sum(exp(scores)))
/// ```

#include <attzoo/core/modifier/any_score.hpp>
#include <attzoo/core/quantized_rows.hpp>

namespace attzoo::core {

/// Dropout of attention weights: probability and the seed that decides which ones.
struct Dropout {
  double p = 0.0;
  uint64_t seed = 0;
};

/// A seed drawn from torch's CPU generator, so that torch::manual_seed makes it repeatable.
ATTZOO_API uint64_t random_seed();

/// q [B, H, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv]; of k and v maybe quantize_rows().
struct Qkv {
  torch::Tensor q, k, v;
  Shape shape() const { return {q.size(0), q.size(1), q.size(2), k.size(2)}; }
  int64_t Dv() const { return features_of(v); }
};

/// The same of numbers in q's dtype: k and v dequantized if they are quantized.
inline Qkv dequantized(const Qkv& t) {
  const auto dtype = t.q.scalar_type();
  return {t.q, dequantized(t.k, dtype), dequantized(t.v, dtype)};
}

/// What becomes of q, k and v.
struct Rule {
  AnyMask mask = {};
  AnyScore score = {};
  double scale = 1.0;
  Dropout dropout = {};
  bool wide = false;  // the output is not rounded to q's dtype: it goes on to be computed with
  bool stick_breaking = false;  // weights are broken_stick(), not masked_softmax()

  torch::ScalarType output_dtype(const torch::Tensor& q) const {
    return wide ? compute_dtype(q) : q.scalar_type();
  }
};

struct OutputAndLse {
  torch::Tensor output, lse;   // [B, H, L, Dv] in q's dtype, [B, H, L] in the compute dtype
  torch::Tensor softmax = {};  // what a backend keeps of it for its backward pass
};

struct ReferenceWeights {
  torch::Tensor weights, lse;  // [B, H, rows, columns], [B, H, rows]; compute dtype
  torch::Tensor visible;       // [B, H, rows, columns]: allowed, and no score of -inf
};

/// 1 / (1 - p) where a weight is kept and 0 where it is dropped, [B, H, rows, columns].
ATTZOO_API torch::Tensor dropout_factor(const Dropout& dropout, const Grid& g,
                                        torch::ScalarType dtype);

/// Softmax over the allowed keys of scores [B, H, rows, columns].
ATTZOO_API ReferenceWeights masked_softmax(const torch::Tensor& scores,
                                           const torch::Tensor& allowed);

/// Every allowed key, from the last one back to the first, takes the share sigmoid(score) of what
/// those behind it have left. lse is the log of what all of them leave.
ATTZOO_API ReferenceWeights broken_stick(const torch::Tensor& scores, const torch::Tensor& allowed);

/// The weights, after dropout, of a part of the grid: q [B, H, rows, D], k [B, Hkv, columns, D].
ATTZOO_API ReferenceWeights grid_weights(const Grid& grid, const torch::Tensor& q,
                                         const torch::Tensor& k, const Rule& rule);

/// weights times v [B, Hkv, columns, Dv], in the compute dtype.
ATTZOO_API torch::Tensor weighted_values(const ReferenceWeights& r, const torch::Tensor& v);

/// The weights of the queries [begin, end) over all keys.
ATTZOO_API ReferenceWeights reference_weights(const torch::Tensor& q, const torch::Tensor& k,
                                              const Rule& rule, int64_t begin, int64_t end);

/// The whole problem.
ATTZOO_API OutputAndLse reference(const Qkv& t, const Rule& rule);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/modifier/tensor_lane.hpp>
#include <attzoo/core/pair_products.hpp>
#include <attzoo/kernel/dropout.hpp>

#include <ATen/CPUGeneratorImpl.h>

#include <limits>
#include <mutex>

namespace attzoo::core {

ATTZOO_API uint64_t random_seed() {
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard<std::mutex> lock(generator.mutex());
  return generator.get<at::CPUGeneratorImpl>()->random64();
}

ATTZOO_API torch::Tensor dropout_factor(const Dropout& dropout, const Grid& g,
                                        torch::ScalarType dtype) {
  const auto row = kernel::dropout_row_key<TensorLane>(dropout.seed, g.b, g.h, g.q);
  const auto bits = kernel::dropout_bits<TensorLane>(row, g.kv);
  const auto keep = bits >= kernel::dropout_threshold(dropout.p);
  return keep.t.to(dtype) / (dropout.p < 1 ? 1 - dropout.p : 1);  // 1: none is kept
}

ATTZOO_API ReferenceWeights masked_softmax(const torch::Tensor& scores,
                                           const torch::Tensor& allowed) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const auto hidden = torch::logical_or(allowed.logical_not(), scores == -kInf);
  const auto masked = scores.masked_fill(hidden, -kInf);
  // A row with nothing to attend has the maximum -inf: shift it by 0 and divide it by 1, so that
  // its weights are 0 and no gradient meets inf - inf.
  auto max = masked.size(-1) > 0
                 ? masked.detach().amax(-1, /*keepdim=*/true)
                 : masked.new_full({masked.size(0), masked.size(1), masked.size(2), 1}, -kInf);
  max = max.masked_fill(max == -kInf, 0.0);
  const auto weights = torch::exp(masked - max);
  auto sum = weights.sum(-1, /*keepdim=*/true);
  const auto empty = sum == 0;
  sum = sum.masked_fill(empty, 1.0);
  // Filled, although 0 already: whatever the cotangent of such a row is, NaN included, ends here.
  return {(weights / sum).masked_fill_(empty, 0.0),
          (torch::log(sum) + max).masked_fill(empty, -kInf).squeeze(-1), hidden.logical_not()};
}

ATTZOO_API ReferenceWeights broken_stick(const torch::Tensor& scores,
                                         const torch::Tensor& allowed) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const auto hidden = torch::logical_or(allowed.logical_not(), scores == -kInf);
  const auto masked = scores.masked_fill(hidden, 0.0);
  const auto left = torch::log_sigmoid(-masked).masked_fill(hidden, 0.0);  // of the stick, logs
  // Of the keys behind each: a sum without its own, from which nothing must be taken away again.
  const auto from_here = left.flip(-1).cumsum(-1).flip(-1);
  const auto behind =
      torch::cat({from_here.slice(-1, 1), torch::zeros_like(from_here.slice(-1, 0, 1))}, -1);
  return {torch::exp(torch::log_sigmoid(masked) + behind).masked_fill(hidden, 0.0), left.sum(-1),
          hidden.logical_not()};
}

ATTZOO_API torch::Tensor weighted_values(const ReferenceWeights& r, const torch::Tensor& v) {
  return sum_over_pairs(r.weights, v.to(r.weights.scalar_type()), r.visible);
}

ATTZOO_API ReferenceWeights grid_weights(const Grid& grid, const torch::Tensor& q,
                                         const torch::Tensor& k, const Rule& rule) {
  const auto dtype = compute_dtype(q);
  const auto allowed = rule.mask.evaluate(grid);
  const auto scores = pair_products(q.to(dtype), k.to(dtype), allowed) * rule.scale;
  const auto normalised = [&](const torch::Tensor& s) {
    return rule.stick_breaking ? broken_stick(s, allowed) : masked_softmax(s, allowed);
  };
  auto at = grid;
  if (torch::GradMode::is_enabled() && !rule.score.is_identity()) {
    torch::NoGradGuard no_grad;
    const auto r = normalised(rule.score.evaluate(scores, grid));
    at.without_weight = rule.stick_breaking ? r.visible.logical_not() : r.weights == 0;
  }
  // Counted on the way in and on the way out, so that nothing but finite numbers, of derivatives of
  // any order, leaves the modifier.
  const auto modified = at.counted(rule.score.evaluate(at.counted(scores), at));
  auto result = normalised(modified);
  if (rule.dropout.p > 0) {
    result.weights = result.weights * dropout_factor(rule.dropout, grid, dtype);
  }
  return result;
}

ATTZOO_API ReferenceWeights reference_weights(const torch::Tensor& q, const torch::Tensor& k,
                                              const Rule& rule, int64_t begin, int64_t end) {
  const Grid grid({q.size(0), q.size(1), q.size(2), k.size(2)}, begin, end, q.device());
  return grid_weights(grid, q.slice(2, begin, end), k, rule);
}

ATTZOO_API OutputAndLse reference(const Qkv& t, const Rule& rule) {
  const auto r = reference_weights(t.q, t.k, rule, 0, t.q.size(2));
  return {weighted_values(r, t.v).to(rule.output_dtype(t.q)), r.lse};
}

}  // namespace attzoo::core

#endif
