#pragma once
// Definitions of scores.hpp.

#include <attzoo/functional/scores.hpp>

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

ATTZOO_API core::SinkScore sink(const torch::Tensor& logits) {
  core::check_floating(logits, "sink", "logits");
  TORCH_CHECK_VALUE(logits.dim() == 1, "sink: logits must have shape [H], got ", logits.sizes());
  return {logits};
}

}  // namespace attzoo
