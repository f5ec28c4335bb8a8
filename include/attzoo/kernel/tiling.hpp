#pragma once
/// \file
/// How a problem is cut into tiles, the tiles of one block of queries, and scratch memory.

#include <attzoo/kernel/problem.hpp>

#include <limits>
#include <vector>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class Mask, class Score>
struct MaskAndScore {
  Mask mask;
  Score score;
};
template <class Mask, class Score>
MaskAndScore(Mask, Score) -> MaskAndScore<Mask, Score>;

/// Queries and keys of a tile; all but the last tile of a run of keys have a multiple of `step`.
struct Tiling {
  int lanes, keys, step;
};

/// Wide blocks reuse every key more often, narrow ones visit fewer keys that a narrow pattern
/// forbids. Chosen by how far a block in the middle reaches.
template <class T>
Tiling choose_tiling(const Problem<T>& p, const Modifiers<T>& m, const Tiling& wide) {
  const int most = (p.L - 1) / m.stride + 1;
  if (most <= 16) return {16, 64, wide.step};
  if (most <= 32) return {32, 64, wide.step};
  const int begin = p.L / 2;
  const auto end = static_cast<int>(std::min<int64_t>(p.L, begin + int64_t{64} * m.stride));
  Segments reached;
  m.reach(m.mask_and_score, {0, 0, begin, end, p.S, m.stride}, reached);
  int64_t keys = 0;
  for (const auto& s : reached) keys += s.end - s.begin;
  return keys / m.stride <= 256 ? Tiling{32, 64, wide.step} : wide;
}

/// The key tiles of a block of queries; keeps its memory from block to block.
class Schedule {
 public:
  template <class T>
  const std::vector<KeyTile>& tiles(const Problem<T>& p, const Modifiers<T>& m,
                                    const Tiling& tiling, int b, int h, const QueryBlock& block) {
    segments_.clear();
    const int end = block.begin + (block.count - 1) * m.stride + 1;
    m.reach(m.mask_and_score, {b, h, block.begin, end, p.S, m.stride}, segments_);
    cut(segments_, block.residue, m.stride, tiling.keys, tiling.step, tiles_);
    return tiles_;
  }

 private:
  Segments segments_;
  std::vector<KeyTile> tiles_;
};

/// One allocation for all buffers of a thread: they are laid out twice, first to count.
template <class T>
class Scratch {
 public:
  explicit Scratch(Runtime& runtime) : runtime_(runtime) {}
  T* take(int64_t n) {
    T* at = memory_ ? static_cast<T*>(memory_.get()) + used_ : nullptr;
    used_ += (n + kPad - 1) / kPad * kPad;
    return at;
  }
  void allocate() {
    memory_ = runtime_.allocate(static_cast<size_t>(used_) * sizeof(T));
#ifndef NDEBUG
    std::fill_n(static_cast<T*>(memory_.get()), used_, std::numeric_limits<T>::quiet_NaN());
#endif
    used_ = 0;
  }

 private:
  Runtime& runtime_;
  std::shared_ptr<void> memory_;
  int64_t used_ = 0;
};

/// out [B, H, n, E] = causal sums of (q . k) v: q and k [B, H, n, F], v [B, H, n, E].
struct ScanProblem {
  View q, k, v, out;
  int B, H, n, F, E;
  bool reverse;  // sums over later tokens instead of earlier ones
};

/// Tokens that are scored against each other, and columns of the values that share a state: a state
/// of F x 128 numbers stays in the second-level cache.
constexpr int kScanChunk = 64, kScanColumns = 128;

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
