#pragma once
/// \file
/// How the keys that queries reach are cut into tiles, and the queries of a head into blocks.

#include <attzoo/kernel/modifier/reach.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Keys that a tile visits: begin, begin + stride, ... `count` of them.
struct KeyTile {
  int begin, count;
  bool partial;
};

/// Cuts the segments into tiles of at most `size` keys out of `residue` modulo `stride`. A tile
/// goes on across the border of a full and a partial segment: few tiles of equal size beat exact
/// borders. All but the last tile of a run have a multiple of `step` keys, as `size` is.
inline void cut(const Segments& segments, int residue, int stride, int size, int step,
                std::vector<KeyTile>& out) {
  out.clear();
  const auto units = [&](int position) {  // keys of the residue before this position
    return position <= residue ? 0 : (position - residue - 1) / stride + 1;
  };
  for (size_t first = 0, next = 0; first < segments.size(); first = next) {
    for (next = first + 1; next < segments.size(); ++next) {
      if (segments[next].begin != segments[next - 1].end) break;
    }
    const int begin = units(segments[first].begin), end = units(segments[next - 1].end);
    const int tiles = (end - begin + size - 1) / size;
    size_t s = first;
    for (int i = 0, t = begin; t < end; ++i) {
      const int share = (end - t + tiles - i - 1) / (tiles - i);
      const int count = std::min((share + step - 1) / step * step, end - t);
      bool partial = false;
      for (;; ++s) {
        const int covered = units(segments[s].end);
        partial |= segments[s].cover != Cover::kFull && covered > t;
        if (covered >= t + count) break;
      }
      out.push_back({residue + t * stride, count, partial});
      t += count;
    }
  }
}

/// A block of queries that are computed together, one in each lane: begin, begin + stride, ...
struct QueryBlock {
  int residue, begin, count;
};

/// The blocks of one head: first by residue of the place among the keys, then by place.
class QueryGrid {
 public:
  QueryGrid(int L, int S, int stride, int lanes)
      : L_(L), shift_(S - L), stride_(stride), lanes_(lanes) {
    const int most = (L - 1) / stride + 1;
    per_residue_ = (most + lanes - 1) / lanes;
  }
  int per_residue() const { return per_residue_; }
  int residues() const { return stride_; }
  int64_t size() const { return int64_t{stride_} * per_residue_; }
  QueryBlock block(int residue, int index) const {
    const int64_t first = ((int64_t{residue} - shift_) % stride_ + stride_) % stride_;
    const int64_t begin = first + int64_t{index} * lanes_ * stride_;
    if (begin >= L_) return {residue, L_, 0};
    const int left = (L_ - static_cast<int>(begin) - 1) / stride_ + 1;
    return {residue, static_cast<int>(begin), std::min(left, lanes_)};
  }
  /// Of all blocks the i-th, by residue first, or by place first.
  QueryBlock within_residues(int64_t i) const {
    return block(static_cast<int>(i / per_residue_), static_cast<int>(i % per_residue_));
  }
  QueryBlock across_residues(int64_t i) const {
    return block(static_cast<int>(i % stride_), static_cast<int>(i / stride_));
  }

 private:
  int L_, shift_, stride_, lanes_, per_residue_;
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
