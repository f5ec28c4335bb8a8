#pragma once
/// \file
/// Masks and changes of scores with their types erased, and how they are composed. What they do to
/// a tile is compiled once for each form (make_modifier.hpp), whatever it is composed with.

#include <attzoo/kernel/modifier/reach.hpp>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// A tile of scores [keys x lanes]: rows are keys kv, kv + kv_step, ..., lanes the queries q[0..).
struct TilePosition {
  static constexpr int kMostLanes = 64, kMostKeys = 128;
  int b, h;
  const int* q;
  int lanes;  // a multiple of 16
  int kv, kv_step, keys;
  bool partial;  // the mask decides pair by pair

  int size() const { return keys * lanes; }
  /// Its row j alone.
  TilePosition row(int j) const { return {b, h, q, lanes, kv + j * kv_step, kv_step, 1, partial}; }
};

/// The gradient of a captured tensor, by the strides of [B, H, L, S]; data is null if nobody asks.
template <class T>
struct TensorGradient {
  T* data = nullptr;
  int64_t b = 0, h = 0, q = 0, kv = 0;
};

/// Who attends to whom, of any type; a default constructed one lets everybody. Without forbid() and
/// allowed() it says what is reached alone, which is all that other devices ask.
struct Mask {
  std::shared_ptr<const void> self = nullptr;
  /// Fills `out`, empty before, with the keys that these queries reach (schedule.hpp).
  void (*reach)(const void* self, const Rows&, Segments&) = nullptr;
  /// Sets scores s to -inf where lane i may not attend to key j of the tile, and their slopes,
  /// unless null, to 0. Null where parts are joined by bytes.
  void (*forbid)(const void* self, const TilePosition&, float* s, float* slope) = nullptr;
  /// Where there is no forbid(): out[j * lanes + i] = 1 where lane i may attend to key j, else 0.
  void (*allowed)(const void* self, const TilePosition&, uint8_t* out) = nullptr;
  int stride = 1;  // the step at which all allowed keys of a query lie: a dilation's rate
};

/// What m.reach(rows, segments) says, at its stride, if it has one, and no more: for any device.
template <class M>
Mask reach_of(M m) {
  int stride = 1;
  if constexpr (requires { m.stride(); }) stride = std::max(1, m.stride());
  return {.self = std::make_shared<const M>(std::move(m)),
          .reach = [](const void* self, const Rows& rows,
                      Segments& out) { static_cast<const M*>(self)->reach(rows, out); },
          .stride = stride};
}

ATTZOO_API void reach(const Mask& mask, const Rows& rows, Segments& out);
/// What Mask::allowed says, of any mask.
ATTZOO_API void allowed(const Mask& mask, const TilePosition& t, uint8_t* out);

ATTZOO_API Mask all_of(Mask a, Mask b);
ATTZOO_API Mask any_of(Mask a, Mask b);
ATTZOO_API Mask none_of(Mask a);

/// How each tile of queries x keys is covered, evaluated once.
struct TileCover {
  int tile, batches, heads, rows, columns;
  std::vector<Cover> cover;  // [batches, heads, rows, columns]
};
/// `mask`, which reaches what its tiles say.
ATTZOO_API Mask tiled(Mask mask, std::shared_ptr<const TileCover> tiles);

/// How scores change, of any type; a default constructed one does not change them.
template <class T>
struct Score {
  std::shared_ptr<const void> self = nullptr;
  /// s = f(s) on a tile; `slope`, unless null, is multiplied by f'(s).
  void (*modify)(const void* self, const TilePosition&, T* s, T* slope) = nullptr;
  /// Takes ds, the gradients of the scores after f, to those of the scores before it, s, in place.
  /// Adds those of the tensors that f holds at to[0 .. tensors). Only the first `count` lanes of
  /// the tile are queries; where ds is 0 nothing happens.
  void (*collect)(const void* self, const TilePosition&, int count, const T* s, T* ds,
                  const TensorGradient<T>* to) = nullptr;
  int tensors = 0;
  bool additive = false;  // f(s) is s and something that s is not part of: its slope is 1
};

/// a, then b. The tensors of a come first.
template <class T>
Score<T> chain(Score<T> a, Score<T> b);

/// Of one problem.
template <class T>
struct Modifiers {
  Mask mask;
  Score<T> score;
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/modifier/modifier.ipp>
#endif
