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

#ifndef ATTZOO_COMPILED
#include <attzoo/lsh/buckets.ipp>
#endif
