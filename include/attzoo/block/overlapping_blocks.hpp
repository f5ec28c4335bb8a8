#pragma once
/// \file
/// Blocks of tokens: those of documents, and those that overlap.

#include <attzoo/core/modifier/any_mask.hpp>
#include <attzoo/functional/result.hpp>
#include <attzoo/module/heads.hpp>

#include <vector>

namespace attzoo::core {

/// Tokens attend within the blocks of sequences that begin anew: every document of a packed batch,
/// or the sequences in a cache behind their padding. `place` int64 [1 or B, S] is that of a token
/// in its sequence, `run` the number of the sequence in its row; undefined: one in each.
ATTZOO_API DocumentsMask blocks_of_places(const torch::Tensor& place, const torch::Tensor& run,
                                          int64_t block_size);

/// The overlapping blocks of a sequence, or of every document in it: block k starts at k * step and
/// belongs to family k mod families(). Blocks of one family do not touch each other.
class OverlappingBlocks {
 public:
  /// A sequence of `length` tokens. With `goes_on` it is not known where the last document will
  /// end: its blocks are those of one that goes on.
  OverlappingBlocks(int64_t length, int64_t block_size, const Packing& packing,
                    bool goes_on = false);
  /// The keys of a cache, of which the last L are the queries; they go on, too.
  OverlappingBlocks(const Past& past, int64_t L, int64_t block_size);

  int64_t families() const { return families_; }
  /// Blocks of one family begin so many tokens after each other.
  int64_t period() const { return families_ * step_; }
  static int64_t period_of(int64_t block_size) { return OverlappingBlocks(0, block_size).period(); }

  /// Who attends to whom within the blocks of family f, and so within documents.
  AnyMask family(int64_t f) const;

  /// The share of every family in the result of every query: of the block that holds it by the
  /// distance to its nearer end, and 1 in all. [families, 1 or B, 1, L].
  torch::Tensor shares() const;

  /// The shares of the Python library, without documents: each later block takes a part of the
  /// result and leaves the rest of what was there, even if nothing was.
  torch::Tensor python_shares() const;
  /// The weights of the last block that holds both tokens of a pair, as the Python library returns
  /// them; `parts` are the results of the families.
  LazyWeights last_block_wins(const std::vector<AttentionResult>& parts) const;

 private:
  OverlappingBlocks(int64_t L, int64_t block_size);

  int64_t count(int64_t length) const;
  /// f(block, begin, end, inside) for the blocks around each query, the latest first: each int64 or
  /// bool [1 or B, L].
  template <class F>
  void around(F f) const;
  torch::Tensor block_of(int64_t f, int64_t begin, int64_t end) const;
  torch::Tensor query_rows(const torch::Tensor& t) const { return t.slice(1, t.size(1) - L_); }

  int64_t L_, size_, step_, families_;
  torch::Tensor place_;        // int64 [1 or B, S], within the token's sequence
  torch::Tensor count_, end_;  // int64 [1 or B, S]: blocks of that sequence, and its length
  torch::Tensor run_;          // int64 [1 or B, S], undefined: one sequence in each row
  bool plain_;                 // place_ counts from the begin of a block of family 0
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/block/overlapping_blocks.ipp>
#endif
