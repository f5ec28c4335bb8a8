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

namespace attzoo::core {

/// Dropout of attention weights: probability and the seed that decides which ones.
struct Dropout {
  double p = 0.0;
  uint64_t seed = 0;
};

/// A seed drawn from torch's CPU generator, so that torch::manual_seed makes it repeatable.
ATTZOO_API uint64_t random_seed();

/// q [B, H, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv].
struct Qkv {
  torch::Tensor q, k, v;
  Shape shape() const { return {q.size(0), q.size(1), q.size(2), k.size(2)}; }
};

/// What becomes of q, k and v.
struct Rule {
  AnyMask mask = {};
  AnyScore score = {};
  double scale = 1.0;
  Dropout dropout = {};
  bool wide = false;  // the output is not rounded to q's dtype: it goes on to be computed with

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

#ifndef ATTZOO_COMPILED
#include <attzoo/core/attention/reference.ipp>
#endif
