#pragma once
// Definitions of attention.hpp.

#include <attzoo/core/attention/dispatch.hpp>
#include <attzoo/functional/attention.hpp>
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
  check_qkv("attention", q, k, v);
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

ATTZOO_API AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k,
                                     const torch::Tensor& v, const AnyMask& mask,
                                     const AnyScore& score, const AttentionOptions& options,
                                     bool private_qk) {
  check_attention(q, k, v, options);
  const int64_t batch = batch_size(q, k, v);
  if (q.size(0) != batch || k.size(0) != batch || v.size(0) != batch) {
    const auto expand = [&](const torch::Tensor& t) { return t.expand({batch, -1, -1, -1}); };
    return attention(expand(q), expand(k), expand(v), mask, score, options, private_qk);
  }
  const Qkv tensors{q, k, v};
  const auto n = tensors.shape();
  const auto places = asked_places(mask, score.asks_places(), n, q.device());
  if (places.defined()) {
    return attention(q, k, v, mask.placed(places), score.placed(places), options, private_qk);
  }
  mask.check(n, q.device());
  score.check(n, q.device());
  Rule rule{.mask = mask,
            .score = score.resolve(n),
            .scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(3)))),
            .dropout = {options.dropout},
            .wide = score.sink().defined()};
  if (rule.dropout.p > 0) rule.dropout.seed = options.seed.value_or(random_seed());
  const auto computed = dispatch(tensors, rule);
  Captured read;
  if (!private_qk || !q.is_inference()) read = {q, k};
  rule.mask.tensors(read);
  rule.score.tensors(read);
  LazyWeights weights(
      {n.B, n.H, n.L, n.S},
      [q, k, rule = std::move(rule), unchanged = Unchanged(read)](int64_t begin, int64_t end) {
        unchanged.check("LazyWeights");
        return reference_weights(q, k, rule, begin, end).weights.to(rule.output_dtype(q));
      });
  AttentionResult result{computed.output, std::move(weights), computed.lse};
  const auto sink = score.sink();
  if (sink.defined()) return with_sink(result, sink, q.scalar_type());
  return result;
}

}  // namespace core

ATTZOO_API AttentionResult attention(const torch::Tensor& q, const torch::Tensor& k,
                                     const torch::Tensor& v, const core::AnyMask& mask,
                                     const core::AnyScore& score, const AttentionOptions& options) {
  return core::attention(q, k, v, mask, score, options, /*private_qk=*/false);
}

}  // namespace attzoo
