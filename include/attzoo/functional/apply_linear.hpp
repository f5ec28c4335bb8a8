#pragma once
/// \file
/// Linear layers for a few tokens, such as a model's output layer in decoding.

#include <attzoo/core/layers/layers.hpp>

namespace attzoo {

/// What torch::nn::Linear computes: x [..., from] -> x W^T + bias [..., to], with weight [to, from]
/// and bias [to] or none. Where no gradient is asked for, at most 4 tokens of float32 or float64 on
/// the CPU take the time in which all threads read the weight; with some BLAS libraries, whose
/// matrix-vector product is serial, torch::linear takes that of one thread. All else is
/// torch::linear. The mechanisms' own layers use it. Throws what torch::linear throws. Example:
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
