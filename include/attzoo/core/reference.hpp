#pragma once
/// \file
/// The eager reference: attention by its definition, everything materialised, differentiable any
/// number of times, on any device. Every fused path is tested against it.
///
///   scores  = score_mod(scale * q k^T)      -inf where the mask forbids
///   weights = softmax(scores)               0 where nothing may be attended
///   output  = dropout(weights) v            lse = log(sum(exp(scores)))

#include <attzoo/core/score_modifiers.hpp>
#include <attzoo/kernel/dropout.hpp>

#include <cmath>
#include <limits>

namespace attzoo::core {

/// Dropout of attention weights: probability and the seed that decides which ones.
struct Dropout {
  double p = 0.0;
  uint64_t seed = 0;
};

/// 1 / (1 - p) where a weight is kept and 0 where it is dropped, [B, H, rows, S].
inline torch::Tensor dropout_factor(const Dropout& dropout, const Grid& g,
                                    torch::ScalarType dtype) {
  const auto row = kernel::dropout_row_key<TensorLane>(dropout.seed, g.b, g.h, g.q);
  const auto bits = kernel::dropout_bits<TensorLane>(row, g.kv);
  const auto keep = bits >= kernel::dropout_threshold(dropout.p);
  return keep.t.to(dtype) / std::max(1.0 - dropout.p, std::numeric_limits<double>::min());
}

/// a [B, H, M, K] times b [B, Hkv, K, N], where heads of a share heads of b in groups of H / Hkv:
/// the group is folded into the rows, so that b is never repeated in memory.
inline torch::Tensor grouped_matmul(const torch::Tensor& a, const torch::Tensor& b) {
  if (a.size(1) == b.size(1)) return torch::matmul(a, b);
  const int64_t group = a.size(1) / b.size(1);
  const auto rows = a.reshape({a.size(0), b.size(1), group * a.size(2), a.size(3)});
  return torch::matmul(rows, b).view({a.size(0), a.size(1), a.size(2), b.size(3)});
}

/// Half types are computed in float32, as ATen does, and rounded once at the end.
inline torch::ScalarType compute_dtype(const torch::Tensor& t) {
  return t.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
}

struct ReferenceWeights {
  torch::Tensor weights, lse;  // [B, H, rows, S], [B, H, rows]; compute dtype
};

/// Softmax over the allowed keys of scores [B, H, rows, S].
inline ReferenceWeights masked_softmax(const torch::Tensor& scores, const torch::Tensor& allowed) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const auto masked = scores.masked_fill(allowed.logical_not(), -kInf);
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
          (torch::log(sum) + max).masked_fill(empty, -kInf).squeeze(-1)};
}

/// weights times v [B, Hkv, S, Dv], in the compute dtype. As above, the cotangent of a row without
/// keys goes no further: 0 times NaN would reach every row of v.
inline torch::Tensor weighted_values(const ReferenceWeights& r, const torch::Tensor& v) {
  const auto empty = r.lse == -std::numeric_limits<double>::infinity();
  return grouped_matmul(r.weights, v.to(r.weights.scalar_type()))
      .masked_fill(empty.unsqueeze(-1), 0.0);
}

/// The weights, after dropout, of the query rows of a grid: q_rows [B, H, rows, D], k [B, Hkv, S,
/// D].
template <MaskMod Mask, ScoreMod Score>
ReferenceWeights grid_weights(const Grid& grid, const torch::Tensor& q_rows, const torch::Tensor& k,
                              const Mask& mask, const Score& score, double scale,
                              const Dropout& dropout) {
  const auto dtype = compute_dtype(q_rows);
  const auto scores = grouped_matmul(q_rows.to(dtype), k.to(dtype).transpose(-2, -1));
  auto result = masked_softmax(score.evaluate(scores * scale, grid), mask.evaluate(grid));
  if (dropout.p > 0) result.weights = result.weights * dropout_factor(dropout, grid, dtype);
  return result;
}

/// The same for the rows [begin, end) of q [B, H, L, D].
template <MaskMod Mask, ScoreMod Score>
ReferenceWeights reference_weights(const torch::Tensor& q, const torch::Tensor& k, const Mask& mask,
                                   const Score& score, double scale, const Dropout& dropout,
                                   int64_t begin, int64_t end) {
  const Grid grid({q.size(0), q.size(1), q.size(2), k.size(2)}, begin, end, q.device());
  return grid_weights(grid, q.slice(2, begin, end), k, mask, score, scale, dropout);
}

struct OutputAndLse {
  torch::Tensor output, lse;  // [B, H, L, Dv] in q's dtype, [B, H, L] in the compute dtype
};

/// The whole problem: q [B, H, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv].
template <MaskMod Mask, ScoreMod Score>
OutputAndLse reference(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                       const Mask& mask, const Score& score, double scale, const Dropout& dropout) {
  const auto r = reference_weights(q, k, mask, score, scale, dropout, 0, q.size(2));
  return {weighted_values(r, v).to(q.scalar_type()), r.lse};
}

}  // namespace attzoo::core
