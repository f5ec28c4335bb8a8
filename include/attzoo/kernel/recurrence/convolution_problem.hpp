#pragma once
/// \file
/// A short causal convolution as the kernels see it. T is float or double.

#include <attzoo/kernel/view.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// K is at most this.
inline constexpr int kMostTaps = 64;

/// Tokens that are not there: channels of zeros, of any type, as many as are computed at once.
inline constexpr int kMostChannels = 2048;
alignas(64) inline constexpr double kNoTokens[kMostChannels] = {};

/// y_t = act(bias + sum over j < K of weight[K - 1 - j] * x_{t-j}) in every channel. Of a view, b
/// and n are the strides of sequences and tokens; its channels lie one after the other.
template <class T>
struct ConvolutionProblem {
  View x;                        // [B, n, C]
  View state;                    // the tokens before, [B, K - 1, C], in x's type; no data: zeros
  const T* weight = nullptr;     // [K, padded(C)]
  const T* bias = nullptr;       // [padded(C)], null: zeros
  const int64_t* run = nullptr;  // the document of a token, the first one's is 0; null: all are one
  int64_t run_b = 0;
  int B = 0, n = 0, C = 0, K = 0;
  bool silu = true;

  static constexpr int kBlock = 64;  // tokens of a task in the backward pass
  int blocks() const { return (n + kBlock - 1) / kBlock; }
  int64_t document(int b, int64_t t) const {
    return run && t > 0 ? run[b * run_b + t] : 0;  // numbered from 0 in each row
  }
};

/// A gradient that is given, and where those that follow from it go; views as above, in x's type.
template <class T>
struct ConvolutionGradients {
  View out;           // given, [B, n, C]
  View x;             // [B, n, C]
  View state;         // [B, K - 1, C]; no data: nobody asks
  T* sums = nullptr;  // [B * blocks, K + 1, padded(C)]; at last the first are of weight and bias
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
