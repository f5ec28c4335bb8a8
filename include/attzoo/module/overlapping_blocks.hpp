#pragma once
/// \file
/// Blocks of tokens that overlap: which there are, and what share each has in the result of a
/// token.

#include <attzoo/module/parts.hpp>

#include <utility>
#include <vector>

namespace attzoo::core {

/// The overlapping blocks of n tokens, in `families` of blocks that do not touch each other: block
/// k starts at k * step and belongs to family k mod families.
struct OverlappingBlocks {
  int64_t n, size, step, families, count;

  /// block_size is at most the longest length that occurs, and > 0.
  ATTZOO_API OverlappingBlocks(int64_t length, int64_t block_size);

  /// Who attends to whom within the blocks of family f.
  ATTZOO_API BlocksMask family(int64_t f) const;

  /// For every family the share of the block that holds token i, 0 where none does: [families, n],
  /// float64. By the distance to the nearer end of the block, and 1 in all.
  ATTZOO_API torch::Tensor shares() const;
  /// The shares of the Python library: each later block takes a part of the result and leaves the
  /// rest of what was there, even if nothing was.
  ATTZOO_API torch::Tensor python_shares() const;

  /// Of every pair in the rows [begin, end), the last block of family f that holds both tokens, -1
  /// where none does: [1, 1, rows, n].
  ATTZOO_API torch::Tensor block_of(int64_t f, int64_t begin, int64_t end) const;
  /// The weights of the last block that holds both tokens of a pair, as the Python library returns
  /// them; `weights` are those of the families.
  ATTZOO_API LazyWeights last_block_wins(const std::vector<LazyWeights>& weights) const;
};

/// The same in a packed batch, where blocks begin anew in every document.
struct PackedBlocks {
  OverlappingBlocks whole;  // of a document as long as the row
  torch::Tensor count;      // of the blocks of each token's document: [R, S]
  torch::Tensor shares;     // [families, R, 1, S], float64

  ATTZOO_API PackedBlocks(const Packing& packing, int64_t length, int64_t block_size);

  /// Heads whose documents are the blocks of family f; and the tokens that lie in one, [R, S].
  ATTZOO_API std::pair<Heads, torch::Tensor> family(Heads heads, int64_t f) const;
};

/// Heads whose documents are the blocks of the documents that they have.
ATTZOO_API Heads block_by_block(Heads heads, int64_t block_size);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/module/overlapping_blocks.ipp>
#endif
