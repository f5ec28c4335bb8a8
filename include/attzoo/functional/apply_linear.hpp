#pragma once
/// \file
/// Linear layers that are fast for a few tokens, as a model's output layer is asked for in
/// decoding.

#include <attzoo/core/few_tokens.hpp>

namespace attzoo {

/// What torch::nn::Linear computes: x [..., from] -> x W^T + bias [..., to], with weight [to, from]
/// and bias [to] or none. Where no gradient is asked for, at most 4 tokens on the CPU take the time
/// of reading the weight, by all threads; otherwise it is torch::linear, which reads it on one
/// thread. The mechanisms' own layers use it. Throws what torch::linear throws. Example:
/// `auto logits = apply_linear(norm(x), embed->weight);`
inline torch::Tensor apply_linear(const torch::Tensor& x, const torch::Tensor& weight,
                                  const torch::Tensor& bias = {}) {
  return core::linear(x, weight, bias);
}
/// The same for a layer: `apply_linear(norm(x), lm_head)`.
inline torch::Tensor apply_linear(const torch::Tensor& x, const torch::nn::Linear& layer) {
  return core::linear(x, layer);
}

}  // namespace attzoo
