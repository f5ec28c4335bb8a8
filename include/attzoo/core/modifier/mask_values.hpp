#pragma once
/// \file
/// The named masks (functional/masks.hpp) as values: a few numbers or tensors that describe who
/// attends to whom, and what that means on tensors. A backend reads the description and makes a
/// form of its own of it; cpu/forms.hpp is the CPU's.

#include <attzoo/core/documents.hpp>
#include <attzoo/core/modifier/grid.hpp>

#include <concepts>
#include <utility>

namespace attzoo {

/// Says which pairs may attend. `evaluate` is its meaning: bool, true = attend, broadcastable to
/// [B, H, rows, columns] of the grid. Optional members: `check(shape, device)` throws where it does
/// not fit a problem, before anything is computed; `tensors(out)` appends what it reads, so that
/// changes in place are noticed. With a free function `cpu_form(mask, shape)` found beside its type
/// it runs in the fused CPU kernels, without in chunks of query rows.
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

struct CausalMask {
  static constexpr bool is_mask = true;
  bool top_left = false;
  int64_t offset(const Shape& n) const { return top_left ? 0 : n.S - n.L; }
  bool is_raw() const { return top_left; }
  torch::Tensor evaluate(const Grid& g) const;
};

struct WindowMask {
  static constexpr bool is_mask = true;
  int64_t left, right;
  torch::Tensor evaluate(const Grid& g) const;
};

struct DilatedMask {
  static constexpr bool is_mask = true;
  int64_t rate;
  torch::Tensor evaluate(const Grid& g) const;
};

/// Blocks of `size` positions that start at offset, offset + period, ...; from `end` on there are
/// none. Two positions attend if one block holds both.
struct SameBlockMask {
  static constexpr bool is_mask = true;
  int64_t size, period, offset, end;
  torch::Tensor evaluate(const Grid& g) const;

 private:
  std::pair<torch::Tensor, torch::Tensor> locate(const torch::Tensor& i) const;
};

struct PrefixMask {
  static constexpr bool is_mask = true;
  int64_t length;
  torch::Tensor evaluate(const Grid& g) const;
};

struct DocumentsMask {
  static constexpr bool is_mask = true;
  Documents documents;
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const { out.insert(out.end(), {documents.offsets, documents.ids}); }
  torch::Tensor evaluate(const Grid& g) const;
};

struct GlobalTokensMask {
  static constexpr bool is_mask = true;
  torch::Tensor is_global;  // bool [1 or B, S]
  bool queries = true, keys = true;
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const { out.push_back(is_global); }
  torch::Tensor evaluate(const Grid& g) const;
};

struct TensorMask {
  static constexpr bool is_mask = true;
  torch::Tensor mask;  // bool, rank 4, broadcastable
  void check(const Shape& n, const torch::Device& device) const;
  void tensors(Captured& out) const { out.push_back(mask); }
  torch::Tensor evaluate(const Grid& g) const { return g.of(mask); }
};

/// An interval of keys for every query, int32 [B, H, L], contiguous. Intervals of later queries
/// neither begin nor end earlier than those of earlier ones, but for empty ones.
struct BandMask {
  static constexpr bool is_mask = true;
  torch::Tensor begin, end;
  void tensors(Captured& out) const { out.insert(out.end(), {begin, end}); }
  torch::Tensor evaluate(const Grid& g) const;
};

}  // namespace core
}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/core/modifier/mask_values.ipp>
#endif
