#pragma once
// Definitions of modifier.hpp.

#include <attzoo/kernel/modifier/modifier.hpp>

#include <cstring>
#include <utility>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

ATTZOO_API void reach(const Mask& mask, const Rows& rows, Segments& out) {
  if (mask.reach) return mask.reach(mask.self.get(), rows, out);
  append(out, 0, rows.S, Cover::kFull, rows.S);
}

namespace detail {

/// f(i) for n bytes, a multiple of 16: a fixed length is vectorised.
template <class F>
ATTZOO_ALWAYS_INLINE void each_byte(int n, F f) {
  for (int at = 0; at < n; at += 16) {
    ATTZOO_LANES
    for (int i = at; i < at + 16; ++i) f(i);
  }
}

}  // namespace detail

ATTZOO_API void allowed(const Mask& mask, const TilePosition& t, uint8_t* out) {
  if (mask.allowed) return mask.allowed(mask.self.get(), t, out);
  if (!mask.forbid) {
    std::memset(out, 1, static_cast<size_t>(t.size()));
    return;
  }
  float s[TilePosition::kMostLanes * TilePosition::kMostKeys];
  std::memset(s, 0, static_cast<size_t>(t.size()) * sizeof(float));
  mask.forbid(mask.self.get(), t, s, nullptr);
  detail::each_byte(t.size(), [&](int i) ATTZOO_INLINE_LAMBDA { out[i] = s[i] == 0; });
}

namespace detail {

/// Both and either, on covers and on bytes.
struct Lesser {
  template <class X>
  ATTZOO_ALWAYS_INLINE X operator()(X a, X b) const {
    return a < b ? a : b;
  }
};
struct Greater {
  template <class X>
  ATTZOO_ALWAYS_INLINE X operator()(X a, X b) const {
    return a < b ? b : a;
  }
};

template <class Op>
struct MaskPair {
  Mask a, b;

  void reach(const Rows& rows, Segments& out) const {
    Segments in_a, in_b;
    kernel::reach(a, rows, in_a);
    kernel::reach(b, rows, in_b);
    out = combine(in_a, in_b, rows.S, Op());
  }
  void forbid(const TilePosition& t, float* s, float* slope) const {
    a.forbid(a.self.get(), t, s, slope);
    b.forbid(b.self.get(), t, s, slope);
  }
  void allowed(const TilePosition& t, uint8_t* out) const {
    uint8_t by_b[TilePosition::kMostLanes * TilePosition::kMostKeys];
    kernel::allowed(a, t, out);
    kernel::allowed(b, t, by_b);
    each_byte(t.size(), [&](int i) ATTZOO_INLINE_LAMBDA { out[i] = Op()(out[i], by_b[i]); });
  }
};

struct OppositeMask {
  Mask a;

  void reach(const Rows& rows, Segments& out) const {
    Segments reached;
    kernel::reach(a, rows, reached);
    out = complement(reached, rows.S);
  }
  void allowed(const TilePosition& t, uint8_t* out) const {
    kernel::allowed(a, t, out);
    each_byte(t.size(), [out](int i) ATTZOO_INLINE_LAMBDA { out[i] ^= 1; });
  }
};

struct TiledMask {
  Mask a;
  std::shared_ptr<const TileCover> tiles;

  void reach(const Rows& r, Segments& out) const {
    const auto& t = *tiles;
    const int b = t.batches == 1 ? 0 : r.b, h = t.heads == 1 ? 0 : r.h;
    Segments seen;
    for (int i = r.begin / t.tile; i <= (r.end - 1) / t.tile; ++i) {
      Segments row;
      const int64_t base = ((int64_t{b} * t.heads + h) * t.rows + i) * t.columns;
      for (int j = 0; j < t.columns; ++j) {
        append(row, int64_t{j} * t.tile, (int64_t{j} + 1) * t.tile,
               t.cover[static_cast<size_t>(base + j)], r.S);
      }
      // Queries of two tile rows: full only where both are, empty only where both are.
      seen = i == r.begin / t.tile ? row : combine(seen, row, r.S, [](Cover x, Cover y) {
        return x == y ? x : Cover::kPartial;
      });
    }
    out = std::move(seen);
  }
  void forbid(const TilePosition& t, float* s, float* slope) const {
    a.forbid(a.self.get(), t, s, slope);
  }
  void allowed(const TilePosition& t, uint8_t* out) const { kernel::allowed(a, t, out); }
};

/// `in_place`: its parts have forbid(), and so has it.
template <class M>
Mask composed(M m, int stride, bool in_place) {
  Mask mask = reach_of(std::move(m));
  mask.stride = stride;
  if constexpr (requires { m.forbid(TilePosition(), nullptr, nullptr); }) {
    if (in_place) {
      mask.forbid = [](const void* self, const TilePosition& t, float* s, float* slope) {
        static_cast<const M*>(self)->forbid(t, s, slope);
      };
      return mask;
    }
  }
  mask.allowed = [](const void* self, const TilePosition& t, uint8_t* out) {
    static_cast<const M*>(self)->allowed(t, out);
  };
  return mask;
}

}  // namespace detail

ATTZOO_API Mask all_of(Mask a, Mask b) {
  if (!a.self) return b;
  if (!b.self) return a;
  const int stride = std::max(a.stride, b.stride);
  const bool in_place = a.forbid && b.forbid;
  return detail::composed(detail::MaskPair<detail::Lesser>{std::move(a), std::move(b)}, stride,
                          in_place);
}

ATTZOO_API Mask any_of(Mask a, Mask b) {
  if (!a.self || !b.self) return {};
  return detail::composed(detail::MaskPair<detail::Greater>{std::move(a), std::move(b)}, 1, false);
}

ATTZOO_API Mask none_of(Mask a) {
  return detail::composed(detail::OppositeMask{std::move(a)}, 1, false);
}

ATTZOO_API Mask tiled(Mask mask, std::shared_ptr<const TileCover> tiles) {
  const bool in_place = mask.forbid;
  return detail::composed(detail::TiledMask{std::move(mask), std::move(tiles)}, 1, in_place);
}

namespace detail {

template <class T>
struct ScorePair {
  Score<T> a, b;

  void modify(const TilePosition& t, T* s, T* slope) const {
    a.modify(a.self.get(), t, s, slope);
    b.modify(b.self.get(), t, s, slope);
  }
  /// Row by row, because b needs the scores between.
  void collect(const TilePosition& tile, int count, const T* s, T* ds,
               const TensorGradient<T>* to) const {
    T between[TilePosition::kMostLanes];
    for (int j = 0; j < tile.keys; ++j, s += tile.lanes, ds += tile.lanes) {
      const auto t = tile.row(j);
      std::memcpy(between, s, static_cast<size_t>(t.lanes) * sizeof(T));
      a.modify(a.self.get(), t, between, nullptr);
      b.collect(b.self.get(), t, count, between, ds, to + a.tensors);
      a.collect(a.self.get(), t, count, s, ds, to);
    }
  }
};

}  // namespace detail

template <class T>
Score<T> chain(Score<T> a, Score<T> b) {
  if (!a.modify) return b;
  if (!b.modify) return a;
  using Pair = detail::ScorePair<T>;
  const int tensors = a.tensors + b.tensors;
  const bool additive = a.additive && b.additive;
  return {std::make_shared<const Pair>(Pair{std::move(a), std::move(b)}),
          [](const void* self, const TilePosition& t, T* s, T* slope) {
            static_cast<const Pair*>(self)->modify(t, s, slope);
          },
          [](const void* self, const TilePosition& t, int count, const T* s, T* ds,
             const TensorGradient<T>* to) {
            static_cast<const Pair*>(self)->collect(t, count, s, ds, to);
          },
          tensors, additive};
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
