#pragma once
/// \file
/// Masks and score modifiers of your own, from any callable: f(b, h, q, kv) -> truth value, and
/// f(score, b, h, q, kv) -> score, FlexAttention's names and order (Dong et al., "Flex Attention: A
/// Programming Model for Generating Optimized Attention Kernels", 2024, arXiv:2412.05496).

#include <attzoo/core/modifier/placed_callables.hpp>

#include <utility>

namespace attzoo {

/// `mask_mod(f, aligned)` and `score_mod(f, aligned)` count q from the bottom right: the last query
/// has the index S - 1 of the last key, as in causal(). Without, q is the raw index.
struct Aligned {};
inline constexpr Aligned aligned{};

/// `mask_mod(f, in_document)` and `score_mod(f, in_document)` count q and kv in the document that a
/// token belongs to: in a module's call from the begin of its document, with a cache from the first
/// real token of its sequence, wherever its key is kept, else as `aligned` does. So a pattern that
/// counts places is right in every call. In attention(), documents are those of `documents(d) &&
/// ...`, whose tokens must lie together. Pairs of different documents are masked or not as without.
struct InDocument {};
inline constexpr InDocument in_document{};

/// A tensor to look things up in, from within a modifier's callable, FlexAttention's captured
/// buffers. Capture it by value and call it with one index for each dimension:
///
///     auto doc = table(ids);    // [B, S]
///     mask_mod([=](auto b, auto, auto q, auto kv) { return doc(b, q) == doc(b, kv); });
///     auto bias = table(t);     // [H, 2 n], may require gradients
///     score_mod([=](auto s, auto, auto h, auto q, auto kv) { return s + bias(h, q - kv + n); });
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

/// A mask from any callable f(b, h, q, kv) -> truth value, written with operators that also work on
/// lanes and tensors: `mask_mod([](auto, auto, auto q, auto kv) { return (q - kv) % 3 == 0; })`. b,
/// h, q and kv are whole numbers of 64 bits; x / 0 is 0 and x % 0 is x; one that is assigned to, as
/// by `d *= 2`, must remain below 2^30. With floating numbers they are computed in double, and
/// comparisons fall the same way in every form. q is the raw index of the query, FlexAttention's,
/// 0 ... L - 1; with L != S, `mask_mod(f, aligned)` hands f its place among the keys, q + S - L,
/// from which causal() and window() count, and `mask_mod(f, in_document)` the places of query and
/// key in their document.
///
/// attention() asks f between which bounds it is true or false for a whole range of queries and
/// keys, skips the keys where it is false, and does not mask where it is true: with f = `q - kv <
/// w` the cost is O(n w), as window()'s. Bounds know comparisons, logic, + - * / %, min, max,
/// clamp, abs, floor and where; not exp and its kind, nor what a table holds at an index.
template <class F>
core::MaskFunction<F> mask_mod(F f) {
  return {std::move(f), false};
}
template <class F>
core::MaskFunction<F> mask_mod(F f, Aligned) {
  return {std::move(f), true};
}
template <class F>
core::PlacedMask<F> mask_mod(F f, InDocument) {
  return core::PlacedMask<F>({core::MaskOfPlaces<F>(std::move(f)), true});
}

/// A score modifier from any callable f(score, b, h, q, kv) -> score. Functions go by their plain
/// names (abs, clamp, cos, erf, exp, exp2, floor, log, log2, max, min, pow, relu, sigmoid, sin,
/// sqrt, tanh, where), and take scores, indices and numbers in any mixture: `score_mod([](auto s,
/// auto, auto, auto q, auto kv) { return 20.0 * tanh(s / 20.0) - 0.1 * abs(q - kv); })`. q is the
/// raw index of the query, or with `aligned` its place among the keys, and with `in_document` both
/// are places in the document, as in mask_mod(). The derivative is found by itself.
template <class F>
core::ScoreFunction<F> score_mod(F f) {
  return {std::move(f), false};
}
template <class F>
core::ScoreFunction<F> score_mod(F f, Aligned) {
  return {std::move(f), true};
}
template <class F>
core::PlacedScore<F> score_mod(F f, InDocument) {
  return core::PlacedScore<F>({core::ScoreOfPlaces<F>(std::move(f)), true});
}

}  // namespace attzoo
