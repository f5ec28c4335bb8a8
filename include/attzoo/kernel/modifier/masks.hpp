#pragma once
/// \file
/// The masks that have names, each written once: a callable of a query's place among the keys, as
/// in mask_mod(f, aligned), on lanes of any kind (lane.hpp, whole tensors, intervals), and what a
/// range of such places reaches. Numbers from 2^30 on are beyond all lengths.

#include <attzoo/kernel/modifier/lane_types.hpp>
#include <attzoo/kernel/modifier/reach.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// All of them: who makes something of each makes it of this list.
#define ATTZOO_NAMED_MASKS(X) \
  X(Causal)                   \
  X(Window) X(Dilated) X(Blocks) X(Prefix) X(Neighborhood1) X(Neighborhood2) X(Neighborhood3)

/// Keys that do not come later.
struct Causal {
  template <class B, class H, class Q, class K>
  ATTZOO_ALWAYS_INLINE auto operator()(B, H, Q q, K kv) const {
    return kv <= q;
  }
  void reach(const Rows& r, Segments& out) const {
    append_nested(out, 0, 0, int64_t{r.begin} + 1, r.end, r.S);
  }
};

/// Keys from q - left to q + right.
struct Window {
  int left, right;
  template <class B, class H, class Q, class K>
  ATTZOO_ALWAYS_INLINE auto operator()(B, H, Q q, K kv) const {
    const auto distance = q - kv;
    return distance <= left && distance >= -right;
  }
  void reach(const Rows& r, Segments& out) const {
    const int64_t first = r.begin, last = r.end - 1;
    append_nested(out, first - left, last - left, first + right + 1, last + right + 1, r.S);
  }
};

/// Keys at the same place modulo the rate. As a stride the kernel walks nothing else.
struct Dilated {
  int rate;
  template <class B, class H, class Q, class K>
  ATTZOO_ALWAYS_INLINE auto operator()(B, H, Q q, K kv) const {
    return (q - kv) % rate == 0;
  }
  void reach(const Rows& r, Segments& out) const {
    append(out, 0, r.S, r.stride % rate == 0 ? Cover::kFull : Cover::kPartial, r.S);
  }
  int stride() const { return rate; }
};

/// Blocks of `size` keys that begin at offset, offset + period, ... before `end`.
struct Blocks {
  int size, period, offset, end;
  template <class B, class H, class Q, class K>
  ATTZOO_ALWAYS_INLINE auto operator()(B, H, Q q, K kv) const {
    const auto i = q - offset, j = kv - offset, start = i / period * period;
    return i >= 0 && j >= start && i - start < size && j - start < size && start < end - offset;
  }
  /// The same by hand on the kernel's numbers, by a product in double that is exact for 31 bits: a
  /// tile of 64 x 96 pairs takes 1.1 us, with the integer division above 13 (AMD EPYC, Zen 5).
  ATTZOO_ALWAYS_INLINE bool operator()(Index, Index, Index q, Index kv) const {
    const int i = q.v - offset, j = kv.v - offset;
    const int start = static_cast<int>((i + 0.5) * (1.0 / period)) * period;
    return (i >= 0) & (j >= start) & (i - start < size) & (j - start < size) &
           (start < end - offset);
  }
  void reach(const Rows& r, Segments& out) const {
    const auto block = [this](int64_t place) {
      const int64_t i = place - offset;
      return i / period - (i % period < 0);
    };
    const int64_t first = r.begin, last = r.end - 1;
    for (int64_t i = std::max<int64_t>(0, block(first)); i <= block(last); ++i) {
      const int64_t start = i * period + offset;
      if (start >= end) break;
      if (start + size <= first) continue;
      const bool whole = first >= start && last < start + size;
      append(out, start, start + size, whole ? Cover::kFull : Cover::kPartial, r.S);
    }
  }
};

/// The first keys.
struct Prefix {
  int length;
  template <class B, class H, class Q, class K>
  ATTZOO_ALWAYS_INLINE auto operator()(B, H, Q, K kv) const {
    return kv < length;
  }
  void reach(const Rows& r, Segments& out) const { append(out, 0, length, Cover::kFull, r.S); }
};

/// One dimension of a grid, and which places j of it a query at i sees: of those at the same place
/// modulo the dilation the nearest ones. So many to each side, but from the border on as many as a
/// whole window has: that is what `low_end` and `high_begin` say.
struct GridAxis {
  int size, left, right, dilation;
  int low_end;     // of the places below it every query to the left sees all
  int high_begin;  // of those from here on every query to the right

  /// Whether 0 <= i and j < size may meet; lanes as in lane.hpp.
  template <class I, class J>
  ATTZOO_ALWAYS_INLINE auto meet(I i, J j) const {
    const auto distance = i - j;
    return is_multiple(distance, dilation) && (distance <= left || j >= high_begin) &&
           (distance >= -right || j < low_end);
  }
  /// All that i sees lies in [begin, end), and all in there at its place modulo the dilation is
  /// seen. Both grow with i.
  int64_t begin(int64_t i) const {
    return std::max<int64_t>(0, std::min<int64_t>(i - left, high_begin));
  }
  int64_t end(int64_t i) const {
    return std::min<int64_t>(size, std::max<int64_t>(i + right + 1, low_end));
  }
  bool sees(int64_t i, int64_t j) const {
    return (i - j) % dilation == 0 && j >= begin(i) && j < end(i);
  }

 private:
  template <class D>
  static ATTZOO_ALWAYS_INLINE auto is_multiple(D distance, int n) {
    return distance % n == 0;
  }
  template <int64_t kMost>
  static ATTZOO_ALWAYS_INLINE Integer<1> is_multiple(Integer<kMost> distance, int n) {
    if (n == 1) return {1};
    const int i = distance.v < 0 ? -distance.v : distance.v;
    return {i == quotient_of(i, n) * n};
  }

 public:
  /// i / n of i >= 0: the kernel's numbers as in Blocks.
  static ATTZOO_ALWAYS_INLINE int quotient_of(int i, int n) {
    return static_cast<int>((i + 0.5) * (1.0 / n));
  }
};

/// Tokens of a grid of N dimensions, the last of which lie together, that are near each other in
/// every one of them.
template <int N>
struct Neighborhood {
  GridAxis axes[static_cast<size_t>(N)];

  template <class B, class H, class Q, class K>
  ATTZOO_ALWAYS_INLINE auto operator()(B, H, Q q, K kv) const {
    return meet<0>(q, kv);
  }
  void reach(const Rows& r, Segments& out) const {
    // Where the kernel walks the last dilation, an interval has no holes.
    reach<0>(r.begin, r.end - 1, r.stride % axes[N - 1].dilation == 0, out);
  }
  /// Tokens at the same place modulo the last dilation, if those of all rows are.
  int stride() const {
    const auto& last = axes[N - 1];
    return N == 1 || last.size % last.dilation == 0 ? last.dilation : 1;
  }
  int64_t tokens() const { return int64_t{axes[0].size} * inner(0); }

 private:
  /// Tokens at one place of the dimension d.
  int inner(int d) const {
    int n = 1;
    while (++d < N) n *= axes[d].size;
    return n;
  }

  template <int D, class Q, class K>
  ATTZOO_ALWAYS_INLINE auto meet(Q q, K kv) const {
    if constexpr (D == N - 1) {
      return axes[D].meet(q, kv);
    } else {
      const int n = inner(D);
      const auto i = quotient(q, n);
      const auto j = quotient(kv, n);
      return axes[D].meet(i, j) && meet<D + 1>(rest(q, i, n), rest(kv, j, n));
    }
  }
  template <class I>
  static ATTZOO_ALWAYS_INLINE auto quotient(I i, int n) {
    return i / n;
  }
  static ATTZOO_ALWAYS_INLINE Index quotient(Index i, int n) {
    return {GridAxis::quotient_of(i.v, n)};
  }
  template <class I, class Q>
  static ATTZOO_ALWAYS_INLINE auto rest(I i, Q quotient, int n) {
    return i - quotient * n;
  }
  static ATTZOO_ALWAYS_INLINE Index rest(Index i, Index quotient, int n) {
    return {i.v - quotient.v * n};
  }

  /// What the tokens first ... last reach, counted from where the dimensions from D on begin.
  template <int D>
  void reach(int first, int last, bool walked, Segments& out) const {
    const auto& a = axes[D];
    if constexpr (D == N - 1) {
      const int64_t begin = a.begin(first), end = a.end(last);
      const bool whole = walked ? stride() == a.dilation : a.dilation == 1;
      if (whole) return append_nested(out, begin, a.begin(last), a.end(first), end, a.size);
      append(out, begin, end, Cover::kPartial, a.size);
    } else {
      const int n = inner(D), from = first / n, to = last / n;
      // Places of this dimension, and what their tokens reach in the others.
      struct Part {
        int from, to;
        Segments keys = {};
      } parts[3] = {{from, from}, {from + 1, to - 1}, {to, to}};
      reach<D + 1>(first % n, from == to ? last % n : n - 1, walked, parts[0].keys);
      if (from + 1 < to) reach<D + 1>(0, n - 1, walked, parts[1].keys);
      if (from < to) reach<D + 1>(0, last % n, walked, parts[2].keys);
      if (from == to) parts[2].to = from - 1;  // none
      const auto join = [n](const Segments& x, const Segments& y) {
        return combine(x, y, n, [](Cover c, Cover d) { return c == d ? c : Cover::kPartial; });
      };
      Segments keys;
      int before = -1;  // a digit for each part: whether none, some or all of it see j
      for (auto j = static_cast<int>(a.begin(from)); j < a.end(to); ++j) {
        int now = 0;
        bool all = true, any = false;
        Segments joined;
        int seen[3] = {};
        for (int p = 0; p < 3; ++p) {
          for (int i = parts[p].from; i <= parts[p].to; ++i) seen[p] += a.sees(i, j);
          const int count = std::max(0, parts[p].to - parts[p].from + 1);
          now = 3 * now + (seen[p] > 0) + (seen[p] == count);
          all &= seen[p] == count;
        }
        if (now != before) {
          for (int p = 0; p < 3; ++p) {
            if (seen[p] > 0) joined = any ? join(joined, parts[p].keys) : parts[p].keys;
            any |= seen[p] > 0;
          }
          keys = any && !all ? join(joined, {}) : joined;
          before = now;
        }
        for (const auto& s : keys) {
          append(out, int64_t{j} * n + s.begin, int64_t{j} * n + s.end, s.cover, a.size * n);
        }
      }
    }
  }
};
using Neighborhood1 = Neighborhood<1>;
using Neighborhood2 = Neighborhood<2>;
using Neighborhood3 = Neighborhood<3>;

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
