#pragma once
/// \file
/// Blocks of tokens: those of documents, and those that overlap.

#include <attzoo/core/any_mask.hpp>
#include <attzoo/functional/result.hpp>

#include <vector>

namespace attzoo::core {

/// Tokens attend within the blocks of a packed batch, which begin anew in every document.
ATTZOO_API DocumentsMask blocks_of_documents(const Packing& packing, int64_t block_size);

/// The overlapping blocks of a sequence, or of every document in it: block k starts at k * step and
/// belongs to family k mod families(). Blocks of one family do not touch each other.
class OverlappingBlocks {
 public:
  /// A sequence of `length` tokens; 0 < block_size <= length, or 1.
  OverlappingBlocks(int64_t length, int64_t block_size, const Packing& packing);

  int64_t families() const { return families_; }

  /// Who attends to whom within the blocks of family f, and so within documents.
  AnyMask family(int64_t f) const;

  /// The share of every family in the result of every token: of the block that holds the token by
  /// the distance to its nearer end, and 1 in all. [families, L], packed [families, R, 1, L].
  torch::Tensor shares() const;

  /// The shares of the Python library, without documents: each later block takes a part of the
  /// result and leaves the rest of what was there, even if nothing was.
  torch::Tensor python_shares() const;
  /// The weights of the last block that holds both tokens of a pair, as the Python library returns
  /// them; `parts` are the results of the families.
  LazyWeights last_block_wins(const std::vector<AttentionResult>& parts) const;

 private:
  int64_t count(int64_t length) const;
  torch::Tensor shares_of(int64_t length) const;
  torch::Tensor block_of(int64_t f, int64_t begin, int64_t end) const;

  int64_t n_, size_, step_, families_;
  Packing packing_;
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/module/overlapping_blocks.ipp>
#endif
