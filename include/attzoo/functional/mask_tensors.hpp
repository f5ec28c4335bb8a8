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

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/core/checks.hpp>
#include <attzoo/functional/masks.hpp>

#include <algorithm>
#include <string>
#include <utility>

namespace attzoo {

namespace core {

inline constexpr int64_t kMaxMaskBytes = int64_t{1} << 47;  // what a 64-bit process can address

/// f() gives a bool mask [rows, columns]; an error of anything below it names the function.
template <class F>
torch::Tensor make_mask(int64_t rows, int64_t columns, const std::string& who, F&& f) {
  int64_t bytes = 0;
  TORCH_CHECK_VALUE(!__builtin_mul_overflow(rows, columns, &bytes) && bytes < kMaxMaskBytes, who,
                    ": a mask [", rows, ", ", columns, "] is too large to be addressed");
  std::string what;
  try {
    return f();
  } catch (const c10::Error& error) {
    what = error.what_without_backtrace();
  }
  TORCH_CHECK_VALUE(false, who, ": a mask [", rows, ", ", columns, "] cannot be made: ", what);
}

inline constexpr int64_t kMaskRows = 256;  // that are evaluated at a time

/// The mask as a tensor [B, H, L, S].
inline torch::Tensor evaluate_mask(const AnyMask& mask, const Shape& n, torch::Device device) {
  const auto places = asked_places(mask, false, n, device);
  const auto placed = places.defined() ? mask.placed(places) : mask;
  placed.check(n, device);
  auto made = torch::empty({n.B, n.H, n.L, n.S}, torch::dtype(torch::kBool).device(device));
  for (int64_t begin = 0, end = 0; begin < n.L; begin = end) {  // distances take 8 bytes a pair
    end = std::min(begin + kMaskRows, n.L);
    made.slice(2, begin, end).copy_(placed.evaluate(Grid(n, begin, end, device)));
  }
  return made;
}

/// A mask [n, n] of no batch and no heads.
inline torch::Tensor square_mask(const char* who, const AnyMask& mask, int64_t n,
                                 torch::Device device) {
  TORCH_CHECK_VALUE(n >= 0, who, ": seq_len must be >= 0, got ", n);
  return make_mask(n, n, c10::str(who, ": seq_len=", n), [&] {
    return evaluate_mask(mask, {1, 1, n, n}, device)[0][0];
  });
}

}  // namespace core

ATTZOO_API torch::Tensor create_mask(const core::AnyMask& mask, int64_t batch, int64_t heads,
                                     int64_t L, int64_t S, torch::Device device) {
  const auto who = c10::str("create_mask: batch=", batch, " heads=", heads, " L=", L, " S=", S);
  TORCH_CHECK_VALUE(std::min({batch, heads, L, S}) >= 0, who, ": sizes must be >= 0");
  TORCH_CHECK_VALUE(core::product_at_most({batch, heads, L, S}, core::kMaxMaskBytes), who,
                    ": a mask of that size is too large to be addressed");
  return core::make_mask(L, S, who, [&] {
    return core::evaluate_mask(mask, {batch, heads, L, S}, device);
  });
}

ATTZOO_API torch::Tensor create_causal_mask(int64_t seq_len, torch::Device device) {
  return core::square_mask("create_causal_mask", causal(), seq_len, device);
}

ATTZOO_API torch::Tensor create_padding_mask(const torch::Tensor& seq_lengths,
                                             std::optional<int64_t> max_len,
                                             std::optional<torch::Device> device) {
  constexpr const char* kName = "create_padding_mask";
  core::check_dense(seq_lengths, kName, "seq_lengths");
  TORCH_CHECK_VALUE(seq_lengths.dim() == 1, kName, ": seq_lengths must have shape [B], got ",
                    seq_lengths.sizes());
  TORCH_CHECK_TYPE(torch::isIntegralType(seq_lengths.scalar_type(), /*includeBool=*/false), kName,
                   ": seq_lengths must be integers, got ", seq_lengths.scalar_type());
  TORCH_CHECK_VALUE(seq_lengths.numel() > 0 || max_len, kName,
                    ": max_len is needed where seq_lengths is empty");
  TORCH_CHECK_VALUE(!max_len || *max_len >= 0, kName, ": max_len must be >= 0, got ", *max_len);
  const auto lengths = seq_lengths.to(torch::kInt64);
  if (lengths.numel() > 0) {
    const auto least = lengths.min().item<int64_t>();
    TORCH_CHECK_VALUE(least >= 0, kName, ": seq_lengths must be >= 0, got ", least);
  }
  const int64_t n = max_len ? *max_len : lengths.max().item<int64_t>();
  const auto who = c10::str(kName, ": ", max_len ? "max_len=" : "the longest of seq_lengths=", n);
  return core::make_mask(lengths.size(0), n, who, [&] {
    const auto on = device.value_or(seq_lengths.device());
    const auto position = torch::arange(n, torch::dtype(torch::kInt64).device(on));
    return position.unsqueeze(0) < lengths.to(on).unsqueeze(1);
  });
}

ATTZOO_API torch::Tensor create_padding_mask(const std::vector<int64_t>& seq_lengths,
                                             std::optional<int64_t> max_len, torch::Device device) {
  return create_padding_mask(torch::tensor(seq_lengths, torch::kInt64), max_len, device);
}

ATTZOO_API torch::Tensor create_local_mask(int64_t seq_len, int64_t window_size,
                                           torch::Device device) {
  constexpr const char* kName = "create_local_mask";
  TORCH_CHECK_VALUE(window_size >= 0, kName, ": window_size must be >= 0, got ", window_size);
  return core::square_mask(kName, window(window_size / 2, window_size / 2), seq_len, device);
}

ATTZOO_API torch::Tensor create_dilated_mask(int64_t seq_len, int64_t dilation_rate,
                                             torch::Device device) {
  constexpr const char* kName = "create_dilated_mask";
  TORCH_CHECK_VALUE(dilation_rate >= 1, kName, ": dilation_rate must be >= 1, got ", dilation_rate);
  return core::square_mask(kName, dilated(dilation_rate), seq_len, device);
}

ATTZOO_API torch::Tensor create_block_mask(int64_t seq_len, int64_t block_size,
                                           torch::Device device) {
  constexpr const char* kName = "create_block_mask";
  TORCH_CHECK_VALUE(block_size >= 1, kName, ": block_size must be >= 1, got ", block_size);
  return core::square_mask(kName, blocks(block_size), seq_len, device);
}

ATTZOO_API torch::Tensor combine_masks(const std::vector<torch::Tensor>& masks) {
  constexpr const char* kName = "combine_masks";
  TORCH_CHECK_VALUE(!masks.empty(), kName, ": expected at least one of masks, got none");
  for (const auto& mask : masks) {
    core::check_dense(mask, kName, "each of masks");
    TORCH_CHECK_TYPE(torch::isIntegralType(mask.scalar_type(), /*includeBool=*/true), kName,
                     ": masks must be bool or integer, got ", mask.scalar_type(),
                     "; floating masks are added to each other");
    TORCH_CHECK_VALUE(mask.sizes() == masks.front().sizes(), kName,
                      ": masks must have one shape, got ", masks.front().sizes(), " and ",
                      mask.sizes());
    TORCH_CHECK_VALUE(mask.device() == masks.front().device(), kName,
                      ": masks must be on one device, got ", masks.front().device(), " and ",
                      mask.device());
  }
  auto all = masks.front().to(torch::kBool);
  for (size_t i = 1; i < masks.size(); ++i) {
    all = torch::logical_and(all, masks[i].to(torch::kBool));
  }
  return all;
}

ATTZOO_API torch::Tensor expand_mask_for_heads(const torch::Tensor& mask, int64_t batch_size,
                                               int64_t num_heads, int64_t seq_len) {
  constexpr const char* kName = "expand_mask_for_heads";
  const int64_t B = batch_size, H = num_heads, n = seq_len;
  TORCH_CHECK_VALUE(B >= 0, kName, ": batch_size must be >= 0, got ", B);
  TORCH_CHECK_VALUE(H >= 0, kName, ": num_heads must be >= 0, got ", H);
  TORCH_CHECK_VALUE(n >= 0, kName, ": seq_len must be >= 0, got ", n);
  if (!mask.defined()) return mask;
  core::check_dense(mask, kName, "mask");
  const auto is = [&](const std::vector<int64_t>& sizes) { return mask.sizes() == sizes; };
  const std::vector<int64_t> full{B, H, n, n};
  TORCH_CHECK_VALUE(is({n, n}) || is({B, n, n}) || is(full), kName,
                    ": mask must have shape [n, n], [B, n, n] or [B, H, n, n] with batch_size=", B,
                    " num_heads=", H, " seq_len=", n, ", got ", mask.sizes());
  int64_t numel = 1;
  for (const int64_t size : full) {
    TORCH_CHECK_VALUE(!__builtin_mul_overflow(numel, size, &numel), kName,
                      ": a view [B, H, n, n] with batch_size=", B, " num_heads=", H, " seq_len=", n,
                      " has too many elements");
  }
  return (mask.dim() == 3 ? mask.unsqueeze(1) : mask).expand(full);
}

}  // namespace attzoo

#endif
