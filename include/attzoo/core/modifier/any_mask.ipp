#pragma once
// Definitions of any_mask.hpp.

#include <attzoo/core/modifier/any_mask.hpp>

#include <algorithm>

namespace attzoo::core {

ATTZOO_API AnyMask all_of(AnyMask a, AnyMask b) {
  if (a.is_full()) return b;
  if (b.is_full()) return a;
  return AndMask{{std::move(a), std::move(b)}};
}
ATTZOO_API AnyMask any_of(AnyMask a, AnyMask b) {
  if (a.is_full() || b.is_full()) return {};
  return OrMask{{std::move(a), std::move(b)}};
}

ATTZOO_API void MaskPair::check(const Shape& n, const torch::Device& device) const {
  a.check(n, device);
  b.check(n, device);
}
ATTZOO_API void MaskPair::tensors(Captured& out) const {
  a.tensors(out);
  b.tensors(out);
}
ATTZOO_API torch::Tensor AndMask::evaluate(const Grid& g) const {
  return torch::logical_and(a.evaluate(g), b.evaluate(g));
}
ATTZOO_API kernel::Mask cpu_form(const AndMask& m, const Shape& n) {
  return kernel::all_of(m.a.on_cpu(n), m.b.on_cpu(n));
}

ATTZOO_API torch::Tensor OrMask::evaluate(const Grid& g) const {
  return torch::logical_or(a.evaluate(g), b.evaluate(g));
}
ATTZOO_API kernel::Mask cpu_form(const OrMask& m, const Shape& n) {
  return kernel::any_of(m.a.on_cpu(n), m.b.on_cpu(n));
}

ATTZOO_API torch::Tensor NotMask::evaluate(const Grid& g) const {
  return torch::logical_not(a.evaluate(g));
}
ATTZOO_API kernel::Mask cpu_form(const NotMask& m, const Shape& n) {
  return kernel::none_of(m.a.on_cpu(n));
}

/// Evaluates a mask one row of tiles at a time.
ATTZOO_API std::shared_ptr<const kernel::TileCover> tile_cover(const AnyMask& mask,
                                                               const Shape& n) {
  constexpr int64_t kTile = 64;
  const int64_t rows = (n.L + kTile - 1) / kTile, columns = (n.S + kTile - 1) / kTile;
  auto tiles = std::make_shared<kernel::TileCover>();
  tiles->tile = kTile;
  tiles->batches = static_cast<int>(n.B);
  tiles->heads = static_cast<int>(n.H);
  tiles->rows = static_cast<int>(rows);
  tiles->columns = static_cast<int>(columns);
  tiles->cover.resize(static_cast<size_t>(n.B * n.H * rows * columns));
  const auto by_tile = [&](const torch::Tensor& t, bool padding) {  // [B, H, S] -> [.., 64]
    return torch::constant_pad_nd(t, {0, columns * kTile - n.S}, padding)
        .view({n.B, n.H, columns, kTile});
  };
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t begin = row * kTile, end = std::min(n.L, begin + kTile);
    const auto allowed =
        mask.evaluate(Grid(n, begin, end, torch::kCPU)).expand({n.B, n.H, end - begin, n.S});
    const auto any = by_tile(allowed.any(2), false).any(-1).to(torch::kInt32);
    const auto all = by_tile(allowed.all(2), true).all(-1).to(torch::kInt32);
    const auto cover = (any + all).contiguous();  // 0 empty, 1 partial, 2 full
    const int* from = cover.const_data_ptr<int>();
    for (int64_t head = 0; head < n.B * n.H; ++head) {
      for (int64_t column = 0; column < columns; ++column) {
        tiles->cover[static_cast<size_t>((head * rows + row) * columns + column)] =
            static_cast<kernel::Cover>(from[head * columns + column]);
      }
    }
  }
  return tiles;
}

ATTZOO_API BlockMask::BlockMask(AnyMask of, const Shape& n)
    : mask(std::move(of)), L(n.L), S(n.S), tiles(tile_cover(mask, n)) {
  Captured read;
  mask.tensors(read);
  unchanged = Unchanged(read);
}
ATTZOO_API void BlockMask::check(const Shape& n, const torch::Device& device) const {
  TORCH_CHECK_VALUE(n.L == L && n.S == S && (tiles->batches == 1 || tiles->batches == n.B) &&
                        (tiles->heads == 1 || tiles->heads == n.H),
                    "block_mask: made for B=", tiles->batches, " H=", tiles->heads, " L=", L,
                    " S=", S, ", got B=", n.B, " H=", n.H, " L=", n.L, " S=", n.S);
  mask.check(n, device);
  unchanged.check("block_mask");
}
ATTZOO_API AnyMask BlockMask::placed(const torch::Tensor&) const {
  TORCH_CHECK_VALUE(false,
                    "block_mask: its mask counts in documents (in_document), which come with the "
                    "call, after its tiles were made; pass the mask itself");
}
ATTZOO_API kernel::Mask cpu_form(const BlockMask& m, const Shape& n) {
  return kernel::tiled(m.mask.on_cpu(n), m.tiles);
}

/// The documents that a conjunction keeps apart; null without any.
inline const DocumentsMask* documents_in(const AnyMask& mask) {
  if (const auto* both = mask.get_if<AndMask>()) {
    const auto* first = documents_in(both->a);
    return first ? first : documents_in(both->b);
  }
  if (const auto* tiles = mask.get_if<BlockMask>()) return documents_in(tiles->mask);
  return mask.get_if<DocumentsMask>();
}

ATTZOO_API torch::Tensor asked_places(const AnyMask& mask, bool score_asks, const Shape& n,
                                      const torch::Device& device) {
  const auto* apart = score_asks || mask.asks_places() ? documents_in(mask) : nullptr;
  if (!apart) return {};
  apart->check(n, device);
  return pack(apart->documents, "in_document").position;
}

}  // namespace attzoo::core
