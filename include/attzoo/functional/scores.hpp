#pragma once
/// \file
/// How scores change before the softmax: modifiers to compose with `+`, applied left to right. One
/// of your own is made from any callable (callables.hpp).

#include <attzoo/core/modifier/any_score.hpp>

namespace attzoo {

/// A score modifier of any type, as AnyMask is a mask; a default constructed one changes nothing.
using core::AnyScore;

/// Attention with linear biases: s - slopes[h] * |q - kv| (Press et al., 2021, arXiv:2108.12409).
/// `slopes` [H], floating; differentiable. Throws on another rank or dtype.
ATTZOO_API core::AlibiScore alibi(const torch::Tensor& slopes);

/// Bounds scores smoothly: cap * tanh(s / cap) (Gemma 2, arXiv:2408.00118). Throws unless cap is in
/// [1e-30, 1e30], so that float32 holds cap and 1 / cap with room to spare.
ATTZOO_API core::SoftcapScore softcap(double cap);

/// Adds a floating tensor to the scores, [L, S], [B, L, S] or [B, H, L, S]; sizes of 1 broadcast.
/// Differentiable with respect to the tensor. Throws c10::Error on another dtype or rank.
ATTZOO_API core::TensorBias bias_tensor(const torch::Tensor& bias);

/// Options of `relative_bias`.
struct RelativeBiasOptions {
  bool bidirectional = true;   ///< half of the buckets for keys after the query, as in an encoder
  int64_t max_distance = 128;  ///< from here on all distances share a bucket
};

/// T5's relative position bias (Raffel et al., 2020, arXiv:1910.10683): s + table[bucket(kv - q),
/// h]. `table` [buckets, H], floating; differentiable. Throws on another rank or dtype, fewer than
/// 4 buckets, or a max_distance that is not above the number of exact buckets.
ATTZOO_API core::RelativeBiasScore relative_bias(const torch::Tensor& table,
                                                 const RelativeBiasOptions& options = {});

/// Forgetting: s + c[q] - c[kv] for a key before the query, s + c[kv] - c[q] for one behind, where
/// c falls from token to token, by the logarithm of what a token lets pass; so tokens forget all
/// that is beyond those between (Lin et al., 2025, arXiv:2503.02130). `c` [B, H, S], floating and
/// finite, torch::log_sigmoid(gates).cumsum(-1) for example; of float64 also long sequences lose no
/// digits. With L != S the last query is the last key. Differentiable. Throws on another rank or
/// dtype, and for more queries than keys.
ATTZOO_API core::DecayScore decay(const torch::Tensor& c);

/// A learnable logit of each head that takes part in the softmax's denominator but has no value, so
/// that a query may attend to nothing (Xiao et al., 2023, arXiv:2309.17453). `logits` [H],
/// floating; differentiable. The weights then sum to less than 1, and lse includes the sink. Throws
/// on another rank or dtype.
ATTZOO_API core::SinkScore sink(const torch::Tensor& logits);

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL

namespace attzoo {

ATTZOO_API core::AlibiScore alibi(const torch::Tensor& slopes) {
  core::check_floating(slopes, "alibi", "slopes");
  TORCH_CHECK_VALUE(slopes.dim() == 1, "alibi: slopes must have shape [H], got ", slopes.sizes());
  return {slopes};
}

ATTZOO_API core::SoftcapScore softcap(double cap) {
  TORCH_CHECK_VALUE(cap >= 1e-30 && cap <= 1e30,
                    "softcap: cap must be > 0, within 1e-30 ... 1e30, got ", cap);
  return {cap};
}

ATTZOO_API core::TensorBias bias_tensor(const torch::Tensor& bias) {
  core::check_floating(bias, "bias_tensor", "bias");
  TORCH_CHECK_VALUE(bias.dim() >= 2 && bias.dim() <= 4,
                    "bias_tensor: expected [L, S], [B, L, S] or [B, H, L, S], got ", bias.sizes());
  return {core::mask_rank4(bias)};
}

ATTZOO_API core::RelativeBiasScore relative_bias(const torch::Tensor& table,
                                                 const RelativeBiasOptions& options) {
  core::check_floating(table, "relative_bias", "table");
  TORCH_CHECK_VALUE(table.dim() == 2 && table.size(0) >= 4,
                    "relative_bias: table must have shape [buckets >= 4, H], got ", table.sizes());
  const int64_t exact = table.size(0) / (options.bidirectional ? 4 : 2);
  TORCH_CHECK_VALUE(options.max_distance > exact, "relative_bias: max_distance must be > ", exact,
                    ", the number of exact buckets, got ", options.max_distance);
  return {table, options.bidirectional, options.max_distance};
}

ATTZOO_API core::DecayScore decay(const torch::Tensor& c) {
  core::check_floating(c, "decay", "c");
  TORCH_CHECK_VALUE(c.dim() == 3, "decay: c must have shape [B, H, S], got ", c.sizes());
  return {c};
}

ATTZOO_API core::SinkScore sink(const torch::Tensor& logits) {
  core::check_floating(logits, "sink", "logits");
  TORCH_CHECK_VALUE(logits.dim() == 1, "sink: logits must have shape [H], got ", logits.sizes());
  return {logits};
}

}  // namespace attzoo

#endif
