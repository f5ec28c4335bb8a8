#pragma once
/// \file
/// The cache of a mechanism that chooses keys by an indexer.

#include <attzoo/module/token_cache.hpp>

namespace attzoo::core {

/// Keys and values of all tokens, and the indexer's keys.
class IndexCache final : public KvCache {
 public:
  /// No copies of heads: `index_dim` features of each token.
  ATTZOO_API IndexCache(const CacheHead& head, int64_t kv_heads, int64_t d_k, int64_t d_v,
                        int64_t index_dim);

  /// Takes the indexer's keys [B, 1, L, index_dim] of the next tokens and gives those of all.
  ATTZOO_API torch::Tensor append_index(const torch::Tensor& keys);

  ATTZOO_API int64_t bytes() const override;
  ATTZOO_API void truncate(int64_t n) override;
  ATTZOO_API void reorder(const torch::Tensor& order) override;
  ATTZOO_API std::shared_ptr<CacheState> clone() const override;

 private:
  RowBuffer index_;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

namespace attzoo::core {

ATTZOO_API IndexCache::IndexCache(const CacheHead& head, int64_t kv_heads, int64_t d_k, int64_t d_v,
                                  int64_t index_dim)
    : KvCache(head, {kv_heads, d_k, d_v}, {}, /*globals=*/false),
      index_({torch::empty({head.batch, 1, 0, index_dim},
                           torch::dtype(head.dtype).device(head.device))},
             head.capacity, {}) {}

ATTZOO_API torch::Tensor IndexCache::append_index(const torch::Tensor& keys) {
  return index_.append({keys}).rows[0];
}

ATTZOO_API int64_t IndexCache::bytes() const { return KvCache::bytes() + index_.bytes(); }

ATTZOO_API void IndexCache::truncate(int64_t n) {
  index_.truncate(n);
  KvCache::truncate(n);
}

ATTZOO_API void IndexCache::reorder(const torch::Tensor& order) {
  index_.reorder(order);
  KvCache::reorder(order);
}

ATTZOO_API std::shared_ptr<CacheState> IndexCache::clone() const {
  auto copy = std::make_shared<IndexCache>(*this);
  copy->copy_rows();
  copy->index_ = index_.clone();
  return copy;
}

}  // namespace attzoo::core

#endif
