#pragma once
// Definitions of any_mask.hpp.

#include <attzoo/core/modifier/any_mask.hpp>

#include <algorithm>

namespace attzoo::core {

ATTZOO_API AnyMask::AnyMask(MaskNode node) : node_(std::make_shared<MaskNode>(std::move(node))) {}
ATTZOO_API void AnyMask::set(std::shared_ptr<const MaskPart> part) {
  node_ = std::make_shared<MaskNode>(MaskNode{MaskNode::Op::kPart, std::move(part), {}, {}});
}

ATTZOO_API AnyMask all_of(AnyMask a, AnyMask b) {
  if (a.is_full()) return b;
  if (b.is_full()) return a;
  return AnyMask(MaskNode{MaskNode::Op::kAll, nullptr, std::move(a), std::move(b)});
}
ATTZOO_API AnyMask any_of(AnyMask a, AnyMask b) {
  if (a.is_full() || b.is_full()) return {};
  return AnyMask(MaskNode{MaskNode::Op::kAny, nullptr, std::move(a), std::move(b)});
}
ATTZOO_API AnyMask none_of(AnyMask a) {
  return AnyMask(MaskNode{MaskNode::Op::kNone, nullptr, std::move(a), {}});
}

ATTZOO_API bool AnyMask::all_parts(const std::function<bool(const MaskPart&)>& f) const {
  if (!node_) return true;
  return node_->part ? f(*node_->part) : node_->a.all_parts(f) && node_->b.all_parts(f);
}
ATTZOO_API void AnyMask::check(const Shape& n, const torch::Device& device) const {
  all_parts([&](const MaskPart& part) { return part.check(n, device), true; });
}
ATTZOO_API void AnyMask::tensors(Captured& out) const {
  all_parts([&](const MaskPart& part) { return part.tensors(out), true; });
}
ATTZOO_API bool AnyMask::is_raw() const {
  return !all_parts([](const MaskPart& part) { return !part.is_raw(); });
}
ATTZOO_API bool AnyMask::asks_places() const {
  return !all_parts([](const MaskPart& part) { return !part.asks_places(); });
}
ATTZOO_API bool AnyMask::has_form(const std::type_info& type) const {
  return all_parts([&](const MaskPart& part) { return part.form(type, nullptr, nullptr); });
}

ATTZOO_API torch::Tensor AnyMask::evaluate(const Grid& g) const {
  if (!node_) return FullMask().evaluate(g);
  const auto &a = node_->a, &b = node_->b;
  switch (node_->op) {
    case MaskNode::Op::kAll:
      return torch::logical_and(a.evaluate(g), b.evaluate(g));
    case MaskNode::Op::kAny:
      return torch::logical_or(a.evaluate(g), b.evaluate(g));
    case MaskNode::Op::kNone:
      return torch::logical_not(a.evaluate(g));
    default:
      return node_->part->evaluate(g);
  }
}
ATTZOO_API AnyMask AnyMask::placed(const torch::Tensor& places) const {
  return fold<AnyMask>([&](const MaskPart& part) { return part.placed(places); });
}
ATTZOO_API kernel::Mask AnyMask::reach(const Shape& n) const {
  return fold<kernel::Mask>([&](const MaskPart& part) { return part.reach(n); });
}
ATTZOO_API const DocumentsMask* AnyMask::documents() const {
  if (!node_ || node_->op == MaskNode::Op::kAny || node_->op == MaskNode::Op::kNone) return nullptr;
  if (node_->part) return node_->part->documents();
  const auto* first = node_->a.documents();
  return first ? first : node_->b.documents();
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
ATTZOO_API torch::Tensor asked_places(const AnyMask& mask, bool score_asks, const Shape& n,
                                      const torch::Device& device) {
  const auto* apart = score_asks || mask.asks_places() ? mask.documents() : nullptr;
  if (!apart) return {};
  apart->check(n, device);
  return pack(apart->documents, "in_document").position;
}

}  // namespace attzoo::core
