#pragma once
/// \file
/// The cache of a mechanism that attends to blocks as wholes, too.

#include <attzoo/module/token_cache.hpp>

#include <utility>

namespace attzoo::core {

/// Keys and values of all tokens, and one of each complete block.
class BlockCache final : public KvCache {
 public:
  ATTZOO_API BlockCache(const CacheHead& head, int64_t kv_heads, int64_t d_head,
                        int64_t block_size);

  int64_t block_size() const { return block_size_; }
  /// Blocks whose keys and values it has.
  int64_t blocks() const { return blocks_.length(); }
  /// Takes those of further blocks [B, Hkv, count, d_head] and gives those of all.
  ATTZOO_API std::pair<torch::Tensor, torch::Tensor> append_blocks(const torch::Tensor& keys,
                                                                   const torch::Tensor& values);

  ATTZOO_API int64_t bytes() const override;
  ATTZOO_API void truncate(int64_t n) override;
  ATTZOO_API void reorder(const torch::Tensor& order) override;
  ATTZOO_API std::shared_ptr<CacheState> clone() const override;

 private:
  int64_t block_size_;
  RowBuffer blocks_;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <algorithm>

namespace attzoo::core {

ATTZOO_API BlockCache::BlockCache(const CacheHead& head, int64_t kv_heads, int64_t d_head,
                                  int64_t block_size)
    : KvCache(head, {kv_heads, d_head, d_head}, {}, /*globals=*/false),
      block_size_(block_size),
      blocks_({torch::empty({head.batch, kv_heads, 0, d_head},
                            torch::dtype(head.dtype).device(head.device)),
               torch::empty({head.batch, kv_heads, 0, d_head},
                            torch::dtype(head.dtype).device(head.device))},
              std::max<int64_t>(1, head.capacity / block_size), {}) {}

ATTZOO_API std::pair<torch::Tensor, torch::Tensor> BlockCache::append_blocks(
    const torch::Tensor& keys, const torch::Tensor& values) {
  if (keys.size(2) > 0) blocks_.append({keys, values});
  return {blocks_.rows(0), blocks_.rows(1)};
}

ATTZOO_API int64_t BlockCache::bytes() const { return KvCache::bytes() + blocks_.bytes(); }

ATTZOO_API void BlockCache::truncate(int64_t n) {
  blocks_.truncate(std::min(n / block_size_, blocks_.length()));
  KvCache::truncate(n);
}

ATTZOO_API void BlockCache::reorder(const torch::Tensor& order) {
  blocks_.reorder(order);
  KvCache::reorder(order);
}

ATTZOO_API std::shared_ptr<CacheState> BlockCache::clone() const {
  auto copy = std::make_shared<BlockCache>(*this);
  copy->copy_rows();
  copy->blocks_ = blocks_.clone();
  return copy;
}

}  // namespace attzoo::core

#endif
