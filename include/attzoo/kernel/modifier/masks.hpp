#pragma once
/// \file
/// The masks that have names, each written once: a callable of a query's place among the keys, as
/// in mask_mod(f, aligned), on lanes of any kind (lane.hpp, whole tensors, intervals), and what a
/// range of such places reaches. Numbers from 2^30 on are beyond all lengths.

#include <attzoo/kernel/modifier/lane_types.hpp>
#include <attzoo/kernel/modifier/reach.hpp>

#include <algorithm>
#include <cstdint>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// All of them: who makes something of each makes it of this list.
#define ATTZOO_NAMED_MASKS(X) X(Causal) X(Window) X(Dilated) X(Blocks) X(Prefix)

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

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
