#pragma once
/// \file
/// Mask tensors. Everywhere true = attend.

#include <torch/types.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace attzoo {

namespace core {

inline void check_length(int64_t n, const char* who) {
  TORCH_CHECK_VALUE(n >= 0, who, ": seq_len must be >= 0, got ", n);
}

/// 0, 1, ..., n - 1 as int64.
inline torch::Tensor positions(int64_t n, const torch::Device& device) {
  return torch::arange(n, torch::dtype(torch::kInt64).device(device));
}

}  // namespace core

/// [n, n]: query i attends to the keys j <= i. Throws c10::ValueError for n < 0.
inline torch::Tensor create_causal_mask(int64_t seq_len, torch::Device device = torch::kCPU) {
  core::check_length(seq_len, "create_causal_mask");
  const auto i = core::positions(seq_len, device);
  return i.unsqueeze(0) <= i.unsqueeze(1);
}

/// [B, max_len]: true for the first seq_lengths[b] positions of row b; a key_padding_mask. max_len
/// defaults to the longest. `seq_lengths` is an integer tensor [B]; the device of the result is
/// `device`, by default that of seq_lengths.
/// Throws c10::Error for another rank or dtype, a negative length, or no length and no max_len.
inline torch::Tensor create_padding_mask(const torch::Tensor& seq_lengths,
                                         std::optional<int64_t> max_len = std::nullopt,
                                         std::optional<torch::Device> device = std::nullopt) {
  constexpr const char* kName = "create_padding_mask";
  TORCH_CHECK_VALUE(seq_lengths.defined() && seq_lengths.dim() == 1, kName,
                    ": seq_lengths must have shape [B], got ", seq_lengths.sizes());
  TORCH_CHECK_TYPE(torch::isIntegralType(seq_lengths.scalar_type(), /*includeBool=*/false), kName,
                   ": seq_lengths must be integers, got ", seq_lengths.scalar_type());
  TORCH_CHECK_VALUE(seq_lengths.numel() > 0 || max_len, kName,
                    ": max_len is needed where seq_lengths is empty");
  TORCH_CHECK_VALUE(!max_len || *max_len >= 0, kName, ": max_len must be >= 0, got ", *max_len);
  TORCH_CHECK_VALUE(seq_lengths.numel() == 0 || seq_lengths.min().item<int64_t>() >= 0, kName,
                    ": seq_lengths must be >= 0, got ", seq_lengths.min().item<int64_t>());
  const auto lengths = seq_lengths.to(device.value_or(seq_lengths.device()));
  const int64_t n = max_len ? *max_len : lengths.max().item<int64_t>();
  return core::positions(n, lengths.device()).unsqueeze(0) < lengths.unsqueeze(1);
}

/// The same from plain numbers.
inline torch::Tensor create_padding_mask(const std::vector<int64_t>& seq_lengths,
                                         std::optional<int64_t> max_len = std::nullopt,
                                         torch::Device device = torch::kCPU) {
  return create_padding_mask(torch::tensor(seq_lengths, torch::kInt64), max_len, device);
}

/// [n, n]: |i - j| <= floor(window_size / 2), so an even window sees window_size + 1 positions, and
/// 0 or 1 the token itself. Throws c10::ValueError for a negative argument.
inline torch::Tensor create_local_mask(int64_t seq_len, int64_t window_size,
                                       torch::Device device = torch::kCPU) {
  core::check_length(seq_len, "create_local_mask");
  TORCH_CHECK_VALUE(window_size >= 0, "create_local_mask: window_size must be >= 0, got ",
                    window_size);
  const auto i = core::positions(seq_len, device);
  return (i.unsqueeze(0) - i.unsqueeze(1)).abs() <= window_size / 2;
}

/// [n, n]: i and j are equal modulo dilation_rate. Throws c10::ValueError for a rate below 1.
inline torch::Tensor create_dilated_mask(int64_t seq_len, int64_t dilation_rate,
                                         torch::Device device = torch::kCPU) {
  core::check_length(seq_len, "create_dilated_mask");
  TORCH_CHECK_VALUE(dilation_rate >= 1, "create_dilated_mask: dilation_rate must be >= 1, got ",
                    dilation_rate);
  const auto residue = core::positions(seq_len, device).remainder(dilation_rate);
  return residue.unsqueeze(0) == residue.unsqueeze(1);
}

/// [n, n]: i and j lie in the same block of block_size positions. Throws c10::ValueError for a size
/// below 1.
inline torch::Tensor create_block_mask(int64_t seq_len, int64_t block_size,
                                       torch::Device device = torch::kCPU) {
  core::check_length(seq_len, "create_block_mask");
  TORCH_CHECK_VALUE(block_size >= 1, "create_block_mask: block_size must be >= 1, got ",
                    block_size);
  const auto block = core::positions(seq_len, device).floor_divide(block_size);
  return block.unsqueeze(0) == block.unsqueeze(1);
}

/// AND of bool or integer (nonzero = attend) masks of one shape, as bool. Throws c10::Error for no
/// mask, unequal shapes, or a floating mask, which is added to scores and so has no AND.
inline torch::Tensor combine_masks(const std::vector<torch::Tensor>& masks) {
  constexpr const char* kName = "combine_masks";
  TORCH_CHECK_VALUE(!masks.empty(), kName, ": expected at least one mask, got none");
  torch::Tensor all;
  for (const auto& mask : masks) {
    TORCH_CHECK_VALUE(mask.defined(), kName, ": masks must be tensors, got an undefined one");
    TORCH_CHECK_TYPE(!mask.is_floating_point() && !mask.is_complex(), kName,
                     ": masks must be bool or integer, got ", mask.scalar_type(),
                     "; floating masks are added to each other");
    TORCH_CHECK_VALUE(mask.sizes() == masks.front().sizes(), kName,
                      ": masks must have one shape, got ", masks.front().sizes(), " and ",
                      mask.sizes());
    const auto as_bool = mask.to(torch::kBool);
    all = all.defined() ? torch::logical_and(all, as_bool) : as_bool;
  }
  return all;
}

/// The same for any number of masks: `combine_masks(causal, local)`.
template <class... Masks>
requires(std::is_convertible_v<Masks, torch::Tensor>&&...) torch::Tensor
    combine_masks(const torch::Tensor& first, const Masks&... more) {
  return combine_masks(std::vector<torch::Tensor>{first, more...});
}

/// A view [B, H, n, n] of a mask [n, n], [B, n, n] or [B, H, n, n] of any dtype; an undefined mask
/// stays undefined. Throws c10::ValueError for any other shape.
inline torch::Tensor expand_mask_for_heads(const torch::Tensor& mask, int64_t batch_size,
                                           int64_t num_heads, int64_t seq_len) {
  if (!mask.defined()) return mask;
  const int64_t B = batch_size, H = num_heads, n = seq_len;
  const std::vector<int64_t> full{B, H, n, n};
  if (mask.sizes() == torch::IntArrayRef({n, n})) return mask.expand(full);
  if (mask.sizes() == torch::IntArrayRef({B, n, n})) return mask.unsqueeze(1).expand(full);
  if (mask.sizes() == torch::IntArrayRef(full)) return mask.expand(full);
  TORCH_CHECK_VALUE(false, "expand_mask_for_heads: mask must have shape [n, n], [B, n, n] or ",
                    "[B, H, n, n] with B=", B, " H=", H, " n=", n, ", got ", mask.sizes());
}

}  // namespace attzoo
