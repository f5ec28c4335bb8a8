#pragma once
/// \file
/// Linear attention without softmax: sums of (q_i . k_j) v_j over all keys, or over the earlier
/// ones, by the best way that the device has. The sums grow with the length, beyond float16's
/// 65504: callers pass float32 or float64.

#include <attzoo/core/documents.hpp>

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

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/checks.hpp>
#include <attzoo/core/choose.hpp>
#include <attzoo/core/pair_products.hpp>
#include <attzoo/core/recurrence/recur.hpp>

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>
#include <vector>

namespace attzoo::core {

/// Which pairs of the query rows [begin, end) attend: bool [1 or B, 1, end - begin, S].
ATTZOO_API torch::Tensor linear_pairs(const torch::Tensor& q, const torch::Tensor& k, bool causal,
                                      const torch::Tensor& run, int64_t begin, int64_t end) {
  auto visible = torch::ones({1, 1, end - begin, k.size(2)}, q.options().dtype(torch::kBool));
  if (causal) visible = visible.tril(begin + k.size(2) - q.size(2));
  if (!run.defined()) return visible;
  const auto same = run.slice(1, begin, end).unsqueeze(2) == run.unsqueeze(1);
  return torch::logical_and(visible, same.unsqueeze(1));
}

ATTZOO_API torch::Tensor linear_scores(const torch::Tensor& q, const torch::Tensor& k, bool causal,
                                       const torch::Tensor& run, int64_t begin, int64_t end) {
  return pair_products(q.slice(2, begin, end), k, linear_pairs(q, k, causal, run, begin, end));
}

/// Everything n x n.
ATTZOO_API LinearSums sums_by_definition(const torch::Tensor& q, const torch::Tensor& k,
                                         const torch::Tensor& v, bool causal,
                                         const torch::Tensor& run) {
  const auto visible = linear_pairs(q, k, causal, run, 0, q.size(2));
  const auto s = pair_products(q, k, visible);
  return {sum_over_pairs(s, v, visible), s.sum(-1)};
}

/// Every query collects every key.
ATTZOO_API LinearSums sums_over_all(const torch::Tensor& q, const torch::Tensor& k,
                                    const torch::Tensor& v) {
  const auto keys = k.transpose(-2, -1);
  if (q.size(2) == 1) {  // as in decoding: two products with vectors
    const auto scores = torch::matmul(q, keys);
    return {torch::matmul(scores, v), scores.sum(-1)};
  }
  return {torch::matmul(q, torch::matmul(keys, v)),
          torch::matmul(q, k.sum(2).unsqueeze(-1)).squeeze(-1)};
}

/// v with a further column, whose sums are the normalisers.
inline torch::Tensor with_ones(const torch::Tensor& v) {
  const auto ones = torch::ones({}, v.options().requires_grad(false));
  return torch::cat({v, ones.expand({v.size(0), v.size(1), v.size(2), 1})}, -1);
}
inline LinearSums split_sums(const torch::Tensor& t) {
  const int64_t E = t.size(-1) - 1;
  return {t.narrow(-1, 0, E), t.select(-1, E)};
}

/// Of one document in each sequence.
ATTZOO_API LinearSums sums_of_sequences(const torch::Tensor& q, const torch::Tensor& k,
                                        const torch::Tensor& v, bool causal) {
  const int64_t extra = k.size(2) - q.size(2), from = std::max<int64_t>(extra, 0);
  if (!causal || (q.size(2) == 1 && extra >= 0)) return sums_over_all(q, k, v);
  const auto own_part = [&](const torch::Tensor& t) {
    // Where the first queries see nothing: keys of zeros before the first.
    return extra < 0 ? torch::constant_pad_nd(t, {0, 0, -extra, 0}) : t.slice(2, from);
  };
  const auto own_k = own_part(k), own_v = own_part(v);
  const auto own = split_sums(recur({.q = q, .k = own_k, .v = with_ones(own_v)}).out);
  if (extra <= 0) return own;
  const auto head = sums_over_all(q, k.slice(2, 0, extra), v.slice(2, 0, extra));
  return {own.values + head.values, own.normalizer + head.normalizer};
}

ATTZOO_API LinearSums linear_sums(const torch::Tensor& q, const torch::Tensor& k,
                                  const torch::Tensor& v, bool causal, const Packing& packing) {
  if (eager_reference()) return sums_by_definition(q, k, v, causal, packing.run);
  if (!packing.defined() || q.numel() == 0) return sums_of_sequences(q, k, v, causal);
  const auto sums = by_document(packing, {q, k, v}, [&](const std::vector<torch::Tensor>& own) {
    auto of_one = sums_of_sequences(own[0], own[1], own[2], causal);
    return std::vector<torch::Tensor>{std::move(of_one.values), std::move(of_one.normalizer)};
  });
  return {sums[0], sums[1]};
}

ATTZOO_API LinearSums linear_sums_after(const LinearState& before, const torch::Tensor& q,
                                        const torch::Tensor& k, const torch::Tensor& v) {
  const auto near = linear_sums(q, k, v, /*causal=*/true, {});
  if (!before.kv.defined()) return near;
  return {near.values + torch::matmul(q, before.kv),
          near.normalizer + torch::matmul(q, before.k.unsqueeze(-1)).squeeze(-1)};
}

ATTZOO_API LinearState state_after(const LinearState& before, const torch::Tensor& k,
                                   const torch::Tensor& v) {
  const LinearState more{torch::matmul(k.transpose(-2, -1), v), k.sum(2)};
  if (!before.kv.defined()) return more;
  return {before.kv + more.kv, before.k + more.k};
}

ATTZOO_API LinearSums go_on(LinearState& state, const torch::Tensor& q, const torch::Tensor& k,
                            const torch::Tensor& v) {
  if (eager_reference()) {
    auto sums = linear_sums_after(state, q, k, v);
    state = state_after(state, k, v);
    return sums;
  }
  const auto y = recur({.q = q, .k = k, .v = v, .state = state.kv});
  auto normalizer = q.size(2) == 1 ? torch::matmul(q, k.transpose(-2, -1)).squeeze(-1)
                                   : (q * k.cumsum(2)).sum(-1);
  auto keys = k.sum(2);
  if (state.k.defined()) {
    normalizer = normalizer + torch::matmul(q, state.k.unsqueeze(-1)).squeeze(-1);
    keys = state.k + keys;
  }
  state = {y.state, keys};
  return {y.out, normalizer};
}

ATTZOO_API void leave_out(const torch::Tensor& real, torch::Tensor& k, torch::Tensor& v) {
  const auto rows = real.unsqueeze(1).unsqueeze(-1);
  k = torch::where(rows, k, torch::zeros({}, k.options()));
  v = torch::where(rows, v, torch::zeros({}, v.options()));
}

ATTZOO_API torch::Tensor over_normalizer(const torch::Tensor& t, const torch::Tensor& normalizer,
                                         double eps) {
  const auto divisor = normalizer + eps;
  return t / divisor.masked_fill(divisor == 0, std::numeric_limits<double>::infinity());
}

}  // namespace attzoo::core

#endif
