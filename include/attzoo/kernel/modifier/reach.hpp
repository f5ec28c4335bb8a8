#pragma once
/// \file
/// Which keys a range of queries reaches, for any device. Every mask answers for a range of queries
/// with a list of key intervals, each of them full (all pairs attend) or partial (some may); what
/// is in no interval is empty and never visited. Composed masks compose the answers, so that a
/// schedule costs what it visits.

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

inline Segments unite(const Segments& a, const Segments& b, int S) {
  return combine(a, b, S, [](Cover x, Cover y) { return std::max(x, y); });
}
inline Segments complement(const Segments& a, int S) {
  return combine(a, {}, S,
                 [](Cover x, Cover) { return static_cast<Cover>(2 - static_cast<int>(x)); });
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
