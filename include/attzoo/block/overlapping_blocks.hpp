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

#ifdef ATTZOO_DEFINE_MODULE

#include <algorithm>

namespace attzoo::core {

/// Numbers for the parts of all sequences; `part` numbers those of each from 0.
inline torch::Tensor number_parts(const torch::Tensor& part, const torch::Tensor& run) {
  return run.defined() ? run * (run.size(1) + 1) + part : part;
}

ATTZOO_API DocumentsMask blocks_of_places(const torch::Tensor& place, const torch::Tensor& run,
                                          int64_t block_size) {
  return {{.ids = number_parts(torch::div(place, block_size, "floor"), run)}};
}

ATTZOO_API OverlappingBlocks::OverlappingBlocks(int64_t L, int64_t block_size)
    : L_(L),
      size_(block_size),
      step_(std::max<int64_t>(1, block_size / 2)),
      families_((size_ + step_ - 1) / step_) {}  // block_size <= kUnbounded

ATTZOO_API OverlappingBlocks::OverlappingBlocks(int64_t length, int64_t block_size,
                                                const Packing& packing, bool goes_on)
    : OverlappingBlocks(length, block_size) {
  if (packing.defined() && length > 0) {
    std::vector<int64_t> counts;
    for (const auto n : packing.lengths) counts.push_back(count(n));
    place_ = packing.position;
    count_ = packing.spread(counts);
    end_ = packing.spread(packing.lengths);
    run_ = packing.run;
    plain_ = false;
    if (goes_on) {
      const auto last = run_ == run_.slice(1, length - 1);
      count_ = count_.masked_fill(last, kUnbounded);
      end_ = end_.masked_fill(last, kUnbounded);
    }
    return;
  }
  place_ = torch::arange(length, torch::kInt64).unsqueeze(0);
  count_ = torch::full_like(place_, count(length));
  end_ = torch::full_like(place_, length);
  plain_ = true;
}

// Keys are forgotten in whole periods, and blocks that begin before the first key hold no query.
ATTZOO_API OverlappingBlocks::OverlappingBlocks(const Past& past, int64_t L, int64_t block_size)
    : OverlappingBlocks(L, block_size) {
  place_ = past.places();
  count_ = torch::full_like(place_, kUnbounded);
  end_ = torch::full_like(place_, kUnbounded);
  plain_ = !past.padding.defined();
}

/// The last block ends at the last token or after it.
ATTZOO_API int64_t OverlappingBlocks::count(int64_t length) const {
  return length <= size_ ? 1 : 1 + (length - size_ + step_ - 1) / step_;
}

ATTZOO_API AnyMask OverlappingBlocks::family(int64_t f) const {
  if (plain_) {
    const int64_t blocks = count_.numel() > 0 ? count_[0][0].item<int64_t>() : 1;
    return BlocksMask{blocks_from(size_, period(), f * step_,
                                  blocks == kUnbounded ? kUnbounded : blocks * step_)};
  }
  const auto offset = place_ - f * step_;
  const auto j = torch::div(offset, period(), "floor").clamp_min(-1);  // of the family's blocks
  const auto inside = (j >= 0) & (offset - j * period() < size_) & (j * families_ + f < count_);
  // What lies between two blocks is a document whose keys nobody attends to.
  const DocumentsMask blocks{{.ids = number_parts(j + 1, run_) * 2 + inside}};
  return blocks && TensorMask{inside.unsqueeze(1).unsqueeze(1)};
}

template <class F>
void OverlappingBlocks::around(F f) const {
  const auto place = query_rows(place_), count = query_rows(count_), end = query_rows(end_);
  const auto latest = torch::minimum(torch::div(place, step_, "floor"), count - 1);
  for (int64_t i = 0; i < families_; ++i) {
    const auto block = latest - i, begin = block * step_;
    f(block, begin, torch::minimum(begin + size_, end),
      (block >= 0).logical_and(place - begin < size_));
  }
}

ATTZOO_API torch::Tensor OverlappingBlocks::shares() const {
  const auto place = query_rows(place_);
  auto shares = place.new_zeros({families_, place.size(0), L_}, torch::kFloat64);
  around([&](const auto& block, const auto& begin, const auto& end, const auto& inside) {
    const auto near = torch::minimum(place - begin + 1, end - place).to(torch::kFloat64);
    shares.scatter_add_(0, block.remainder(families_).unsqueeze(0), (near * inside).unsqueeze(0));
  });
  return (shares / shares.sum(0).clamp_min(1)).unsqueeze(2);  // padding has none
}

ATTZOO_API torch::Tensor OverlappingBlocks::python_shares() const {
  const auto place = query_rows(place_);
  auto shares = place.new_zeros({families_, place.size(0), L_}, torch::kFloat64);
  auto left = torch::ones_like(place, torch::kFloat64);  // by the later blocks
  around([&](const auto& block, const auto& begin, const auto& end, const auto& inside) {
    const auto fade = (place - begin).to(torch::kFloat64) / (end - begin - 1).clamp_min(1);
    const auto taken = torch::where(block == 0, torch::ones_like(fade), fade) * inside;
    shares.scatter_add_(0, block.remainder(families_).unsqueeze(0), (taken * left).unsqueeze(0));
    left = left * (1 - taken);
  });
  return shares.unsqueeze(2);
}

/// Of every pair in the rows [begin, end), the last block of family f that holds both tokens, -1
/// where none does: [1 or B, 1, rows, S].
ATTZOO_API torch::Tensor OverlappingBlocks::block_of(int64_t f, int64_t begin, int64_t end) const {
  const Grid grid({place_.size(0), 1, L_, place_.size(1)}, begin, end, place_.device());
  const auto rows = query_rows(place_).slice(1, begin, end).unsqueeze(1).unsqueeze(-1);
  const auto block = torch::div(rows - f * step_, period(), "floor") * families_ + f;
  return torch::where(family(f).evaluate(grid), block, torch::full_like(block, -1));
}

ATTZOO_API LazyWeights
OverlappingBlocks::last_block_wins(const std::vector<AttentionResult>& parts) const {
  std::vector<LazyWeights> others;
  for (const auto& part : parts) others.push_back(part.weights);
  return others[0].map([blocks = *this, others](torch::Tensor rows, int64_t begin, int64_t end) {
    auto last = blocks.block_of(0, begin, end).to(rows.device());
    for (int64_t f = 1; f < blocks.families(); ++f) {
      const auto block = blocks.block_of(f, begin, end).to(rows.device());
      rows = torch::where(block > last, others[static_cast<size_t>(f)].rows(begin, end), rows);
      last = torch::maximum(last, block);
    }
    return rows;
  });
}

}  // namespace attzoo::core

#endif
