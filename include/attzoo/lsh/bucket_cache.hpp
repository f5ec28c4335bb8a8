#pragma once
/// \file
/// The cache of a mechanism that attends within buckets.

#include <attzoo/module/token_cache.hpp>

#include <vector>

namespace attzoo::core {

/// Keys and values of all tokens, and for every round of hashing chains from each token to the one
/// before it in its bucket, so that the latest of a bucket are found without looking at others.
class BucketCache final : public KvCache {
 public:
  /// `projections`: one for each round, in the cache's dtype.
  ATTZOO_API BucketCache(const CacheHead& head, int64_t heads, int64_t d_head,
                         std::vector<torch::Tensor> projections, int64_t buckets);

  const std::vector<torch::Tensor>& projections() const { return projections_; }
  int64_t buckets() const { return newest_.size(3); }
  /// The tokens [begin, begin + L), in buckets int64 [rounds, B, H, L], negative: in none. Gives of
  /// each the `most` latest tokens of its bucket up to itself, int64 [rounds, B, H, L, M] with -1
  /// where there are fewer.
  ATTZOO_API torch::Tensor enter(int64_t begin, const torch::Tensor& bucket, int64_t most);

  ATTZOO_API int64_t bytes() const override;
  ATTZOO_API void truncate(int64_t n) override;
  ATTZOO_API void reorder(const torch::Tensor& order) override;
  ATTZOO_API std::shared_ptr<CacheState> clone() const override;

 private:
  std::vector<torch::Tensor> projections_;
  // int32 on the CPU: [rounds, B, H, buckets] the newest token of each bucket; [rounds, B, H,
  // capacity] the token before each in its bucket, and that bucket. -1: none.
  torch::Tensor newest_, before_, bucket_;
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/lsh/bucket_cache.ipp>
#endif
