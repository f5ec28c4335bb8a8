#pragma once
/// \file
/// The functional entry point: attention for any mask and any change of scores.

#include <attzoo/core/modifier/any_score.hpp>
#include <attzoo/functional/quantized_rows.hpp>
#include <attzoo/functional/result.hpp>

#include <concepts>
#include <optional>
#include <string>
#include <type_traits>

namespace attzoo {

/// Options of `attention()`.
struct AttentionOptions {
  /// Multiplies q k^T; default 1 / sqrt(D). At most 1e30 in size (float64: 1e300).
  std::optional<double> scale = std::nullopt;
  /// Probability in [0, 1] of dropping a weight; the kept ones are divided by 1 - dropout.
  double dropout = 0.0;
  /// Decides which weights are dropped; default: drawn from torch's CPU generator, so that
  /// torch::manual_seed makes it repeatable.
  std::optional<uint64_t> seed = std::nullopt;
  /// Weights break a stick, in the place of a softmax (Tan et al., "Stick-breaking Attention",
  /// 2024, arXiv:2410.17980): of what is left of it each allowed key, from the last one back to the
  /// first, takes the share sigmoid(score): w_ij = sigmoid(s_ij) prod_{k > j} (1 - sigmoid(s_ik)).
  /// They sum to 1 at most, a forbidden key breaks off nothing, and lse is the log of what is left,
  /// 1 - sum w. The paper's mask is causal() && !window(0, 0). Fused on the CPU, in chunks of rows
  /// on other devices; there is no sink().
  bool stick_breaking = false;
};

/// Scaled dot-product attention: softmax over the allowed keys of score_mod(scale * q k^T), times v
/// (Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762).
///
/// \param q [B, H, L, D], any strides; q, k and v of batch 1 are broadcast
/// \param k [B, Hkv, S, D], H a multiple of Hkv: query head h reads head h / (H / Hkv)
/// \param v [B, Hkv, S, Dv]; k and v may both be of 8 bits, made by quantize_rows()
/// \param mask who may attend to whom (masks.hpp, callables.hpp); default everybody
/// \param score how scores change before the softmax (scores.hpp, callables.hpp); default they
///   do not
/// \return output [B, H, L, Dv], weights [B, H, L, S] on demand, lse [B, H, L] (float32; float64
///   for float64). A query without any allowed key has output 0, weights 0 and lse -inf.
///
/// Throws c10::Error on wrong ranks, sizes, dtypes, layouts or devices, before anything is
/// computed; and in the backward pass and when weights are read, if a tensor that they need, those
/// of mask and score included, was changed in place since. Example:
/// `auto o = attention(q, k, v, causal(), bias_tensor(bias)).output;`
ATTZOO_API AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k,
                                     const torch::Tensor& v, const core::AnyMask& mask = {},
                                     const core::AnyScore& score = {},
                                     const AttentionOptions& options = {});

/// How attention() would run this, in lines for people: how many pairs the mask reaches, and which
/// way is taken and why none of those before it. Throws what attention() throws. Example:
/// `std::cout << explain(q, k, v, mask_mod(f));`
ATTZOO_API std::string explain(const torch::Tensor& q, const torch::Tensor& k,
                               const torch::Tensor& v, const core::AnyMask& mask = {},
                               const core::AnyScore& score = {},
                               const AttentionOptions& options = {});

namespace core {

/// The same, where `private_qk` promises that nobody changes q and k in place while weights may
/// still be read. Inference tensors count no versions, so without it their weights are guarded by a
/// copy of q and k.
ATTZOO_API AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k,
                                     const torch::Tensor& v, const AnyMask& mask,
                                     const AnyScore& score, const AttentionOptions& options,
                                     bool private_qk);

}  // namespace core

/// The same without a mask: `attention(q, k, v, softcap(30.0))`.
template <ScoreMod Score>
AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                          const Score& score, const AttentionOptions& options = {}) {
  return attention(q, k, v, core::AnyMask(), score, options);
}

/// The same without a change of the scores: `attention(q, k, v, causal(), {.dropout = 0.1})`.
template <MaskMod Mask>
AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                          const Mask& mask, const AttentionOptions& options) {
  return attention(q, k, v, core::AnyMask(mask), core::AnyScore(), options);
}

/// The same with neither: `attention(q, k, v, {.scale = 0.5})`. (A template, so that `{}` alone
/// is not ambiguous.)
template <std::same_as<AttentionOptions> Options = AttentionOptions>
AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                          const Options& options) {
  return attention(q, k, v, core::AnyMask(), core::AnyScore(), options);
}

/// What is neither does not compile.
template <class Other, class... More>
requires(std::is_class_v<Other> && !MaskMod<Other> && !ScoreMod<Other>) AttentionResult
    attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const Other&,
              const More&...) {
  static_assert(
      !sizeof(Other),
      "attzoo::attention: v is followed by a mask or a score modifier: write mask_mod(f) "
      "or score_mod(f) for a callable f, mask_tensor(t) or bias_tensor(t) for a tensor t");
  return attention(q, k, v);
}

/// Neither does a function that was not called.
template <class R, class... A, class... More>
AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                          R (*)(A...), const More&...) {
  static_assert(!sizeof(R*),
                "attzoo::attention: expected a mask or a score modifier, got a function: call it, "
                "causal() for causal, or write mask_mod(f) or score_mod(f) for a lambda f");
  return attention(q, k, v);
}
template <class First, class R, class... A, class... More>
requires(MaskMod<First> || ScoreMod<First>) AttentionResult
    attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const First&,
              R (*)(A...), const More&...) {
  static_assert(!sizeof(R*),
                "attzoo::attention: expected a score modifier, got a function: call it, "
                "softcap(30.0) for softcap, or write score_mod(f) for a lambda f");
  return attention(q, k, v);
}

/// Neither does what is in another order.
template <class First, class Second, class... More>
requires(std::is_class_v<Second> && !std::same_as<Second, AttentionOptions> &&
         (ScoreMod<First> || (MaskMod<First> && !ScoreMod<Second>))) AttentionResult
    attention(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const First&,
              const Second&, const More&...) {
  static_assert(
      !sizeof(First),
      "attzoo::attention: q, k and v are followed by a mask, a score modifier and options, "
      "in this order; masks are joined by &&, scores by +; write score_mod(f) for a "
      "callable f, bias_tensor(t) for a tensor t");
  return attention(q, k, v);
}

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/core/attention/chunked.hpp>
#include <attzoo/core/attention/dispatch.hpp>
#include <attzoo/functional/checks.hpp>

#include <cmath>
#include <limits>
#include <utility>

namespace attzoo {
namespace core {

/// The size that those of 1 broadcast to.
ATTZOO_API int64_t batch_size(const torch::Tensor& q, const torch::Tensor& k,
                              const torch::Tensor& v) {
  return q.size(0) != 1 ? q.size(0) : k.size(0) != 1 ? k.size(0) : v.size(0);
}

ATTZOO_API void check_attention(const torch::Tensor& q, const torch::Tensor& k,
                                const torch::Tensor& v, const AttentionOptions& options) {
  check_dropout("attention", options.dropout);
  check_qkv("attention", q, k, v, QkvForm::kMaybeQuantized);
  const int64_t batch = batch_size(q, k, v);
  for (const auto* t : {&q, &k, &v}) {
    TORCH_CHECK_VALUE(t->size(0) == batch || t->size(0) == 1,
                      "attention: q, k and v must have the same batch size, or 1, got ", q.sizes(),
                      ", ", k.sizes(), ", ", v.sizes());
  }
  TORCH_CHECK_VALUE(q.size(1) > 0 && k.size(1) > 0 && q.size(1) % k.size(1) == 0,
                    "attention: the heads of q [B, H, L, D] must be a multiple of the heads of "
                    "k [B, Hkv, S, D], got q ",
                    q.sizes(), ", k ", k.sizes());
  TORCH_CHECK_VALUE(v.size(1) == k.size(1), "attention: v must have the heads of k, got v ",
                    v.sizes(), ", k ", k.sizes());
  TORCH_CHECK_VALUE(!options.scale || is_valid_scale(*options.scale, q),
                    "attention: scale must be finite and at most 1e30 in size (float64: 1e300), "
                    "got ",
                    *options.scale);
}

ATTZOO_API void check_stick(const AnyScore& score, const AttentionOptions& options) {
  TORCH_CHECK_VALUE(!options.stick_breaking || !score.sink().defined(),
                    "attention: a sink is part of a softmax's sum and has no meaning with "
                    "stick_breaking");
}

/// Adds exp(sink[h]) to the softmax's denominator: all weights shrink by the share that is left.
/// `r` is in the compute dtype, and rounded to `dtype` here.
ATTZOO_API AttentionResult with_sink(const AttentionResult& r, const torch::Tensor& sink,
                                     torch::ScalarType dtype) {
  const auto logit = sink.to(r.lse.scalar_type()).view({1, -1, 1});
  // A row without keys has the sink alone; where that is -inf too, -inf - -inf must not arise.
  const auto empty = r.lse == -std::numeric_limits<double>::infinity();
  const auto lse = r.lse.masked_fill(empty, 0.0);
  const auto share =
      torch::sigmoid(lse - logit).masked_fill(empty, 0.0).unsqueeze(-1);  // [B, H, L, 1]
  return {(r.output * share).to(dtype),
          LazyWeights(r.weights.sizes().vec(),
                      [weights = r.weights, share, dtype](int64_t begin, int64_t end) {
                        const auto w = weights.rows(begin, end);
                        return (w * share.slice(2, begin, end)).to(dtype);
                      }),
          torch::where(empty, logit, torch::logaddexp(lse, logit))};
}

/// What attention() computes.
struct Task {
  Qkv tensors;
  Rule rule;
};
/// Of inputs that it checks.
ATTZOO_API Task attention_task(const torch::Tensor& q, const torch::Tensor& k,
                               const torch::Tensor& v, const AnyMask& mask, const AnyScore& score,
                               const AttentionOptions& options) {
  check_attention(q, k, v, options);
  check_stick(score, options);
  const int64_t batch = batch_size(q, k, v);
  const auto expand = [&](const torch::Tensor& t) {
    return t.size(0) == batch ? t : t.expand({batch, -1, -1, -1});
  };
  Task task{{expand(q), expand(k), expand(v)}, {}};
  const auto n = task.tensors.shape();
  const auto places = asked_places(mask, score.asks_places(), n, q.device());
  const auto placed_mask = places.defined() ? mask.placed(places) : mask;
  const auto placed_score = places.defined() ? score.placed(places) : score;
  placed_mask.check(n, q.device());
  placed_score.check(n, q.device());
  auto& rule = task.rule;
  rule.mask = placed_mask;
  rule.score = placed_score.resolve(n);
  rule.scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(3))));
  rule.dropout = {options.dropout};
  // A backward pass reads the output; its rounding weighs more where kept weights were enlarged.
  const bool learns_dropped = options.dropout > 0 && torch::GradMode::is_enabled();
  rule.wide = score.sink().defined() || learns_dropped;
  rule.stick_breaking = options.stick_breaking;
  if (rule.dropout.p > 0) rule.dropout.seed = options.seed ? *options.seed : random_seed();
  return task;
}

ATTZOO_API AttentionResult attention(const torch::Tensor& q_in, const torch::Tensor& k_in,
                                     const torch::Tensor& v_in, const AnyMask& mask,
                                     const AnyScore& score, const AttentionOptions& options,
                                     bool private_qk) {
  auto [tensors, rule] = attention_task(q_in, k_in, v_in, mask, score, options);
  const auto n = tensors.shape();
  const auto &q = tensors.q, &k = tensors.k;
  const auto dtype = q.scalar_type();
  const auto sink = score.sink();
  const auto computed = dispatch(tensors, rule);
  Captured read;
  if (!private_qk || !q.is_inference()) read = {q, k};
  rule.mask.tensors(read);
  rule.score.tensors(read);
  LazyWeights weights(
      {n.B, n.H, n.L, n.S},
      [q, k, rule = std::move(rule), rounded = sink.defined() ? computed.lse.scalar_type() : dtype,
       unchanged = Unchanged(read)](int64_t begin, int64_t end) {
        unchanged.check("LazyWeights");
        return reference_weights(q, dequantized(k, q.scalar_type()), rule, begin, end)
            .weights.to(rounded);
      });
  if (!sink.defined()) return {computed.output.to(dtype), std::move(weights), computed.lse};
  return with_sink({computed.output, std::move(weights), computed.lse}, sink, dtype);
}

}  // namespace core

ATTZOO_API AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k,
                                     const torch::Tensor& v, const core::AnyMask& mask,
                                     const core::AnyScore& score, const AttentionOptions& options) {
  return core::attention(q, k, v, mask, score, options, /*private_qk=*/false);
}

ATTZOO_API std::string explain(const torch::Tensor& q, const torch::Tensor& k,
                               const torch::Tensor& v, const core::AnyMask& mask,
                               const core::AnyScore& score, const AttentionOptions& options) {
  auto asked = options;
  asked.seed = options.seed.value_or(0);  // no number of torch's generator is drawn
  const auto [tensors, rule] = core::attention_task(q, k, v, mask, score, asked);
  return c10::str("q ", tensors.q.sizes(), " and k ", tensors.k.sizes(), ", ", q.scalar_type(),
                  ", ", q.device(), "\n", "64 queries at a time, the mask reaches ",
                  std::lround(100 * core::reached(rule.mask, tensors.shape())),
                  " % of all pairs\n") +
         core::explain(tensors, rule);
}

}  // namespace attzoo

#endif
