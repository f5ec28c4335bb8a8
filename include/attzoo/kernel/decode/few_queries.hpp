#pragma once
/// \file
/// Problems with few queries, as in decoding token by token: when they are computed in a way of
/// their own (few_queries.inc), and how they are cut into tasks.

#include <attzoo/kernel/attention/tiling.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// The rule: at most 8 queries, or as many as a vector has lanes, and no dropout. With one query in
/// each SIMD lane, most of the 16 would be idle. A backward pass must find the very same scores, so
/// none may follow.
template <class T>
bool has_few_queries(const Problem<T>& p, int lanes) {
  return p.L <= std::max(8, lanes) && p.dropout == 0 && !p.max;
}

/// Queries of one place modulo the mask's stride in some of the heads that share keys: the rows
/// that read a key together, head by head.
struct RowBlock {
  int b, hkv, h, heads;
  QueryBlock block;
  int rows() const { return heads * block.count; }
};

/// A problem with few queries, cut into tasks: blocks of rows, and for each the tiles that it
/// reaches in `chunks` parts, whose results are merged in order. All by the shapes and the mask
/// alone, so that results do not depend on the number of threads.
template <class T>
struct FewQueriesPlan {
  static constexpr int kTile = 256;       // keys at most: memory likes long runs of K and of V
  static constexpr int kGroup = 8;        // keys that are read together
  static constexpr int kRows = 4;         // rows that meet them together
  static constexpr int kMostRows = 64;    // of a block, but for a head's own
  static constexpr int kMostTasks = 256;  // that chunks are made for

  const Problem<T>& p;
  const Modifiers<T>& m;
  int residues, heads, parts, rows;  // heads and rows: of the largest block; whole kRows
  int chunks, tile;                  // tile: keys

  FewQueriesPlan(const Problem<T>& problem, const Modifiers<T>& modifiers)
      : p(problem), m(modifiers) {
    const int queries = (p.L - 1) / stride() + 1;
    residues = std::min(p.L, stride());
    heads = std::clamp(kMostRows / queries, 1, p.group());
    parts = (p.group() - 1) / heads + 1;
    rows = (heads * queries + kRows - 1) / kRows * kRows;
    const int64_t keys = (p.S - 1) / stride() + 1;
    const int64_t by_keys = keys / std::max(2 * kTile, 8 * heads * queries),
                  by_tasks = kMostTasks / blocks();
    const bool alone = blocks() == 1 && rows > 8 && keys >= kTile;  // and so one thread's, uncut
    chunks = static_cast<int>(std::max<int64_t>(alone ? 2 : 1, std::min(by_keys, by_tasks)));
    tile = std::clamp(padded(static_cast<int>(keys / chunks)), kPad, kTile);
  }

  int stride() const { return m.mask.stride; }
  int64_t blocks() const { return int64_t{p.B} * p.Hkv * parts * residues; }
  int64_t tasks() const { return blocks() * chunks; }

  RowBlock block(int64_t i) const {
    const int begin = static_cast<int>(i % residues), part = static_cast<int>(i / residues % parts);
    const int64_t head = i / residues / parts;
    const int first = part * heads, hkv = static_cast<int>(head % p.Hkv), step = stride();
    return {static_cast<int>(head / p.Hkv),
            hkv,
            hkv * p.group() + first,
            std::min(heads, p.group() - first),
            {((begin + p.S - p.L) % step + step) % step, begin, (p.L - 1 - begin) / step + 1}};
  }
};

/// The key tiles that any row of a block reaches; a tile is partial unless all rows reach all of
/// it. Keeps those of the last block.
class RowSchedule {
 public:
  template <class T>
  const std::vector<KeyTile>& tiles(const FewQueriesPlan<T>& plan, const RowBlock& at,
                                    int64_t index) {
    if (index == index_) return tiles_;
    index_ = index;
    const int stride = plan.stride(), S = plan.p.S;
    Rows rows{at.b, at.h,  at.block.begin, at.block.begin + (at.block.count - 1) * stride + 1,
              S,    stride};
    segments_.clear();
    reach(plan.m.mask, rows, segments_);
    for (int i = 1; i < at.heads && plan.m.mask.self; ++i) {
      ++rows.h;
      other_.clear();
      reach(plan.m.mask, rows, other_);
      segments_ = combine(segments_, other_, S,
                          [](Cover x, Cover y) { return x == y ? x : Cover::kPartial; });
    }
    cut(segments_, at.block.residue, stride, plan.tile, plan.kGroup, tiles_);
    return tiles_;
  }

 private:
  int64_t index_ = -1;
  Segments segments_, other_;
  std::vector<KeyTile> tiles_;
};

/// What the tasks of a block leave for the one that ends last: for each its outputs, not yet
/// divided by the sums, with the largest score and the sum of exponentials of each row.
template <class T>
class RowParts {
 public:
  explicit RowParts(Runtime& runtime, const FewQueriesPlan<T>& plan)
      : stats_(int64_t{2} * padded(plan.rows)),
        size_(stats_ + int64_t{plan.rows} * padded(plan.p.Dv)) {
    if (plan.chunks == 1) return;
    memory_ = Scratch<T>(runtime, plan.tasks() * size_);
    parts_ = memory_.take(plan.tasks() * size_);
    done_ = std::vector<std::atomic<int>>(static_cast<size_t>(plan.blocks()));
  }
  T* max(int64_t task) const { return parts_ + task * size_; }
  T* sum(int64_t task) const { return max(task) + stats_ / 2; }
  T* out(int64_t task) const { return max(task) + stats_; }
  /// How many tasks of the block have ended, this one among them.
  int end(int64_t block) { return ++done_[static_cast<size_t>(block)]; }

 private:
  int64_t stats_, size_;
  Scratch<T> memory_;
  T* parts_ = nullptr;
  std::vector<std::atomic<int>> done_;
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
