#pragma once
/// \file
/// Linear attention without softmax: sums of (q_i . k_j) v_j over all keys, or over the earlier
/// ones, by the best way that the device has. The sums grow with the length, beyond float16's
/// 65504: callers pass float32 or float64.

#include <attzoo/core/documents.hpp>
#include <attzoo/core/recurrence/backend.hpp>

#include <torch/types.h>

#include <cstdint>

namespace attzoo {

/// All that causal linear attention needs of the tokens before: sums over their features k_j and
/// values v_j, float32 or float64. Default: no tokens yet.
struct LinearState {
  torch::Tensor kv = {};  ///< sum of k_j v_j^T, [B, H, F, E]
  torch::Tensor k = {};   ///< sum of k_j, [B, H, F]
};

}  // namespace attzoo

namespace attzoo::core {

/// Runs a recurrence by the best way that its device has. Differentiable any number of times, every
/// derivative fused. The state behind the last token is undefined unless it is asked for.
ATTZOO_API Recurred recur(const Recurrence& x, bool with_state = false);

/// S = q k^T of the query rows [begin, end), 0 for pairs that do not attend: later keys if causal,
/// which aligns the last query with the last key, and other documents where `run` [1 or B, S] is
/// defined. q [B, H, L, F], k [B, H, S, F] -> [B, H, end - begin, S].
ATTZOO_API torch::Tensor linear_scores(const torch::Tensor& q, const torch::Tensor& k, bool causal,
                                       const torch::Tensor& run, int64_t begin, int64_t end);

/// What each query collects, without dividing: values sum over j of S_ij v_j [B, H, L, E] and
/// normaliser sum over j of S_ij [B, H, L].
struct LinearSums {
  torch::Tensor values, normalizer;
};

/// q [B, H, L, F], k [B, H, S, F], v [B, H, S, E]. Causal aligns the last query with the last key.
/// Where `packing` is defined, L = S, within every document, one after another. By definition,
/// n x n, while eager_reference() holds.
ATTZOO_API LinearSums linear_sums(const torch::Tensor& q, const torch::Tensor& k,
                                  const torch::Tensor& v, bool causal, const Packing& packing);

/// The same causal sums behind the tokens of `before`, over these too.
ATTZOO_API LinearSums linear_sums_after(const LinearState& before, const torch::Tensor& q,
                                        const torch::Tensor& k, const torch::Tensor& v);

/// The state behind tokens k [B, H, n, F] and v [B, H, n, E] that come after `before`.
ATTZOO_API LinearState state_after(const LinearState& before, const torch::Tensor& k,
                                   const torch::Tensor& v);

/// Both, for queries of the tokens themselves, L = S: `state` moves on.
ATTZOO_API LinearSums go_on(LinearState& state, const torch::Tensor& q, const torch::Tensor& k,
                            const torch::Tensor& v);

/// Makes zeros of the keys and values of tokens that are not real, whatever they hold; real
/// [1 or B, S].
ATTZOO_API void leave_out(const torch::Tensor& real, torch::Tensor& k, torch::Tensor& v);

/// t / (normalizer + eps), 0 where that would divide by 0; gradients stay finite.
ATTZOO_API torch::Tensor over_normalizer(const torch::Tensor& t, const torch::Tensor& normalizer,
                                         double eps);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/recurrence/linear_attention.ipp>
#endif
