#pragma once
/// \file
/// A problem of attention() with what learns in it: its results in a dtype on a device. For
/// programs without GoogleTest, too.

#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/attention.hpp>

#include <functional>
#include <limits>
#include <utility>
#include <vector>

namespace attzoo::testing {

constexpr auto kBf16 = torch::kBFloat16, kF16 = torch::kHalf, kF32 = torch::kFloat32;

struct Modifiers {
  core::AnyMask mask = {};
  core::AnyScore score = {};
};
/// Where a case runs, and the tensors that want a gradient there, in an order.
struct Setting {
  torch::Device device;
  torch::ScalarType stored,
      dtype;  // numbers are rounded to the first, and computed with in the other
  std::vector<torch::Tensor> learning = {};

  torch::Tensor leaf(const torch::Tensor& t) const {
    return t.to(stored).to(dtype).to(device).detach().requires_grad_();
  }
  /// A parameter in the model's dtype.
  torch::Tensor learn(const torch::Tensor& t) {
    learning.push_back(leaf(t));
    return learning.back();
  }
  /// One in float32, or in float64 if all is.
  torch::Tensor learn_wide(const torch::Tensor& t) {
    const auto wide = dtype == torch::kFloat64 ? dtype : torch::kFloat32;
    learning.push_back(t.to(wide).to(device).detach().requires_grad_());
    return learning.back();
  }
};
using Make = std::function<Modifiers(Setting&)>;

inline Make constant(core::AnyMask mask, core::AnyScore score = {}) {
  return [=](Setting&) { return Modifiers{mask, score}; };
}

struct Results {
  torch::Tensor output, lse;
  std::vector<torch::Tensor> grads;  // of q, k, v and what learns
};

/// Output, lse and gradients of a case, an object with `dtype`, sizes B, H, Hkv, L, S, D, E, what
/// makes the modifiers, options, and what lays out and spoils q, k and v. Calls
/// before(q, k, v, mask, score).
template <class Case, class Before>
Results compute(const Case& c, torch::ScalarType dtype, const torch::Device& device, Before before,
                bool with_gradients = true) {
  torch::manual_seed(11);
  const auto numbers = [&](int64_t heads, int64_t length, int64_t features) {
    return torch::randn({c.B, heads, length, features}).to(c.dtype);
  };
  auto q = numbers(c.H, c.L, c.D), k = numbers(c.Hkv, c.S, c.D), v = numbers(c.Hkv, c.S, c.E);
  const auto grad = numbers(c.H, c.L, c.E), grad_lse = torch::randn({c.B, c.H, c.L});
  if (c.spoil) c.spoil(q, k, v);
  Setting at{device, c.dtype, dtype};
  std::vector<torch::Tensor> inputs;
  for (const auto& t : {q, k, v}) inputs.push_back(c.layout(at.leaf(t)).detach().requires_grad_());
  const auto [mask, score] = c.make(at);
  inputs.insert(inputs.end(), at.learning.begin(), at.learning.end());
  before(inputs[0], inputs[1], inputs[2], mask, score);
  const auto r = attention(inputs[0], inputs[1], inputs[2], mask, score, c.options);
  if (!with_gradients) return {r.output.detach(), r.lse.detach(), {}};
  const auto empty = r.lse == -std::numeric_limits<double>::infinity();
  auto grads =
      torch::autograd::grad({r.output, r.lse}, inputs,
                            {grad.to(dtype).to(device),
                             grad_lse.to(r.lse.scalar_type()).to(device).masked_fill(empty, 0)},
                            std::nullopt, false, /*allow_unused=*/true);
  for (size_t i = 0; i < grads.size(); ++i) {
    if (!grads[i].defined()) grads[i] = torch::zeros_like(inputs[i]);
  }
  return {r.output.detach(), r.lse.detach(), grads};
}

}  // namespace attzoo::testing
