#pragma once
/// \file
/// Locality sensitive buckets: tokens sorted by hash, and the interval of sorted keys that each
/// sorted query attends to.

#include <attzoo/config.hpp>
#include <attzoo/core/modifier/mask_values.hpp>

namespace attzoo::core {

/// The bucket of every vector: t [B, H, n, D], projection [H, D, columns] -> int64 [B, H, n]. A
/// vector goes to the column with the largest product; `factors` = 2 takes two halves of the
/// columns for two digits of the number, so that hashing into c^2 buckets costs 2 c products.
ATTZOO_API torch::Tensor bucket_ids(const torch::Tensor& t, const torch::Tensor& projection,
                                    int64_t factors);

/// An order of the rows of each head, [B, H, n], and where each has gone: its inverse.
struct Permutation {
  torch::Tensor order, rank;
  Permutation inverse() const { return {rank, order}; }
};

/// Rows of t [B, H, n, features] in an order; the gradient's rows go back by its inverse.
ATTZOO_API torch::Tensor permute_rows(const torch::Tensor& t, const Permutation& by);

/// Queries and keys sorted by bucket, and within a bucket by position: order[.., r] is the token of
/// rank r, rank[.., i] the rank of token i.
struct Buckets {
  Permutation q, k;
  BandMask band;  // over ranks

  /// ids int64 [B, H, L] and [B, H, S], the last query aligned with the last key. A query attends
  /// to the keys of its bucket: all, or those at most `reach` away in the order; if causal, to
  /// earlier ones only, at most 2 * reach back. Negative ids of keys are in no bucket.
  Buckets(const torch::Tensor& id_q, const torch::Tensor& id_k, bool causal, int64_t reach);
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/autograd.hpp>
#include <attzoo/core/row_lists.hpp>

#include <ATen/ops/argmax.h>
#include <ATen/ops/searchsorted.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

namespace attzoo::core {

ATTZOO_API torch::Tensor bucket_ids(const torch::Tensor& t, const torch::Tensor& projection,
                                    int64_t factors) {
  const auto products = torch::matmul(t.detach(), projection.to(t.dtype()).to(t.device()));
  const int64_t base = projection.size(2) / factors;
  auto id = products.narrow(-1, 0, base).argmax(-1);
  for (int64_t f = 1; f < factors; ++f) {
    id = id * base + products.narrow(-1, f * base, base).argmax(-1);
  }
  return id;
}

class PermutedRows final : public Differentiable {
 public:
  explicit PermutedRows(Permutation by) : by_(std::move(by)) {}
  Tensors forward(const Tensors& x) override {
    return {take_rows(x[0], by_.order.unsqueeze(2)).squeeze(2)};
  }
  Tensors backward(const Tensors&, const Tensors& grads) override {
    return {permute_rows(grads[0], by_.inverse())};
  }
  bool saves_inputs() const override { return false; }

 private:
  Permutation by_;
};

ATTZOO_API torch::Tensor permute_rows(const torch::Tensor& t, const Permutation& by) {
  return differentiable(c10::make_intrusive<PermutedRows>(by), {t})[0];
}

/// The order that sorts codes, and the sorted codes.
ATTZOO_API std::pair<Permutation, torch::Tensor> sorting(const torch::Tensor& code) {
  const auto [sorted, order] = torch::sort(code, /*stable=*/std::optional<bool>(true), -1, false);
  const auto rank = torch::empty_like(order).scatter_(
      -1, order, torch::arange(code.size(-1), order.options()).expand_as(order));
  return {{order, rank}, sorted};
}

ATTZOO_API Buckets::Buckets(const torch::Tensor& id_q, const torch::Tensor& id_k, bool causal,
                            int64_t reach) {
  const int64_t L = id_q.size(2), S = id_k.size(2), places = S + 1;
  reach = std::min(reach, S);
  const auto place = torch::arange(S, id_k.options());
  const auto place_q = (torch::arange(L, id_q.options()) + (S - L)).clamp_min(-1) + 1;
  // One number for bucket and place, so that counting the keys below a number is a binary search.
  // Two early queries may share the place before the first key.
  torch::Tensor sorted_k, sorted_q;
  std::tie(k, sorted_k) = sorting(id_k * places + place + 1);
  if (L == S && id_q.is_same(id_k)) {
    q = k, sorted_q = sorted_k;
  } else {
    std::tie(q, sorted_q) = sorting(id_q * places + place_q);
  }
  const auto bucket = torch::div(sorted_q, places, "floor") * places;
  const auto count_below = [&](const torch::Tensor& code) {
    return torch::searchsorted(sorted_k, code.contiguous(), false, /*right=*/true);
  };
  const auto first = count_below(bucket), last = count_below(bucket + S);
  const auto here = count_below(sorted_q);  // keys of the bucket up to the query, and all before
  const auto begin = torch::maximum(first, here - (causal ? 2 * reach : reach));
  const auto end = causal ? here : torch::minimum(last, here + reach);
  band = {begin.to(torch::kInt32).contiguous(), end.to(torch::kInt32).contiguous()};
}

}  // namespace attzoo::core

#endif
