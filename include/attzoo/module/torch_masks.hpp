#pragma once
/// \file
/// The masks of torch.nn.MultiheadAttention, whose truth values mean the opposite of attzoo's.

#include <attzoo/config.hpp>
#include <attzoo/module/inputs.hpp>

#include <cstdint>
#include <optional>

namespace attzoo {

/// What torch.nn.MultiheadAttention takes as masks, as inputs of attzoo's modules. Dimensions: B
/// batch, H heads, L query length, S key length.
///
/// \param attn_mask [L, S], or [B * H, L, S] with `num_heads` = H; bool, true = MASKED, or
///   floating, added to the scores; undefined: none
/// \param key_padding_mask [B, S]; bool, true = IGNORED, or floating, added to the scores of every
///   query; undefined: none
/// \return `mask` (true = attend, or floating) and `key_padding_mask` (true = real token). A
///   floating key padding becomes part of `mask`. Floating masks keep their gradient.
///
/// torch.nn.functional.scaled_dot_product_attention is not meant: its truth values are attzoo's.
/// A query that may attend to nothing gives NaN in PyTorch, and w_o's bias here.
///
/// Throws c10::ValueError for another shape, sizes or devices that do not agree, and a rank of 3
/// without num_heads; c10::TypeError for another dtype, and for sparse, nested or meta tensors.
/// Example: `attn(x, from_torch_masks(attn_mask, key_padding_mask))`
ATTZOO_API AttentionInputs from_torch_masks(const torch::Tensor& attn_mask,
                                            const torch::Tensor& key_padding_mask = {},
                                            std::optional<int64_t> num_heads = std::nullopt);

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/checks.hpp>

#include <c10/util/Exception.h>

#include <cmath>

namespace attzoo::core {

inline constexpr const char* kTorchMasks = "from_torch_masks: ";

ATTZOO_API void check_torch_mask(const torch::Tensor& mask, const char* name) {
  if (!mask.defined()) return;
  const auto problem = storage_problem(mask);
  TORCH_CHECK_TYPE(problem.empty(), kTorchMasks, name, " must be a dense tensor, got ", problem);
  TORCH_CHECK_TYPE(mask.scalar_type() == torch::kBool || mask.is_floating_point(), kTorchMasks,
                   name, " must be bool (true = masked) or floating (added), got ",
                   mask.scalar_type());
}

/// [L, S] stays, [B * H, L, S] becomes [B, H, L, S].
ATTZOO_API torch::Tensor split_torch_heads(const torch::Tensor& mask,
                                           std::optional<int64_t> num_heads) {
  TORCH_CHECK_VALUE(!num_heads || *num_heads > 0, kTorchMasks, "num_heads must be > 0, got ",
                    *num_heads);
  TORCH_CHECK_VALUE(mask.dim() == 2 || mask.dim() == 3, kTorchMasks,
                    "attn_mask must be [L, S] or [B * num_heads, L, S], got ", mask.sizes());
  if (mask.dim() == 2) return mask;
  TORCH_CHECK_VALUE(num_heads, kTorchMasks, "attn_mask ", mask.sizes(),
                    " is [B * num_heads, L, S], which needs num_heads");
  TORCH_CHECK_VALUE(mask.size(0) % *num_heads == 0, kTorchMasks, "num_heads=", *num_heads,
                    " must divide the first size of attn_mask ", mask.sizes());
  return mask.unflatten(0, {mask.size(0) / *num_heads, *num_heads});
}

/// The sum of both in the scores: [B, 1 or H, 1 or L, S].
ATTZOO_API torch::Tensor add_torch_padding(const torch::Tensor& mask,
                                           const torch::Tensor& padding) {
  const auto added = padding.unsqueeze(1).unsqueeze(1);
  if (!mask.defined()) return added;
  return mask.is_floating_point() ? mask + added : added.masked_fill(mask, -INFINITY);
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API AttentionInputs from_torch_masks(const torch::Tensor& attn_mask,
                                            const torch::Tensor& key_padding_mask,
                                            std::optional<int64_t> num_heads) {
  core::check_torch_mask(attn_mask, "attn_mask");
  core::check_torch_mask(key_padding_mask, "key_padding_mask");
  torch::Tensor mask;
  if (attn_mask.defined()) mask = core::split_torch_heads(attn_mask, num_heads);
  if (key_padding_mask.defined()) {
    TORCH_CHECK_VALUE(key_padding_mask.dim() == 2, core::kTorchMasks,
                      "key_padding_mask must be [B, S], got ", key_padding_mask.sizes());
  }
  if (mask.defined() && key_padding_mask.defined()) {
    TORCH_CHECK_VALUE(mask.size(-1) == key_padding_mask.size(1) &&
                          (mask.dim() == 2 || mask.size(0) == key_padding_mask.size(0)),
                      core::kTorchMasks, "attn_mask ", attn_mask.sizes(), " and key_padding_mask ",
                      key_padding_mask.sizes(), " do not agree");
    TORCH_CHECK_VALUE(mask.device() == key_padding_mask.device(), core::kTorchMasks,
                      "attn_mask is on ", mask.device(), ", key_padding_mask on ",
                      key_padding_mask.device());
  }
  AttentionInputs inputs;
  if (key_padding_mask.defined() && key_padding_mask.is_floating_point()) {
    inputs.mask = core::add_torch_padding(mask, key_padding_mask);
    return inputs;
  }
  if (mask.defined()) inputs.mask = mask.is_floating_point() ? mask : mask.logical_not();
  if (key_padding_mask.defined()) inputs.key_padding_mask = key_padding_mask.logical_not();
  return inputs;
}

}  // namespace attzoo

#endif
