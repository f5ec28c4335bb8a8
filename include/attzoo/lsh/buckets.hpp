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

/// Rows of t [B, H, n, features] in the order [B, H, n].
ATTZOO_API torch::Tensor permute_rows(const torch::Tensor& t, const torch::Tensor& order);

/// Queries and keys sorted by bucket, and within a bucket by position: order_*[.., r] is the token
/// of rank r, rank_q[.., i] the rank of query i.
struct Buckets {
  torch::Tensor order_q, order_k, rank_q, rank_k;
  BandMask band;  // over ranks

  /// ids int64 [B, H, L] and [B, H, S], the last query aligned with the last key. A query attends
  /// to the keys of its bucket: all, or those at most `reach` away in the order; if causal, to
  /// earlier ones only, at most 2 * reach back. Negative ids of keys are in no bucket.
  Buckets(const torch::Tensor& id_q, const torch::Tensor& id_k, bool causal, int64_t reach);
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <ATen/ops/argmax.h>
#include <ATen/ops/searchsorted.h>

#include <algorithm>
#include <optional>
#include <tuple>

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

ATTZOO_API torch::Tensor permute_rows(const torch::Tensor& t, const torch::Tensor& order) {
  return t.gather(2, order.unsqueeze(-1).expand({-1, -1, -1, t.size(3)}));
}

ATTZOO_API Buckets::Buckets(const torch::Tensor& id_q, const torch::Tensor& id_k, bool causal,
                            int64_t reach) {
  const int64_t L = id_q.size(2), S = id_k.size(2), places = S + 1;
  reach = std::min(reach, S);
  const auto place = torch::arange(S, id_k.options());
  const auto place_q = (torch::arange(L, id_q.options()) + (S - L)).clamp_min(-1) + 1;
  // One number for bucket and place: sorting it is a stable sort by bucket, and counting the keys
  // below a number is a binary search.
  const auto code_k = id_k * places + place + 1;
  const auto code_q = id_q * places + place_q;
  torch::Tensor sorted_k, sorted_q;
  std::tie(sorted_k, order_k) = code_k.sort(-1);
  // Two early queries may share the place before the first key.
  std::tie(sorted_q, order_q) =
      torch::sort(code_q, /*stable=*/std::optional<bool>(true), -1, false);
  rank_k = std::get<1>(order_k.sort(-1));
  rank_q = std::get<1>(order_q.sort(-1));
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
