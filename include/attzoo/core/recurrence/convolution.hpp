#pragma once
/// \file
/// A short causal convolution of tensors.

#include <torch/types.h>

#include <cstdint>

namespace attzoo::core {

/// y_t = act(bias + sum over j < K of weight[K - 1 - j] * x_{t-j}) in every channel.
struct Convolution {
  torch::Tensor x;           ///< [B, n, C]
  torch::Tensor weight;      ///< [C, K]
  torch::Tensor bias = {};   ///< [C], undefined: zeros
  torch::Tensor state = {};  ///< the tokens before the first, [B, K - 1, C], undefined: zeros
  torch::Tensor run = {};    ///< int64 [1 or B, n], the document of a token, the first one's is 0
  bool silu = true;          ///< act: silu, or none

  int64_t before() const { return weight.size(1) - 1; }  ///< tokens that a token sees before it
};

}  // namespace attzoo::core
