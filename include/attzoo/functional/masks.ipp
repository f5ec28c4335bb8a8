#pragma once
// Definitions of masks.hpp.

#include <attzoo/functional/masks.hpp>

#include <algorithm>

namespace attzoo {

ATTZOO_API core::CausalMask causal(CausalAlignment alignment) {
  return {.aligned = alignment != CausalAlignment::kTopLeft};
}

ATTZOO_API core::WindowMask window(int64_t left, int64_t right) {
  TORCH_CHECK_VALUE(left >= 0 && right >= 0, "window: left and right must be >= 0, got left=", left,
                    " right=", right);
  return {{core::to_int(left), core::to_int(right)}};
}

ATTZOO_API core::DilatedMask dilated(int64_t rate) {
  TORCH_CHECK_VALUE(rate >= 1, "dilated: rate must be >= 1, got ", rate);
  return {{core::to_int(rate)}};
}

ATTZOO_API core::BlocksMask blocks(int64_t size) {
  TORCH_CHECK_VALUE(size >= 1, "blocks: size must be >= 1, got ", size);
  return {core::blocks_from(size, size, 0, kUnbounded)};
}

ATTZOO_API core::PrefixMask prefix(int64_t length) {
  TORCH_CHECK_VALUE(length >= 0, "prefix: length must be >= 0, got ", length);
  return {{core::to_int(length)}};
}

ATTZOO_API core::DocumentsMask documents(const Documents& d) {
  core::check_documents(d, "documents");
  const auto copy = [](const torch::Tensor& t) { return t.defined() ? t.clone() : t; };
  return {{copy(d.offsets), copy(d.ids)}};
}

ATTZOO_API core::DocumentsMask documents(const torch::Tensor& offsets_or_ids) {
  const auto& t = offsets_or_ids;
  return documents(t.defined() && t.dim() == 2 ? Documents{.ids = t} : Documents{.offsets = t});
}

ATTZOO_API core::GlobalTokensMask global_tokens(const torch::Tensor& is_global) {
  core::check_dense(is_global, "global_tokens", "is_global");
  TORCH_CHECK_VALUE(is_global.dim() == 1 || is_global.dim() == 2,
                    "global_tokens: is_global must have shape [S] or [B, S], got ",
                    is_global.sizes());
  const auto flags = is_global.to(torch::kBool);
  return {flags.dim() == 1 ? flags.unsqueeze(0) : flags};
}

ATTZOO_API core::TensorMask mask_tensor(const torch::Tensor& mask) {
  core::check_dense(mask, "mask_tensor", "mask");
  TORCH_CHECK_VALUE(mask.dim() >= 2 && mask.dim() <= 4,
                    "mask_tensor: expected a mask [L, S], [B, L, S] or [B, H, L, S], got ",
                    mask.sizes());
  TORCH_CHECK_TYPE(mask.scalar_type() == torch::kBool,
                   "mask_tensor: expected bool (true = attend), got ", mask.scalar_type(),
                   "; a 0/1 mask becomes one by .to(torch::kBool), what is added to the scores is "
                   "a bias_tensor");
  return {core::mask_rank4(mask)};
}

ATTZOO_API core::BlockMask block_mask(core::AnyMask mask, int64_t L, int64_t S, int64_t batch,
                                      int64_t heads) {
  TORCH_CHECK_VALUE(L > 0 && S > 0 && batch > 0 && heads > 0,
                    "block_mask: L, S, batch and heads must be > 0, got L=", L, " S=", S,
                    " batch=", batch, " heads=", heads);
  TORCH_CHECK_VALUE(core::product_at_most({batch, heads, L / 64 + 1, S / 64 + 1}, 1 << 28) &&
                        std::max(L, S) <= 1 << 30,
                    "block_mask: at most 2^28 tiles of 64 x 64, got L=", L, " S=", S,
                    " batch=", batch, " heads=", heads);
  const core::Shape n{batch, heads, L, S};
  const auto places = core::asked_places(mask, false, n, torch::kCPU);
  if (places.defined()) mask = mask.placed(places);
  mask.check(n, torch::kCPU);
  return {std::move(mask), n};
}

}  // namespace attzoo
