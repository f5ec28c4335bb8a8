#pragma once
/// \file
/// Which keys a block of queries has to visit. Every mask answers for a range of queries with a
/// list of key intervals, each of them full (all pairs attend) or partial (some may); what is in no
/// interval is empty and never visited. Composed masks compose the answers, so that a schedule
/// costs what it visits.

#include <attzoo/kernel/compiler.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

enum class Cover : int { kEmpty, kPartial, kFull };

/// The keys [begin, end).
struct Segment {
  int begin, end;
  Cover cover;
};

/// Disjoint, ascending, none of them empty.
using Segments = std::vector<Segment>;

/// The queries begin, begin + stride, ... before `end` of head h of sequence b, which face those of
/// the keys [0, S) that lie at the same place modulo the stride.
struct Rows {
  int b, h, begin, end, S;
  int stride = 1;
};

inline void append(Segments& out, int64_t begin, int64_t end, Cover cover, int S) {
  const int from = static_cast<int>(std::clamp<int64_t>(begin, 0, S));
  const int to = static_cast<int>(std::clamp<int64_t>(end, 0, S));
  if (from >= to || cover == Cover::kEmpty) return;
  if (!out.empty() && out.back().end == from && out.back().cover == cover) {
    out.back().end = to;
  } else {
    out.push_back({from, to, cover});
  }
}

/// A full interval inside a partial one.
inline void append_nested(Segments& out, int64_t any_begin, int64_t full_begin, int64_t full_end,
                          int64_t any_end, int S) {
  if (full_begin >= full_end) full_begin = full_end = any_end;
  append(out, any_begin, full_begin, Cover::kPartial, S);
  append(out, full_begin, full_end, Cover::kFull, S);
  append(out, full_end, any_end, Cover::kPartial, S);
}

/// What `a` and `b` say together, key by key.
template <class Op>
Segments combine(const Segments& a, const Segments& b, int S, Op op) {
  Segments out;
  size_t i = 0, j = 0;
  const auto at = [](const Segments& s, size_t& k, int position, int& end) {
    while (k < s.size() && s[k].end <= position) ++k;
    if (k == s.size()) return Cover::kEmpty;
    const bool inside = s[k].begin <= position;
    end = std::min(end, inside ? s[k].end : s[k].begin);
    return inside ? s[k].cover : Cover::kEmpty;
  };
  for (int position = 0; position < S;) {
    int end = S;
    const Cover in_a = at(a, i, position, end), in_b = at(b, j, position, end);
    append(out, position, end, op(in_a, in_b), S);
    position = end;
  }
  return out;
}

inline Segments intersect(const Segments& a, const Segments& b, int S) {
  return combine(a, b, S, [](Cover x, Cover y) { return std::min(x, y); });
}
inline Segments unite(const Segments& a, const Segments& b, int S) {
  return combine(a, b, S, [](Cover x, Cover y) { return std::max(x, y); });
}
inline Segments complement(const Segments& a, int S) {
  return combine(a, {}, S,
                 [](Cover x, Cover) { return static_cast<Cover>(2 - static_cast<int>(x)); });
}

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
