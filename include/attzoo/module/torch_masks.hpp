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

#ifndef ATTZOO_COMPILED
#include <attzoo/module/torch_masks.ipp>
#endif
