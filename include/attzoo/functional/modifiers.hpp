#pragma once
/// \file
/// What a user composes to say who attends to whom, and how scores are changed.
///
/// Masks say which pairs (query q, key kv) may attend; they compose with `&&`, `||` and `!`. Score
/// modifiers change a score before the softmax; they compose with `+`, applied left to right.
/// `mask_mod(f)` and `score_mod(f)` make one from any callable: f(b, h, q, kv) -> truth value, and
/// f(score, b, h, q, kv) -> score, FlexAttention's names and order (Dong et al., "Flex Attention: A
/// Programming Model for Generating Optimized Attention Kernels", 2024, arXiv:2412.05496).

#include <attzoo/core/score_modifiers.hpp>

#include <utility>

namespace attzoo {

/// `mask_mod(f, aligned)` and `score_mod(f, aligned)` count q from the bottom right: the last query
/// has the index S - 1 of the last key, as in causal(). Without, q is the raw index.
struct Aligned {};
inline constexpr Aligned aligned{};

/// A tensor to look things up in, from within a modifier's callable, FlexAttention's captured
/// buffers. Capture it by value and call it with one index for each dimension:
///
///     auto doc = table(ids);    // [B, S]
///     mask_mod([=](auto b, auto h, auto q, auto kv) { return doc(b, q) == doc(b, kv); });
///     auto bias = table(t);     // [H, 2 n], may require gradients
///     score_mod([=](auto s, auto b, auto h, auto q, auto kv) { return s + bias(h, q - kv + n); });
///
/// `tensor`: integers or floats of rank 1 to 4, on q's device. What it holds when attention() runs
/// counts. Entries are computed in double, integers are exact up to 2^53. An index is a whole
/// number of b, h, q, kv and other tables' entries, and must lie within for every query and key,
/// forbidden ones too: attention() throws c10::IndexError otherwise. That costs nothing where the
/// bounds are evident (sums, products, min, max, clamp, abs, /, %), else one evaluation of f on the
/// whole grid. A float table that requires gradients gets them, in the fused backward pass, in the
/// same bits each time. Throws c10::Error on another dtype, rank or layout.
inline core::Table table(const torch::Tensor& tensor) {
  core::check_table(tensor);
  return core::Table(tensor);
}

// ---- masks --------------------------------------------------------------------------------------

/// Every query attends to every key.
inline core::FullMask full() { return {}; }

/// Which corner of a non-square score grid the causal diagonal starts from.
enum class CausalAlignment {
  kBottomRight,  ///< the last query sees all keys: kv <= q + S - L
  kTopLeft,      ///< the first query sees the first key only: kv <= q
};

/// No query attends to a later key. The alignments are equal when L == S.
inline core::CausalMask causal(CausalAlignment alignment = CausalAlignment::kBottomRight) {
  return {alignment == CausalAlignment::kTopLeft};
}

/// Query i attends to the keys i - left ... i + right, both included; kUnbounded lifts a side. With
/// L != S, i is aligned to the bottom right, as in causal(). Throws for a negative argument.
inline core::WindowMask window(int64_t left, int64_t right) {
  TORCH_CHECK_VALUE(left >= 0 && right >= 0, "window: left and right must be >= 0, got left=", left,
                    " right=", right);
  return {left, right};
}

/// Query i attends to the keys j with i = j modulo rate. Throws for a rate below 1.
inline core::DilatedMask dilated(int64_t rate) {
  TORCH_CHECK_VALUE(rate >= 1, "dilated: rate must be >= 1, got ", rate);
  return {rate};
}

/// Positions attend within their block of `size`: floor(i / size) == floor(j / size). Throws for a
/// size below 1.
inline core::BlocksMask blocks(int64_t size) {
  TORCH_CHECK_VALUE(size >= 1, "blocks: size must be >= 1, got ", size);
  return {size, size, 0, kUnbounded};
}

/// Everybody attends to the first `length` keys: `prefix(p) || causal()` is a prefix language
/// model. Throws for a negative length.
inline core::PrefixMask prefix(int64_t length) {
  TORCH_CHECK_VALUE(length >= 0, "prefix: length must be >= 0, got ", length);
  return {length};
}

/// Sequences packed one after another attend only within themselves: `documents({.offsets = t})`,
/// where t [n + 1] is 0 and then the end of each, the last of them S; or `documents({.ids = t})`,
/// where t [S] or [B, S] numbers every position, and equal numbers attend, wherever they lie (cost
/// follows them where they lie together). Of any integer dtype; copied. Throws c10::Error on
/// another shape, dtype or order.
inline core::DocumentsMask documents(const Documents& d) {
  core::check_documents(d, "documents");
  const auto copy = [](const torch::Tensor& t) { return t.defined() ? t.clone() : t; };
  return {{copy(d.offsets), copy(d.ids)}};
}

/// The same with the form told by the rank: offsets [n + 1], or ids [B, S].
inline core::DocumentsMask documents(const torch::Tensor& offsets_or_ids) {
  const auto& t = offsets_or_ids;
  return documents(t.defined() && t.dim() == 2 ? Documents{.ids = t} : Documents{.offsets = t});
}

/// Global tokens attend to everybody and everybody attends to them (Longformer, arXiv:2004.05150).
/// `is_global` [S] or [B, S], any dtype, nonzero = global. Throws on another rank.
inline core::GlobalTokensMask global_tokens(const torch::Tensor& is_global) {
  core::check_dense(is_global, "global_tokens", "is_global");
  TORCH_CHECK_VALUE(is_global.dim() == 1 || is_global.dim() == 2,
                    "global_tokens: is_global must have shape [S] or [B, S], got ",
                    is_global.sizes());
  const auto flags = is_global.to(torch::kBool);
  return {flags.dim() == 1 ? flags.unsqueeze(0) : flags};
}

/// A mask from any callable f(b, h, q, kv) -> truth value, written with operators that also work on
/// lanes and tensors: `mask_mod([](auto b, auto h, auto q, auto kv) { return (q - kv) % 3 == 0;
/// })`. b, h, q and kv are whole numbers of 64 bits; x / 0 is 0 and x % 0 is x. q is the raw index
/// of the query, FlexAttention's, 0 ... L - 1; with L != S, `mask_mod(f, aligned)` hands f its
/// place among the keys, q + S - L, from which causal() and window() count.
template <class F>
core::MaskFunction<F> mask_mod(F f) {
  return {std::move(f), false};
}
template <class F>
core::MaskFunction<F> mask_mod(F f, Aligned) {
  return {std::move(f), true};
}

/// A mask from a bool tensor (true = attend), [L, S], [B, L, S] or [B, H, L, S]; sizes of 1
/// broadcast. Throws c10::Error on another dtype or rank.
inline core::TensorMask mask_tensor(const torch::Tensor& mask) {
  core::check_dense(mask, "mask_tensor", "mask");
  TORCH_CHECK_VALUE(mask.dim() >= 2 && mask.dim() <= 4,
                    "mask_tensor: expected a mask [L, S], [B, L, S] or [B, H, L, S], got ",
                    mask.sizes());
  TORCH_CHECK_TYPE(mask.scalar_type() == torch::kBool, "mask_tensor: expected bool, got ",
                   mask.scalar_type());
  return {core::mask_rank4(mask)};
}

/// The same mask with its tiles of 64 x 64 pairs looked at once, so that attention() skips the
/// empty ones and asks no more about the full ones; for a mask_mod or mask_tensor that is used
/// again and again. Lengths L and S as in the calls to come; `batch` and `heads` 1 if the mask does
/// not depend on them. Costs O(L S) time and O(S) memory here. Throws c10::Error on a size below 1
/// or too many tiles; attention() throws if a tensor of the mask was changed in place since.
/// Example: `auto m = block_mask(mask_mod(f), n, n); attention(q, k, v, m);`
template <MaskMod M>
core::BlockMask<M> block_mask(M mask, int64_t L, int64_t S, int64_t batch = 1, int64_t heads = 1) {
  TORCH_CHECK_VALUE(L > 0 && S > 0 && batch > 0 && heads > 0,
                    "block_mask: L, S, batch and heads must be > 0, got L=", L, " S=", S,
                    " batch=", batch, " heads=", heads);
  TORCH_CHECK_VALUE(core::product_at_most({batch, heads, L / 64 + 1, S / 64 + 1}, 1 << 28) &&
                        std::max(L, S) <= 1 << 30,
                    "block_mask: at most 2^28 tiles of 64 x 64, got L=", L, " S=", S,
                    " batch=", batch, " heads=", heads);
  const core::Shape n{batch, heads, L, S};
  core::check_modifier(mask, n, torch::kCPU);
  core::Captured read;
  core::held_tensors(mask, read);
  auto tiles = core::tile_cover(mask, n);
  return {std::move(mask), L, S, std::move(tiles), core::Unchanged(read)};
}

// ---- scores -------------------------------------------------------------------------------------

/// A score modifier from any callable f(score, b, h, q, kv) -> score. Functions go by their plain
/// names (abs, clamp, cos, erf, exp, exp2, floor, log, log2, max, min, pow, relu, sigmoid, sin,
/// sqrt, tanh, where), and take scores, indices and numbers in any mixture: `score_mod([](auto s,
/// auto, auto, auto q, auto kv) { return 20.0 * tanh(s / 20.0) - 0.1 * abs(q - kv); })`. q is the
/// raw index of the query, or with `aligned` its place among the keys, as in mask_mod(). The
/// derivative is found by itself.
template <class F>
core::ScoreFunction<F> score_mod(F f) {
  return {std::move(f), false};
}
template <class F>
core::ScoreFunction<F> score_mod(F f, Aligned) {
  return {std::move(f), true};
}

/// Attention with linear biases: s - slopes[h] * |q - kv| (Press et al., 2021, arXiv:2108.12409).
/// `slopes` [H], floating; differentiable. Throws on another rank or dtype.
inline core::AlibiScore alibi(const torch::Tensor& slopes) {
  core::check_floating(slopes, "alibi", "slopes");
  TORCH_CHECK_VALUE(slopes.dim() == 1, "alibi: slopes must have shape [H], got ", slopes.sizes());
  return {slopes};
}

/// Bounds scores smoothly: cap * tanh(s / cap) (Gemma 2, arXiv:2408.00118). Throws unless cap is in
/// [1e-30, 1e30], so that float32 holds cap and 1 / cap with room to spare.
inline core::SoftcapScore softcap(double cap) {
  TORCH_CHECK_VALUE(cap >= 1e-30 && cap <= 1e30,
                    "softcap: cap must be > 0, within 1e-30 ... 1e30, got ", cap);
  return {cap};
}

/// Adds a floating tensor to the scores, [L, S], [B, L, S] or [B, H, L, S]; sizes of 1 broadcast.
/// Differentiable with respect to the tensor. Throws c10::Error on another dtype or rank.
inline core::TensorBias bias_tensor(const torch::Tensor& bias) {
  core::check_floating(bias, "bias_tensor", "bias");
  TORCH_CHECK_VALUE(bias.dim() >= 2 && bias.dim() <= 4,
                    "bias_tensor: expected [L, S], [B, L, S] or [B, H, L, S], got ", bias.sizes());
  return {core::mask_rank4(bias)};
}

/// Options of `relative_bias`.
struct RelativeBiasOptions {
  bool bidirectional = true;   ///< half of the buckets for keys after the query, as in an encoder
  int64_t max_distance = 128;  ///< from here on all distances share a bucket
};

/// T5's relative position bias (Raffel et al., 2020, arXiv:1910.10683): s + table[bucket(kv - q),
/// h]. `table` [buckets, H], floating; differentiable. Throws on another rank or dtype, fewer than
/// 4 buckets, or a max_distance that is not above the number of exact buckets.
inline core::RelativeBiasScore relative_bias(const torch::Tensor& table,
                                             const RelativeBiasOptions& options = {}) {
  core::check_floating(table, "relative_bias", "table");
  TORCH_CHECK_VALUE(table.dim() == 2 && table.size(0) >= 4,
                    "relative_bias: table must have shape [buckets >= 4, H], got ", table.sizes());
  const int64_t exact = table.size(0) / (options.bidirectional ? 4 : 2);
  TORCH_CHECK_VALUE(options.max_distance > exact, "relative_bias: max_distance must be > ", exact,
                    ", the number of exact buckets, got ", options.max_distance);
  return {table, options.bidirectional, options.max_distance};
}

/// A learnable logit of each head that takes part in the softmax's denominator but has no value, so
/// that a query may attend to nothing (Xiao et al., 2023, arXiv:2309.17453). `logits` [H],
/// floating; differentiable. The weights then sum to less than 1, and lse includes the sink. Throws
/// on another rank or dtype.
inline core::SinkScore sink(const torch::Tensor& logits) {
  core::check_floating(logits, "sink", "logits");
  TORCH_CHECK_VALUE(logits.dim() == 1, "sink: logits must have shape [H], got ", logits.sizes());
  return {logits};
}

}  // namespace attzoo
