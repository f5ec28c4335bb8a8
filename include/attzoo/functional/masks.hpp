#pragma once
/// \file
/// Who attends to whom: masks to compose with `&&`, `||` and `!`, or `&`, `|` and `~` as bool
/// tensors. One of your own is made from any callable (callables.hpp).

#include <attzoo/core/modifier/any_mask.hpp>

#include <vector>

namespace attzoo {

/// A mask of any type, to hold one that is chosen at run time: `AnyMask m = causal();`. A default
/// constructed one lets everybody attend.
using core::AnyMask;

/// Every query attends to every key.
inline core::FullMask full() { return {}; }

/// Which corner of a non-square score grid the causal diagonal starts from.
enum class CausalAlignment {
  kBottomRight,  ///< the last query sees all keys: kv <= q + S - L
  kTopLeft,      ///< the first query sees the first key only: kv <= q
};

/// No query attends to a later key. The alignments are equal when L == S.
ATTZOO_API core::CausalMask causal(CausalAlignment alignment = CausalAlignment::kBottomRight);

/// Query i attends to the keys i - left ... i + right, both included; kUnbounded lifts a side (as
/// 2^30 does, which is beyond all lengths). With L != S, i is aligned to the bottom right, as in
/// causal(). Throws for a negative argument.
ATTZOO_API core::WindowMask window(int64_t left, int64_t right);

/// Query i attends to the keys j with i = j modulo rate. Throws for a rate below 1.
ATTZOO_API core::DilatedMask dilated(int64_t rate);

/// Positions attend within their block of `size`: floor(i / size) == floor(j / size). Throws for a
/// size below 1.
ATTZOO_API core::BlocksMask blocks(int64_t size);

/// The tokens of a grid in 1, 2 or 3 dimensions, row after row: a query attends to its nearest
/// `kernel_size` places along every dimension, of those that are `dilation` apart (Hassani et al.,
/// "Neighborhood Attention Transformer", 2022, arXiv:2204.07143; dilated: arXiv:2209.15001).
/// Windows stop at the borders, so all are whole: near an edge they reach farther to the other
/// side. Along a dimension that is causal they look back, at kernel_size places, the query's own
/// the last, or as many as there are. One value counts for all dimensions. S is the number of the
/// grid's tokens; with L != S the queries are the last of them. `neighborhood({56, 56}, {7})`,
/// `neighborhood({8, 32, 32}, {4, 7, 7}, {1, 2, 2}, {true, false, false})`. Throws c10::ValueError
/// for other numbers of dimensions, sizes, kernel sizes or dilations below 1, kernel sizes that are
/// even and not causal, and more than 2^30 tokens.
ATTZOO_API AnyMask neighborhood(const std::vector<int64_t>& grid,
                                const std::vector<int64_t>& kernel_size,
                                const std::vector<int64_t>& dilation = {1},
                                const std::vector<bool>& causal = {false});

/// Everybody attends to the first `length` keys: `prefix(p) || causal()` is a prefix language
/// model. Throws for a negative length.
ATTZOO_API core::PrefixMask prefix(int64_t length);

/// Sequences packed one after another attend only within themselves: `documents({.offsets = t})`,
/// where t [n + 1] is 0 and then the end of each, the last of them S; or `documents({.ids = t})`,
/// where t [S] or [B, S] numbers every position, and equal numbers attend, wherever they lie (cost
/// follows them where they lie together). Of any integer dtype; copied. Throws c10::Error on
/// another shape, dtype or order.
ATTZOO_API core::DocumentsMask documents(const Documents& d);

/// The same with the form told by the rank: offsets [n + 1], or ids [B, S].
ATTZOO_API core::DocumentsMask documents(const torch::Tensor& offsets_or_ids);

/// Global tokens attend to everybody and everybody attends to them (Longformer, arXiv:2004.05150).
/// `is_global` [S] or [B, S], any dtype, nonzero = global. Throws on another rank.
ATTZOO_API core::GlobalTokensMask global_tokens(const torch::Tensor& is_global);

/// A mask from a bool tensor (true = attend), [L, S], [B, L, S] or [B, H, L, S]; sizes of 1
/// broadcast. Throws c10::Error on another dtype or rank.
ATTZOO_API core::TensorMask mask_tensor(const torch::Tensor& mask);

/// For each block of queries the blocks of keys that it may attend to, from a table of any origin:
/// `chosen` [rows, ...], [B, rows, ...] or [B, heads, rows, ...], where B may be 1, and `heads` any
/// divisor of H, each for as many heads in a row. Either bool, of every block of keys, or the
/// numbers of those chosen, in any order and number, -1 = none; `chosen` is copied. Cost follows
/// what is chosen. Blocks begin at the first key, the last one may be shorter; a query belongs to
/// the block of its place among the keys, the last query at the last key, so L <= S, and rows of
/// blocks before the first query may be left out. Throws c10::Error on another shape or dtype, and
/// for a number below -1 or beyond the keys.
/// Example: `attention(q, k, v, chosen_blocks(std::get<1>(scores.topk(4)), 64))`.
ATTZOO_API core::ChosenBlocksMask chosen_blocks(const torch::Tensor& chosen, int64_t block_size);

/// The same with blocks of queries and keys of other sizes. `chosen_blocks(t, 1, size)`: each query
/// chooses for itself; `chosen_blocks(t, 1, 1)`: single keys.
ATTZOO_API core::ChosenBlocksMask chosen_blocks(const torch::Tensor& chosen, int64_t query_block,
                                                int64_t key_block);

/// The same mask with its tiles of 64 x 64 pairs looked at once, so that attention() skips the
/// empty ones and asks no more about the full ones; for a mask_tensor, or a mask_mod with tables,
/// that is used again and again. Lengths L and S as in the calls to come; `batch` and `heads` 1 if
/// the mask does not depend on them. Costs O(L S) time and O(S) memory here, on the device of the
/// mask's tensors. Throws c10::Error on a
/// size below 1 or too many tiles; attention() throws if a tensor of the mask was changed in place
/// since. Example: `auto m = block_mask(mask_mod(f), n, n); attention(q, k, v, m);`
ATTZOO_API core::BlockMask block_mask(core::AnyMask mask, int64_t L, int64_t S, int64_t batch = 1,
                                      int64_t heads = 1);

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL

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

namespace core {

/// One dimension of neighborhood().
ATTZOO_API kernel::GridAxis grid_axis(int64_t size, int64_t kernel_size, int64_t dilation,
                                      bool causal) {
  const int64_t d = std::min(dilation, size), k = std::min(kernel_size, 2 * size - 1);
  if (causal) return {to_int(size), to_int((k - 1) * d), 0, to_int(d), 0, to_int(size)};
  const auto half = to_int(k / 2 * d), whole = to_int(k * d);
  return {to_int(size), half, half, to_int(d), whole, to_int(size) - whole};
}

template <int N>
AnyMask neighborhood_of(const std::vector<kernel::GridAxis>& axes) {
  NamedMask<kernel::Neighborhood<N>> mask;
  std::copy(axes.begin(), axes.end(), mask.f.axes);
  return mask;
}

}  // namespace core

ATTZOO_API AnyMask neighborhood(const std::vector<int64_t>& grid,
                                const std::vector<int64_t>& kernel_size,
                                const std::vector<int64_t>& dilation,
                                const std::vector<bool>& causal) {
  const size_t dimensions = grid.size();
  TORCH_CHECK_VALUE(dimensions >= 1 && dimensions <= 3,
                    "neighborhood: grid must have 1, 2 or 3 sizes, got ", dimensions);
  const auto check_count = [&](const char* name, size_t count) {
    TORCH_CHECK_VALUE(count == 1 || count == dimensions, "neighborhood: ", name,
                      " must have one value, or one for each of ", dimensions, " dimensions, got ",
                      count);
  };
  check_count("kernel_size", kernel_size.size());
  check_count("dilation", dilation.size());
  check_count("causal", causal.size());
  const auto check_positive = [](const char* name, int64_t value) {
    TORCH_CHECK_VALUE(value >= 1, "neighborhood: ", name, " must be >= 1, got ", value);
  };
  for (const auto n : grid) check_positive("grid", n);
  TORCH_CHECK_VALUE(core::product_at_most(grid, int64_t{1} << 30),
                    "neighborhood: grid must have at most 2^30 tokens, got ",
                    torch::IntArrayRef(grid));
  std::vector<kernel::GridAxis> axes;
  for (size_t i = 0; i < dimensions; ++i) {
    const auto k = kernel_size[std::min(i, kernel_size.size() - 1)],
               d = dilation[std::min(i, dilation.size() - 1)];
    const bool back = causal[std::min(i, causal.size() - 1)];
    check_positive("kernel_size", k);
    check_positive("dilation", d);
    TORCH_CHECK_VALUE(back || k % 2 == 1,
                      "neighborhood: kernel_size must be odd where it is not causal, got ", k);
    axes.push_back(core::grid_axis(grid[i], k, d, back));
  }
  if (dimensions == 1) return core::neighborhood_of<1>(axes);
  if (dimensions == 2) return core::neighborhood_of<2>(axes);
  return core::neighborhood_of<3>(axes);
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

ATTZOO_API core::ChosenBlocksMask chosen_blocks(const torch::Tensor& chosen, int64_t block_size) {
  return chosen_blocks(chosen, block_size, block_size);
}

ATTZOO_API core::ChosenBlocksMask chosen_blocks(const torch::Tensor& chosen, int64_t query_block,
                                                int64_t key_block) {
  core::check_dense(chosen, "chosen_blocks", "chosen");
  TORCH_CHECK_VALUE(query_block >= 1 && key_block >= 1,
                    "chosen_blocks: block sizes must be >= 1, got ", query_block, " and ",
                    key_block);
  TORCH_CHECK_VALUE(chosen.dim() >= 2 && chosen.dim() <= 4,
                    "chosen_blocks: chosen must have shape [rows, ...], [B, rows, ...] or "
                    "[B, heads, rows, ...], got ",
                    chosen.sizes());
  TORCH_CHECK_TYPE(torch::isIntegralType(chosen.scalar_type(), /*includeBool=*/true),
                   "chosen_blocks: chosen must be bool (true = attend) or integer (numbers of "
                   "blocks), got ",
                   chosen.scalar_type());
  if (chosen.scalar_type() != torch::kBool && chosen.numel() > 0) {
    const auto least = chosen.min().item<int64_t>(), most = chosen.max().item<int64_t>();
    TORCH_CHECK_VALUE(least >= -1 && most < int64_t{1} << 30,
                      "chosen_blocks: numbers of blocks must be >= -1 and below 2^30, got ", least,
                      " ... ", most);
  }
  return {core::mask_rank4(chosen), query_block, key_block};
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
  const auto device = core::device_of(mask);
  const auto places = core::asked_places(mask, false, n, device);
  if (places.defined()) mask = mask.placed(places);
  mask.check(n, device);
  return {std::move(mask), n};
}

}  // namespace attzoo

#endif
