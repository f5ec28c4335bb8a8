#pragma once
/// \file
/// The short causal convolution of each channel with the latest tokens, which stands before many
/// recurrences.

#include <attzoo/config.hpp>

#include <torch/types.h>

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

/// The output [B, n, C] in x's dtype, summed in float32 or float64. Differentiable any number of
/// times.
ATTZOO_API torch::Tensor convolve(const Convolution& c);

/// The latest K - 1 tokens, [B, K - 1, C]: of the last document alone, zeros before it.
ATTZOO_API torch::Tensor state_behind(const Convolution& c);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/checks.hpp>

namespace attzoo::core {

namespace convolution {

/// The tokens [first, first + length), counted from the state's first one on.
inline torch::Tensor tokens(const Convolution& c, int64_t first, int64_t length) {
  const int64_t before = c.before();
  if (first >= before) return c.x.narrow(1, first - before, length);
  const auto state =
      c.state.defined() ? c.state : torch::zeros({c.x.size(0), before, c.x.size(2)}, c.x.options());
  if (first + length <= before) return state.narrow(1, first, length);
  return torch::cat({state.slice(1, first), c.x.narrow(1, 0, first + length - before)}, 1);
}

/// t where the tokens [first, first + length(t)) have the document `run` [1 or B, . or 1], else 0.
inline torch::Tensor of_document(const Convolution& c, const torch::Tensor& t, int64_t first,
                                 const torch::Tensor& run) {
  const auto before = torch::zeros({c.run.size(0), c.before()}, c.run.options());
  const auto its = torch::cat({before, c.run}, 1).narrow(1, first, t.size(1));
  return torch::where((its == run).unsqueeze(-1), t, torch::zeros({}, t.options()));
}

/// The definition, on any device.
inline torch::Tensor by_definition(const Convolution& c) {
  const auto dtype = compute_dtype(c.x);
  const auto weight = c.weight.to(dtype);
  torch::Tensor sum;
  for (int64_t tap = 0; tap <= c.before(); ++tap) {
    auto x = tokens(c, tap, c.x.size(1));
    if (c.run.defined() && tap < c.before()) x = of_document(c, x, tap, c.run);
    const auto term = x.to(dtype) * weight.select(1, tap);
    sum = sum.defined() ? sum + term : term;
  }
  if (c.bias.defined()) sum = sum + c.bias.to(dtype);
  return (c.silu ? torch::silu(sum) : sum).to(c.x.scalar_type());
}

}  // namespace convolution

ATTZOO_API torch::Tensor convolve(const Convolution& c) { return convolution::by_definition(c); }

ATTZOO_API torch::Tensor state_behind(const Convolution& c) {
  const int64_t n = c.x.size(1);
  const auto latest = convolution::tokens(c, n, c.before());
  if (!c.run.defined() || n == 0) return latest.clone();  // no view of x, which may change
  return convolution::of_document(c, latest, n, c.run.narrow(1, n - 1, 1));
}

}  // namespace attzoo::core

#endif
