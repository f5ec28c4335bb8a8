#pragma once
/// \file
/// The named masks (functional/masks.hpp) as values: a few numbers or tensors that describe who
/// attends to whom, what that means on tensors, and as plain numbers and pointers.

#include <attzoo/core/documents.hpp>
#include <attzoo/core/modifier/grid.hpp>
#include <attzoo/kernel/modifier/mask_forms.hpp>

#include <algorithm>
#include <concepts>
#include <utility>

namespace attzoo {

/// Says which pairs may attend. `evaluate` is its meaning: bool, true = attend, broadcastable to
/// [B, H, rows, columns] of the grid. Optional members: `check(shape, device)` throws where it does
/// not fit a problem, before anything is computed; `tensors(out)` appends what it reads, so that
/// changes in place are noticed. With `bind(shape)`, its form for the kernels
/// (kernel/modifier/form.hpp), it says what it reaches and runs in the fused CPU kernels, without
/// in chunks of query rows.
template <class M>
concept MaskMod = std::copy_constructible<M> && M::is_mask &&
    requires(const M& m, const core::Grid& g) {
  { m.evaluate(g) } -> std::same_as<torch::Tensor>;
};

/// No limit on one side of a window.
inline constexpr int64_t kUnbounded = int64_t{1} << 40;

namespace core {

struct FullMask {
  static constexpr bool is_mask = true;
  torch::Tensor evaluate(const Grid& g) const;
};

/// A mask of kernel/modifier/masks.hpp. `aligned`: it counts queries among the keys.
template <class F>
struct NamedMask {
  static constexpr bool is_mask = true;
  F f = {};
  bool aligned = true;
  bool is_raw() const { return !aligned; }
  torch::Tensor evaluate(const Grid& g) const;
  kernel::CallableMask<F> bind(const Shape& n) const {
    auto g = f;
    // A rate beyond the lengths leaves the same pairs, and the kernel walks rate residues.
    if constexpr (requires { g.rate; }) {
      g.rate = static_cast<int>(std::clamp<int64_t>(std::max(n.L, n.S), 1, g.rate));
    }
    return {g, aligned ? shift(n) : 0};
  }
};
using CausalMask = NamedMask<kernel::Causal>;
using WindowMask = NamedMask<kernel::Window>;
using DilatedMask = NamedMask<kernel::Dilated>;
using BlocksMask = NamedMask<kernel::Blocks>;
using PrefixMask = NamedMask<kernel::Prefix>;

/// A number of theirs, which have 32 bits: 2^30 is beyond any length.
inline int to_int(int64_t n) { return static_cast<int>(std::min(n, int64_t{1} << 30)); }
inline kernel::Blocks blocks_from(int64_t size, int64_t period, int64_t offset, int64_t end) {
  return {to_int(size), to_int(period), to_int(offset), to_int(end)};
}

struct DocumentsMask {
  static constexpr bool is_mask = true;
  Documents documents;
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const { out.insert(out.end(), {documents.offsets, documents.ids}); }
  const DocumentsMask* kept_apart() const { return this; }
  kernel::Documents bind(const Shape& n) const;
  torch::Tensor evaluate(const Grid& g) const;
};

struct GlobalTokensMask {
  static constexpr bool is_mask = true;
  torch::Tensor is_global;  // bool [1 or B, S]
  bool queries = true, keys = true;
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const { out.push_back(is_global); }
  kernel::GlobalTokens bind(const Shape& n) const;
  torch::Tensor evaluate(const Grid& g) const;
};

struct TensorMask {
  static constexpr bool is_mask = true;
  torch::Tensor mask;  // bool, rank 4, broadcastable
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const { out.push_back(mask); }
  kernel::DenseMask bind(const Shape& n) const;
  torch::Tensor evaluate(const Grid& g) const { return g.of(mask); }
};

/// An interval of keys for every query, int32 [B, H, L], contiguous. Intervals of later queries
/// neither begin nor end earlier than those of earlier ones, but for empty ones.
struct BandMask {
  static constexpr bool is_mask = true;
  torch::Tensor begin, end;
  void tensors(Captured& out) const { out.insert(out.end(), {begin, end}); }
  kernel::Bands bind(const Shape& n) const;
  torch::Tensor evaluate(const Grid& g) const;
};

}  // namespace core
}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/core/modifier/mask_values.ipp>
#endif
