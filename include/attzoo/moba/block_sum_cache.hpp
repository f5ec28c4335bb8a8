#pragma once
/// \file
/// The cache of a mechanism that chooses blocks by the means of their keys.

#include <attzoo/module/token_blocks.hpp>
#include <attzoo/module/token_cache.hpp>

namespace attzoo::core {

/// Sums of the keys of every block: k [B, H, S, D] -> [B, H, count, D].
ATTZOO_API torch::Tensor sum_blocks(const TokenBlocks& blocks, const torch::Tensor& k);

/// Keys and values of all tokens, and the sums of the keys of each block, so that a step reads the
/// keys that it attends to alone.
class BlockSumCache final : public KvCache {
 public:
  BlockSumCache(const CacheHead& head, int64_t heads, int64_t d_head, int64_t block_size)
      : KvCache(head, {heads, d_head, d_head}, {}, /*globals=*/false), block_size_(block_size) {}

  int64_t block_size() const { return block_size_; }
  /// sum_blocks() of its keys k, where those added before are not read again.
  ATTZOO_API torch::Tensor sums(const TokenBlocks& blocks, const torch::Tensor& k);

  ATTZOO_API int64_t bytes() const override;
  ATTZOO_API void truncate(int64_t n) override;
  ATTZOO_API void reorder(const torch::Tensor& order) override;
  ATTZOO_API std::shared_ptr<CacheState> clone() const override;

 private:
  int64_t block_size_, known_ = 0;
  torch::Tensor sums_;  // of the first known_ keys; undefined: of none
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/checks.hpp>

namespace attzoo::core {

/// Adds the keys k, the last of them of_keys().
inline torch::Tensor add_blocks(const torch::Tensor& sums, const TokenBlocks& blocks,
                                const torch::Tensor& k) {
  const auto block = blocks.of_keys().slice(1, blocks.of_keys().size(1) - k.size(2));
  const auto index = block.unsqueeze(1).unsqueeze(-1).expand(k.sizes());
  const auto wide = torch::constant_pad_nd(sums, {0, 0, 0, blocks.count() + 1 - sums.size(2)}, 0);
  return wide.scatter_add(2, index, k.to(sums.scalar_type())).slice(2, 0, blocks.count());
}

ATTZOO_API torch::Tensor sum_blocks(const TokenBlocks& blocks, const torch::Tensor& k) {
  const auto none =
      torch::zeros({k.size(0), k.size(1), 0, k.size(3)}, k.options().dtype(compute_dtype(k)));
  return add_blocks(none, blocks, k);
}

ATTZOO_API torch::Tensor BlockSumCache::sums(const TokenBlocks& blocks, const torch::Tensor& k) {
  const auto more = dequantized(k.slice(2, sums_.defined() ? known_ : 0), torch::kFloat32);
  sums_ = sums_.defined() ? add_blocks(sums_, blocks, more) : sum_blocks(blocks, more);
  known_ = k.size(2);
  return sums_;
}

ATTZOO_API int64_t BlockSumCache::bytes() const {
  return KvCache::bytes() + (sums_.defined() ? static_cast<int64_t>(sums_.nbytes()) : 0);
}

ATTZOO_API void BlockSumCache::truncate(int64_t n) {
  sums_ = torch::Tensor();
  KvCache::truncate(n);
}

ATTZOO_API void BlockSumCache::reorder(const torch::Tensor& order) {
  if (sums_.defined()) sums_ = sums_.index_select(0, order);
  KvCache::reorder(order);
}

// Sums are never written to.
ATTZOO_API std::shared_ptr<CacheState> BlockSumCache::clone() const {
  auto copy = std::make_shared<BlockSumCache>(*this);
  copy->copy_rows();
  return copy;
}

}  // namespace attzoo::core

#endif
