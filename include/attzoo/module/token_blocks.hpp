#pragma once
/// \file
/// The blocks that the keys of a call stand in: they begin anew in every document of a packed batch
/// and behind the padding of a cache.

#include <attzoo/core/modifier/mask_values.hpp>
#include <attzoo/module/heads.hpp>

#include <tuple>
#include <utility>
#include <vector>

namespace attzoo::core {

/// Blocks of `size` tokens, the last of each sequence perhaps shorter, numbered within a row of the
/// batch from 0. Without documents and padding all rows have the same.
class TokenBlocks {
 public:
  /// Tokens that know of no others: those of row `row` from key `begin` on, in `blocks` blocks from
  /// number `first` on.
  struct Sequence {
    int64_t row, begin, tokens, first, blocks;
  };

  ATTZOO_API TokenBlocks(const Heads& heads, int64_t size);

  int64_t size() const { return size_; }
  int64_t rows() const { return rows_; }    ///< of the batch: 1, where all are the same
  int64_t count() const { return count_; }  ///< of blocks in each row, at most
  /// Whether block i has the keys i * size() ... of every row.
  bool plain() const { return plain_; }
  const std::vector<Sequence>& sequences() const { return sequences_; }

  /// The blocks of keys and of queries, int64 [rows, S] and [rows, L]; count() where there is none.
  /// Queries that stand before the first key are of its block.
  const torch::Tensor& of_keys() const { return of_keys_; }
  const torch::Tensor& of_queries() const { return of_queries_; }
  /// The first block of the sequence of every block, int64 [rows, count() + 1]; count() of none.
  ATTZOO_API torch::Tensor first_of_sequence() const;

  /// The keys of every block, from and to: int64 [rows, count() + 1], none of the last one.
  ATTZOO_API std::pair<torch::Tensor, torch::Tensor> extents() const;

  /// Queries attend to the blocks chosen for theirs: bool [rows, H or 1, count(), count()], on any
  /// device.
  ATTZOO_API ChosenBlocksMask mask(const torch::Tensor& chosen) const;
  /// The same, where each query chooses for itself: bool [B, H, L, count()].
  ATTZOO_API ChosenBlocksMask mask_by_query(const torch::Tensor& chosen) const;

 private:
  int64_t size_, rows_ = 1, count_ = 0;
  bool plain_;
  std::vector<Sequence> sequences_;
  torch::Tensor of_keys_, of_queries_;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <algorithm>

namespace attzoo::core {

ATTZOO_API TokenBlocks::TokenBlocks(const Heads& heads, int64_t size)
    : size_(std::min(size, int64_t{1} << 30)) {
  const int64_t L = heads.q.size(2), S = heads.k.size(2);
  const auto& [packing, past] = std::tie(heads.packing, heads.past);
  const auto add = [&](int64_t row, int64_t begin, int64_t tokens) {
    const bool goes_on = !sequences_.empty() && sequences_.back().row == row;
    const int64_t first = goes_on ? sequences_.back().first + sequences_.back().blocks : 0,
                  blocks = (tokens + size_ - 1) / size_;
    sequences_.push_back({row, begin, tokens, first, blocks});
    count_ = std::max(count_, first + blocks);
  };
  plain_ = L <= S;
  if (packing.defined()) {
    plain_ = false;
    rows_ = packing.position.size(0);
    int64_t row = 0, begin = 0;
    for (const auto tokens : packing.lengths) {
      add(row, begin, tokens);
      begin += tokens;
      if (begin == S && row + 1 < rows_) ++row, begin = 0;
    }
  } else if (past && past->padding.defined()) {
    plain_ = false;
    rows_ = past->padding.size(0);
    const auto padding = past->padding.cpu();
    for (int64_t row = 0; row < rows_; ++row) {
      const auto begin = std::min(S, padding.const_data_ptr<int64_t>()[row]);
      add(row, begin, S - begin);
    }
  } else {
    add(0, 0, S);
  }
  of_keys_ = torch::full({rows_, S}, count_, torch::kInt64);
  for (const auto& s : sequences_) {
    of_keys_[s.row]
        .slice(0, s.begin, s.begin + s.tokens)
        .copy_(torch::arange(s.tokens, torch::kInt64).div(size_, "floor") + s.first);
  }
  of_keys_ = of_keys_.to(heads.k.device());
  const auto place = (torch::arange(L, of_keys_.options()) + (S - L)).clamp_min(0);
  of_queries_ = S > 0 ? of_keys_.index_select(1, place) : place.unsqueeze(0);
}

ATTZOO_API torch::Tensor TokenBlocks::first_of_sequence() const {
  const auto first = torch::zeros({rows_, count_ + 1}, torch::kInt64);
  for (const auto& s : sequences_)
    first[s.row].slice(0, s.first, s.first + s.blocks).fill_(s.first);
  first.slice(1, count_).fill_(count_);
  return first.to(of_keys_.device());
}

ATTZOO_API std::pair<torch::Tensor, torch::Tensor> TokenBlocks::extents() const {
  const auto begin = torch::zeros({rows_, count_ + 1}, torch::kInt64), end = begin.clone();
  for (const auto& s : sequences_) {
    const auto from = torch::arange(s.blocks, torch::kInt64) * size_;
    begin[s.row].slice(0, s.first, s.first + s.blocks).copy_(from + s.begin);
    end[s.row]
        .slice(0, s.first, s.first + s.blocks)
        .copy_((from + size_).clamp_max(s.tokens) + s.begin);
  }
  return {begin.to(of_keys_.device()), end.to(of_keys_.device())};
}

ATTZOO_API ChosenBlocksMask TokenBlocks::mask(const torch::Tensor& chosen) const {
  const auto on = chosen.to(of_keys_.device());
  if (plain_) return {on, size_, size_};
  const auto with_nobody = torch::constant_pad_nd(on, {0, 1, 0, 1}, 0);
  return {with_nobody, of_queries_.to(torch::kInt32), of_keys_.to(torch::kInt32)};
}

ATTZOO_API ChosenBlocksMask TokenBlocks::mask_by_query(const torch::Tensor& chosen) const {
  if (plain_) return {chosen, 1, size_};
  const auto row = torch::arange(chosen.size(2), of_keys_.options().dtype(torch::kInt32));
  return {torch::constant_pad_nd(chosen, {0, 1}, 0), row.unsqueeze(0), of_keys_.to(torch::kInt32)};
}

}  // namespace attzoo::core

#endif
