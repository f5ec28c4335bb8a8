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

#ifdef ATTZOO_DEFINE_MODULE

#include <algorithm>

namespace attzoo::core {

ATTZOO_API BucketCache::BucketCache(const CacheHead& head, int64_t heads, int64_t d_head,
                                    std::vector<torch::Tensor> projections, int64_t buckets)
    : KvCache(head, {heads, d_head, d_head}, {}, /*globals=*/false),
      projections_(std::move(projections)) {
  const auto rounds = static_cast<int64_t>(projections_.size());
  const auto none = [&](int64_t n) {
    return torch::full({rounds, head.batch, heads, n}, -1, torch::kInt32);
  };
  newest_ = none(buckets);
  before_ = none(head.capacity);
  bucket_ = none(head.capacity);
}

ATTZOO_API torch::Tensor BucketCache::enter(int64_t begin, const torch::Tensor& bucket,
                                            int64_t most) {
  const auto of_new = bucket.to(torch::kCPU).contiguous();
  const int64_t L = bucket.size(3), chains = bucket.numel() / L, capacity = before_.size(3);
  const auto* b = of_new.const_data_ptr<int64_t>();
  auto* newest = newest_.mutable_data_ptr<int32_t>();
  auto* before = before_.mutable_data_ptr<int32_t>();
  auto* of = bucket_.mutable_data_ptr<int32_t>();
  int64_t longest = 0;
  const auto walk = [&](int64_t chain, int64_t i, auto&& visit) {  // how many it has visited
    int64_t n = 0, token = b[chain * L + i] < 0 ? -1 : begin + i;
    for (; token >= 0 && n < most; token = before[chain * capacity + token]) visit(n++, token);
    return n;
  };
  for (int64_t chain = 0; chain < chains; ++chain) {
    for (int64_t i = 0; i < L; ++i) {
      const auto id = static_cast<int32_t>(b[chain * L + i]);
      const int64_t at = chain * capacity + begin + i;
      of[at] = id;
      before[at] = -1;
      if (id < 0) continue;
      auto& latest = newest[chain * buckets() + id];
      before[at] = latest;
      latest = static_cast<int32_t>(begin + i);
      longest = std::max(longest, walk(chain, i, [](int64_t, int64_t) {}));
    }
  }
  auto sizes = bucket.sizes().vec();
  sizes.push_back(longest);
  const auto tokens = torch::full(sizes, -1, torch::kInt64);
  auto* out = tokens.mutable_data_ptr<int64_t>();
  for (int64_t row = 0; row < chains * L; ++row) {
    walk(row / L, row % L, [&](int64_t n, int64_t token) { out[row * longest + n] = token; });
  }
  return tokens.to(bucket.device());
}

ATTZOO_API int64_t BucketCache::bytes() const {
  int64_t bytes = KvCache::bytes();
  for (const auto* t : {&newest_, &before_, &bucket_}) bytes += static_cast<int64_t>(t->nbytes());
  for (const auto& p : projections_) bytes += static_cast<int64_t>(p.nbytes());
  return bytes;
}

ATTZOO_API void BucketCache::truncate(int64_t n) {
  const int64_t capacity = before_.size(3), chains = before_.numel() / capacity;
  auto* newest = newest_.mutable_data_ptr<int32_t>();
  const auto* before = before_.const_data_ptr<int32_t>();
  const auto* of = bucket_.const_data_ptr<int32_t>();
  for (int64_t chain = 0; chain < chains; ++chain) {
    for (int64_t token = length() - 1; token >= n; --token) {
      const int64_t at = chain * capacity + token;
      if (of[at] >= 0) newest[chain * buckets() + of[at]] = before[at];
    }
  }
  KvCache::truncate(n);
}

ATTZOO_API void BucketCache::reorder(const torch::Tensor& order) {
  const auto on_cpu = order.to(torch::kCPU);
  for (auto* t : {&newest_, &before_, &bucket_}) *t = t->index_select(1, on_cpu);
  KvCache::reorder(order);
}

ATTZOO_API std::shared_ptr<CacheState> BucketCache::clone() const {
  auto copy = std::make_shared<BucketCache>(*this);
  copy->copy_rows();
  for (auto* t : {&copy->newest_, &copy->before_, &copy->bucket_}) *t = t->clone();
  return copy;
}

}  // namespace attzoo::core

#endif
