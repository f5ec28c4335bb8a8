#pragma once
/// \file
/// The named masks (functional/masks.hpp) as values: a few numbers or tensors that describe who
/// attends to whom, what that means on tensors, and as plain numbers and pointers.

#include <attzoo/core/documents.hpp>
#include <attzoo/core/modifier/grid.hpp>
#include <attzoo/core/modifier/symbol.hpp>
#include <attzoo/kernel/modifier/mask_forms.hpp>

#include <algorithm>
#include <concepts>
#include <iterator>
#include <utility>
#include <vector>

namespace attzoo {

/// Says which pairs may attend. `evaluate` is its meaning: bool, true = attend, broadcastable to
/// [B, H, rows, columns] of the grid. Optional members: `check(shape, device)` throws where it does
/// not fit a problem, before anything is computed; `tensors(out)` appends what it reads, so that
/// changes in place are noticed. With `bind(shape)`, its form for the kernels
/// (kernel/modifier/form.hpp), it says what it reaches and runs in the fused CPU kernels, without
/// in chunks of query rows; with `symbol(pair)` (core/modifier/symbol.hpp) it has a source in CUDA
/// C++ (functional/cuda_source.hpp).
template <class M>
concept MaskMod = M::is_mask && std::copy_constructible<M> &&
    requires(const M& m, const core::Grid& g) {
  { m.evaluate(g) } -> std::same_as<torch::Tensor>;
};

/// No limit on one side of a window.
inline constexpr int64_t kUnbounded = int64_t{1} << 40;

namespace core {

/// How many keys before and behind a query's place among the keys it attends to, where that is all
/// that a mask says; kUnbounded and more lifts a side. All of no masks: none is forbidden.
struct WindowSize {
  int64_t left = kUnbounded, right = kUnbounded;
  bool known = true;  // else the mask is no window
  friend WindowSize all_of(const WindowSize& a, const WindowSize& b) {
    return {std::min(a.left, b.left), std::min(a.right, b.right), a.known && b.known};
  }
  friend WindowSize any_of(const WindowSize&, const WindowSize&) { return {.known = false}; }
  friend WindowSize none_of(const WindowSize&) { return {.known = false}; }
};
inline WindowSize window_size_of(const kernel::Causal&) { return {.right = 0}; }
inline WindowSize window_size_of(const kernel::Window& w) { return {w.left, w.right}; }

struct FullMask {
  static constexpr bool is_mask = true;
  torch::Tensor evaluate(const Grid& g) const;
};

/// Throws c10::ValueError unless the keys are the tokens of a grid of so many dimensions, and the
/// queries some of them.
ATTZOO_API void check_grid(int64_t tokens, size_t dimensions, const Shape& n);

/// A mask of kernel/modifier/masks.hpp. `aligned`: it counts queries among the keys.
template <class F>
struct NamedMask {
  static constexpr bool is_mask = true;
  F f = {};
  bool aligned = true;
  bool is_raw() const { return !aligned; }
  void check([[maybe_unused]] const Shape& n, const torch::Device&) const {
    if constexpr (requires { f.tokens(); }) check_grid(f.tokens(), std::size(f.axes), n);
  }
  torch::Tensor evaluate(const Grid& g) const;
  Symbol symbol(const SymbolPair& p) const {
    return f(p.b, p.h, aligned ? p.aligned_q() : p.q, p.kv);
  }
  WindowSize window_size([[maybe_unused]] const Shape& n) const {
    if constexpr (requires { window_size_of(f); }) {
      const auto w = window_size_of(f);
      const int64_t by = aligned ? 0 : n.S - n.L;
      return {w.left + by, w.right - by};
    }
    return {.known = false};
  }
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
  Symbol symbol(const SymbolPair& p) const;
};

struct GlobalTokensMask {
  static constexpr bool is_mask = true;
  torch::Tensor is_global;  // bool [1 or B, S]
  bool queries = true, keys = true;
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const { out.push_back(is_global); }
  kernel::GlobalTokens bind(const Shape& n) const;
  torch::Tensor evaluate(const Grid& g) const;
  Symbol symbol(const SymbolPair& p) const;
};

struct TensorMask {
  static constexpr bool is_mask = true;
  torch::Tensor mask;  // bool, rank 4, broadcastable
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const { out.push_back(mask); }
  kernel::DenseMask bind(const Shape& n) const;
  TensorMask at(const PairNumbers& numbers) const { return {entries_at(mask, numbers)}; }
  torch::Tensor evaluate(const Grid& g) const { return g.of(mask); }
  Symbol symbol(const SymbolPair& p) const {
    return SymbolPair::of(mask, {p.b, p.h, p.q, p.kv}) != 0;
  }
};

/// An interval of keys for every query, int32 [B, H, L], contiguous. Intervals of later queries
/// neither begin nor end earlier than those of earlier ones, but for empty ones.
struct BandMask {
  static constexpr bool is_mask = true;
  torch::Tensor begin, end;
  void tensors(Captured& out) const { out.insert(out.end(), {begin, end}); }
  kernel::Bands bind(const Shape& n) const;
  torch::Tensor evaluate(const Grid& g) const;
  Symbol symbol(const SymbolPair& p) const;
};

/// For each block of queries the blocks of keys that it may attend to, one bit for each.
struct ChosenBlocksMask {
  static constexpr bool is_mask = true;
  torch::Tensor bits;          // int32 [1 or B, heads, blocks of queries, words]; heads divides H
  std::vector<int64_t> sizes;  // of what was given
  int64_t query_block, key_block;
  bool of_all_keys;  // else at most so many blocks of them:
  int64_t columns;
  // The rows of queries and the columns of keys, int32 [1 or B, L] and [1 or B, S], where blocks
  // are of other sizes; undefined: as those say.
  torch::Tensor query_row = {}, key_column = {};

  /// chosen [B, H, blocks of queries, ...]: bool, of all blocks of keys; or their numbers, -1:
  /// none.
  ChosenBlocksMask(const torch::Tensor& chosen, int64_t query_block, int64_t key_block);
  /// bool [B, H, rows, columns] for blocks of any sizes, the tokens of each together: a number for
  /// each query and key.
  ChosenBlocksMask(const torch::Tensor& chosen, torch::Tensor query_row, torch::Tensor key_column);
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const { out.insert(out.end(), {bits, query_row, key_column}); }
  kernel::ChosenBlocks bind(const Shape& n) const;
  torch::Tensor evaluate(const Grid& g) const;
  Symbol symbol(const SymbolPair& p) const;

 private:
  int64_t heads_in_group(const Shape& n) const { return n.H / bits.size(1); }
  /// Blocks of queries whose rows are not there.
  int64_t skipped(const Shape& n) const { return (n.S - 1) / query_block + 1 - bits.size(2); }
  /// With words for all keys.
  torch::Tensor all_bits(const Shape& n) const;
};

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_CORE
#include <attzoo/core/modifier/mask_values.ipp>
#endif
