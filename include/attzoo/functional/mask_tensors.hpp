#pragma once
/// \file
/// Mask tensors. Everywhere true = attend.
///
/// A mask that no machine can address (2^47 bytes and more), or that the device has no memory for,
/// is an error that names the function, before anything is computed.

#include <attzoo/config.hpp>
#include <attzoo/core/modifier/any_mask.hpp>

#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

namespace attzoo {

/// Any mask of attention() (masks.hpp, callables.hpp) as a tensor [batch, heads, L, S],
/// FlexAttention's create_mask. For eager code, for other libraries
/// (`torch::scaled_dot_product_attention(q, k, v, t)`) and to look at; attention() takes the mask
/// itself, which costs no memory. `batch` and `heads` may be 1 if the mask does not depend on them;
/// `device` is that of its tensors, if it has any. Throws c10::ValueError for a negative size, and
/// where the mask does not fit these sizes. Example:
/// `auto t = create_mask(causal() && window(63, 0), 1, 1, n, n);`
ATTZOO_API torch::Tensor create_mask(const core::AnyMask& mask, int64_t batch, int64_t heads,
                                     int64_t L, int64_t S, torch::Device device = torch::kCPU);

/// [n, n]: query i attends to the keys j <= i. Throws c10::ValueError for n < 0.
ATTZOO_API torch::Tensor create_causal_mask(int64_t seq_len, torch::Device device = torch::kCPU);

/// [B, max_len]: true for the first seq_lengths[b] positions of row b; a key_padding_mask. max_len
/// defaults to the longest. A length above max_len is that of a sequence that was cut there: its
/// row is true throughout, as in the Python library. `seq_lengths` is an integer tensor [B]; the
/// device of the result is `device`, by default that of seq_lengths.
/// Throws c10::Error for another rank or dtype, a negative length, or no length and no max_len.
ATTZOO_API torch::Tensor create_padding_mask(const torch::Tensor& seq_lengths,
                                             std::optional<int64_t> max_len = std::nullopt,
                                             std::optional<torch::Device> device = std::nullopt);

/// The same from plain numbers.
ATTZOO_API torch::Tensor create_padding_mask(const std::vector<int64_t>& seq_lengths,
                                             std::optional<int64_t> max_len = std::nullopt,
                                             torch::Device device = torch::kCPU);

/// [n, n]: |i - j| <= floor(window_size / 2), so an even window sees window_size + 1 positions, and
/// 0 or 1 the token itself. Throws c10::ValueError for a negative argument.
ATTZOO_API torch::Tensor create_local_mask(int64_t seq_len, int64_t window_size,
                                           torch::Device device = torch::kCPU);

/// [n, n]: i and j are equal modulo dilation_rate. Throws c10::ValueError for a rate below 1.
ATTZOO_API torch::Tensor create_dilated_mask(int64_t seq_len, int64_t dilation_rate,
                                             torch::Device device = torch::kCPU);

/// [n, n]: i and j lie in the same block of block_size positions. Throws c10::ValueError for a size
/// below 1.
ATTZOO_API torch::Tensor create_block_mask(int64_t seq_len, int64_t block_size,
                                           torch::Device device = torch::kCPU);

/// AND of bool or integer (nonzero = attend) masks of one shape, as bool. Throws c10::Error for no
/// mask, an undefined, sparse or meta one, unequal shapes or devices, or a floating mask, which is
/// added to scores and so has no AND.
ATTZOO_API torch::Tensor combine_masks(const std::vector<torch::Tensor>& masks);

/// The same for any number of masks: `combine_masks(causal, local)`.
template <class... Masks>
requires(std::is_convertible_v<Masks, torch::Tensor>&&...) torch::Tensor
    combine_masks(const torch::Tensor& first, const Masks&... more) {
  return combine_masks(std::vector<torch::Tensor>{first, more...});
}

/// A view [B, H, n, n] of a mask [n, n], [B, n, n] or [B, H, n, n] of any dtype; an undefined mask
/// stays undefined. Throws c10::ValueError for any other shape, a negative size, more elements than
/// an int64 can count, and a sparse or meta mask.
ATTZOO_API torch::Tensor expand_mask_for_heads(const torch::Tensor& mask, int64_t batch_size,
                                               int64_t num_heads, int64_t seq_len);

}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/functional/mask_tensors.ipp>
#endif
