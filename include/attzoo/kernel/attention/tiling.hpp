#pragma once
/// \file
/// How a problem is cut into tiles, and the tiles of one block of queries.

#include <attzoo/kernel/attention/problem.hpp>
#include <attzoo/kernel/attention/schedule.hpp>

#include <algorithm>
#include <utility>
#include <vector>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Queries and keys of a tile; all but the last tile of a run of keys have a multiple of `step`.
struct Tiling {
  int lanes, keys, step;
};

/// Keys that queries of the residue from `begin` on reach, `count` of them.
inline int64_t count_reached(const Mask& mask, int L, int S, int begin, int count) {
  const auto end = static_cast<int>(std::min<int64_t>(L, begin + int64_t{count} * mask.stride));
  Segments reached;
  reach(mask, {0, 0, begin, end, S, mask.stride}, reached);
  int64_t keys = 0;
  for (const auto& s : reached) keys += s.end - s.begin;
  return keys / mask.stride;
}

/// Wide blocks reuse every key more often, narrow ones visit fewer keys that a narrow pattern
/// forbids. Chosen by how far a block in the middle reaches, and its first half.
template <class T>
Tiling choose_tiling(const Problem<T>& p, const Mask& mask, const Tiling& wide) {
  const int most = (p.L - 1) / mask.stride + 1;
  if (most <= 16) return {16, 64, wide.step};
  if (most <= 32) return {32, 64, wide.step};
  const auto keys = [&](int count) { return count_reached(mask, p.L, p.S, p.L / 2, count); };
  const int64_t all = keys(64);
  const bool narrow = all <= 256 && keys(32) < all - all / 8;
  return narrow ? Tiling{32, 64, wide.step} : wide;
}

/// A block of queries of one head.
struct HeadBlock {
  int b, h;
  QueryBlock block;
};

/// Queries in the lanes of a tile: `count` of them, repeated from the last one up to `width`.
struct Lanes {
  static constexpr int kMost = TilePosition::kMostLanes;
  int width, count;
  int index[kMost];

  Lanes(const QueryBlock& block, int stride, int lanes) : width(lanes), count(block.count) {
    for (int i = 0; i < lanes; ++i) index[i] = block.begin + std::min(i, count - 1) * stride;
  }
};

/// A problem cut into tiles: what all threads of a pass know.
template <class T>
struct Plan {
  const Problem<T>& p;
  const Modifiers<T>& m;
  Tiling tiling;
  QueryGrid grid;

  Plan(const Problem<T>& problem, const Modifiers<T>& modifiers, const Tiling& wide)
      : p(problem),
        m(modifiers),
        tiling(choose_tiling(problem, modifiers.mask, wide)),
        grid(problem.L, problem.S, modifiers.mask.stride, tiling.lanes) {}

  int stride() const { return m.mask.stride; }
  TilePosition position(const HeadBlock& at, const Lanes& q, const KeyTile& tile) const {
    return {at.b, at.h, q.index, q.width, tile.begin, stride(), tile.count, tile.partial};
  }
};

/// The key tiles of a block of queries; keeps its memory from block to block.
class Schedule {
 public:
  template <class T>
  const std::vector<KeyTile>& tiles(const Plan<T>& plan, const HeadBlock& at) {
    const int stride = plan.stride(), end = at.block.begin + (at.block.count - 1) * stride + 1;
    segments_.clear();
    reach(plan.m.mask, {at.b, at.h, at.block.begin, end, plan.p.S, stride}, segments_);
    cut(segments_, at.block.residue, stride, plan.tiling.keys, plan.tiling.step, tiles_);
    return tiles_;
  }

 private:
  Segments segments_;
  std::vector<KeyTile> tiles_;
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
