#pragma once
/// \file
/// The attention of NSA (Yuan et al., "Native Sparse Attention: Hardware-Aligned and Natively
/// Trainable Sparse Attention", 2025, arXiv:2502.11089) without projections.

#include <attzoo/config.hpp>
#include <attzoo/functional/result.hpp>

#include <cstdint>
#include <optional>

namespace attzoo {

/// Options of `native_sparse_attention()`.
struct NativeSparseOptions {
  int64_t block_size = 64;    ///< tokens of a block b; > 0
  int64_t block_count = 16;   ///< blocks that a query selects; > 0
  int64_t window_size = 512;  ///< tokens that the window sees, the query's own too; 0: no window
  /// How much of each branch comes into the output, [B, H, L]; default 1.
  torch::Tensor gate_compressed = {}, gate_selected = {}, gate_window = {};
  /// Keys and values of the floor(S / b) complete blocks, [B, Hkv, floor(S / b), D or Dv]; default
  /// the means of theirs.
  torch::Tensor block_keys = {}, block_values = {};
  std::optional<double> scale = std::nullopt;  ///< default 1 / sqrt(D)
  double dropout = 0.0;                        ///< of the weights of each branch
};

/// What native_sparse_attention() returns.
struct NativeSparseResult {
  torch::Tensor output;  ///< [B, H, L, Dv]
  /// The blocks that each query selected: int64 [B, Hkv, L, min(block_count, blocks)], -1: none.
  torch::Tensor blocks;
  /// Of all branches together, each times its gate, [B, H, L, S]; the weight of a block as a whole
  /// is spread evenly over its tokens. With block values that are means, output = weights v.
  LazyWeights weights;
};

/// Causal attention in three branches, each with its gate:
/// ```
/// o_i = g_cmp attend(q_i, block keys and values)     of complete blocks that lie before or end at
/// i
///     + g_slc attend(q_i, keys of selected blocks)   j <= i
///     + g_win attend(q_i, the latest window_size keys)
/// ```
/// A query selects block 0, its own and the one before, and of the others that are complete those
/// of the greatest weights in the first branch, as a mean over the query heads that share a
/// key-value head; in a small block_count its own comes first, then the one before. Selecting has
/// no derivative.
///
/// \param q [B, H, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv]: as for attention(); the queries are
///   those of the last L of S keys
///
/// Time O(L S / b + L (block_count b + window_size)), memory O(L + S), forward and backward.
/// Throws c10::Error on wrong shapes, sizes, dtypes and devices, before anything is computed.
ATTZOO_API NativeSparseResult native_sparse_attention(const torch::Tensor& q,
                                                      const torch::Tensor& k,
                                                      const torch::Tensor& v,
                                                      const NativeSparseOptions& options = {});

/// The means of the complete blocks of t [B, H, S, D]: [B, H, floor(S / block_size), D].
ATTZOO_API torch::Tensor block_means(const torch::Tensor& t, int64_t block_size);

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/core/row_lists.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/callables.hpp>
#include <attzoo/functional/checks.hpp>
#include <attzoo/functional/chosen_keys.hpp>
#include <attzoo/functional/masks.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace attzoo {
namespace core {

ATTZOO_API void check_native_sparse(const torch::Tensor& q, const torch::Tensor& k,
                                    const torch::Tensor& v, const NativeSparseOptions& o) {
  constexpr const char* kWho = "native_sparse_attention";
  check_qkv(kWho, q, k, v, QkvForm::kMaybeQuantized);
  check_dropout(kWho, o.dropout);
  TORCH_CHECK_VALUE(k.size(0) == q.size(0) && v.size(0) == q.size(0), kWho,
                    ": q, k and v must have the same batch size, got ", q.sizes(), ", ", k.sizes(),
                    ", ", v.sizes());
  TORCH_CHECK_VALUE(k.size(1) > 0 && v.size(1) == k.size(1) && q.size(1) % k.size(1) == 0, kWho,
                    ": the heads of q must be a multiple of those of k and v, got ", q.sizes(),
                    ", ", k.sizes(), ", ", v.sizes());
  TORCH_CHECK_VALUE(q.size(2) <= k.size(2), kWho,
                    ": there must be a key for each query, got L=", q.size(2), " S=", k.size(2));
  TORCH_CHECK_VALUE(o.block_size > 0 && o.block_size <= kUnbounded, kWho,
                    ": block_size must be > 0 and at most 2^30, got ", o.block_size);
  TORCH_CHECK_VALUE(o.block_count > 0, kWho, ": block_count must be > 0, got ", o.block_count);
  TORCH_CHECK_VALUE(o.window_size >= 0, kWho, ": window_size must be >= 0, got ", o.window_size);
  TORCH_CHECK_VALUE(o.window_size > 0 || !o.gate_window.defined(), kWho,
                    ": gate_window has no meaning with window_size=0");
  TORCH_CHECK_VALUE(!o.scale || is_valid_scale(*o.scale, q), kWho,
                    ": scale must be finite and at most 1e30 in size (float64: 1e300), got ",
                    *o.scale);
  const auto check = [&](const torch::Tensor& t, const char* name, std::vector<int64_t> sizes) {
    if (!t.defined()) return;
    check_floating(t, kWho, name);
    TORCH_CHECK_VALUE(t.sizes() == torch::IntArrayRef(sizes), kWho, ": ", name, " must have shape ",
                      torch::IntArrayRef(sizes), ", got ", t.sizes());
    TORCH_CHECK_TYPE(t.scalar_type() == q.scalar_type(), kWho, ": ", name, " must have q's dtype ",
                     q.scalar_type(), ", got ", t.scalar_type());
    TORCH_CHECK_VALUE(t.device() == q.device(), kWho, ": ", name, " must be on q's device ",
                      q.device(), ", got ", t.device());
  };
  const std::vector<int64_t> gate{q.size(0), q.size(1), q.size(2)};
  check(o.gate_compressed, "gate_compressed", gate);
  check(o.gate_selected, "gate_selected", gate);
  check(o.gate_window, "gate_window", gate);
  const int64_t blocks = k.size(2) / o.block_size;
  check(o.block_keys, "block_keys", {k.size(0), k.size(1), blocks, features_of(k)});
  check(o.block_values, "block_values", {v.size(0), v.size(1), blocks, features_of(v)});
}

/// The blocks that queries of the places [begin, end) select; q holds their rows.
ATTZOO_API torch::Tensor select_blocks(const torch::Tensor& q, const torch::Tensor& block_keys,
                                       int64_t begin, int64_t S, int64_t count, int64_t size,
                                       double scale) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const int64_t B = q.size(0), R = q.size(2), Hkv = block_keys.size(1), G = q.size(1) / Hkv;
  const int64_t complete = block_keys.size(2), all = (S + size - 1) / size;
  const auto dtype = compute_dtype(q);
  const auto options = torch::dtype(torch::kInt64).device(q.device());
  const auto place = torch::arange(begin, begin + R, options).unsqueeze(1);
  const auto block = torch::arange(all, options), own = torch::div(place, size, "floor");
  const auto past = ((block + 1) * size - 1 <= place).slice(1, 0, complete);  // [R, complete]
  const auto queries = q.to(dtype).reshape({B, Hkv, G * R, q.size(3)});
  auto scores = torch::matmul(queries, block_keys.to(dtype).mT()) * scale;
  scores = scores.view({B, Hkv, G, R, complete}).masked_fill(past.logical_not(), -kInf);
  // A row without a block has weights that are no numbers, and none of its blocks counts.
  const auto weights = torch::softmax(scores, -1).mean(2).masked_fill(past.logical_not(), -kInf);
  auto value = torch::constant_pad_nd(weights, {0, all - complete}, -kInf);
  value = torch::where(block == 0, 2.0, value);
  value = torch::where(block == own - 1, 3.0, value);
  value = torch::where(block == own, 4.0, value);
  return greatest(value, std::min(count, all));
}

ATTZOO_API torch::Tensor gated(const torch::Tensor& output, const torch::Tensor& gate) {
  return gate.defined() ? output * gate.unsqueeze(-1) : output;
}

}  // namespace core

ATTZOO_API torch::Tensor block_means(const torch::Tensor& t, int64_t block_size) {
  TORCH_CHECK_VALUE(t.dim() == 4 && block_size > 0,
                    "block_means: expected t [B, H, S, D] and block_size > 0, got ", t.sizes(),
                    " and ", block_size);
  const int64_t blocks = t.size(2) / block_size;
  return t.slice(2, 0, blocks * block_size).unflatten(2, {blocks, block_size}).mean(3);
}

ATTZOO_API NativeSparseResult native_sparse_attention(const torch::Tensor& q,
                                                      const torch::Tensor& k,
                                                      const torch::Tensor& v,
                                                      const NativeSparseOptions& o) {
  core::check_native_sparse(q, k, v, o);
  const int64_t L = q.size(2), S = k.size(2), size = o.block_size, before = S - L;
  const AttentionOptions how{
      .scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3)))),
      .dropout = o.dropout};
  const auto means = [&](const torch::Tensor& given, const torch::Tensor& t) {
    return given.defined() ? given : block_means(core::dequantized(t, q.scalar_type()), size);
  };
  const auto keys = means(o.block_keys, k), values = means(o.block_values, v);

  NativeSparseResult result;
  {
    const torch::NoGradGuard no_grad;
    const int64_t row = std::max<int64_t>(1, q.size(0) * q.size(1) * (S / size + 1));
    const int64_t step = std::clamp<int64_t>((int64_t{1} << 18) / row, 1, std::max<int64_t>(1, L));
    std::vector<torch::Tensor> blocks;
    for (int64_t at = 0; at == 0 || at < L; at += step) {
      blocks.push_back(core::select_blocks(q.slice(2, at, std::min(L, at + step)), keys,
                                           before + at, S, o.block_count, size, *how.scale));
    }
    result.blocks = torch::cat(blocks, 2);
  }
  const auto past = mask_mod([size, before](auto, auto, auto i, auto block) {
    return (block + 1) * size <= i + before + 1;
  });
  std::vector<AttentionResult> parts{attention(q, keys, values, past, how)};
  // Where every block fits, all are selected.
  parts.push_back(result.blocks.size(3) * size >= S
                      ? attention(q, k, v, causal(), how)
                      : chosen_attention(q, k, v, {result.blocks, size}, causal(), {}, how));
  if (o.window_size > 0) {
    parts.push_back(attention(q, k, v, window(std::min(o.window_size - 1, kUnbounded), 0), how));
  }
  const std::vector<torch::Tensor> gates{o.gate_compressed, o.gate_selected, o.gate_window};
  result.output = core::gated(parts[0].output, gates[0]);
  for (size_t i = 1; i < parts.size(); ++i) {
    result.output = result.output + core::gated(parts[i].output, gates[i]);
  }
  for (auto& part : parts) part.output = torch::Tensor();
  result.weights = LazyWeights({q.size(0), q.size(1), L, S}, [=](int64_t begin, int64_t end) {
    torch::Tensor sum;
    for (size_t i = 0; i < parts.size(); ++i) {
      auto rows = parts[i].weights.rows(begin, end);
      if (i == 0) {
        rows = rows.repeat_interleave(size, 3) / static_cast<double>(size);
        rows = torch::constant_pad_nd(rows, {0, S - rows.size(3)});
      }
      const auto& gate = gates[i];
      rows = core::gated(rows, gate.defined() ? gate.slice(2, begin, end) : gate);
      sum = sum.defined() ? sum + rows : rows;
    }
    return sum;
  });
  return result;
}

}  // namespace attzoo

#endif
