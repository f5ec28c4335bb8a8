#pragma once
/// \file
/// Derivatives against finite differences, in float64, at PyTorch's own settings (eps 1e-6,
/// atol 1e-5, rtol 1e-3).

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>

#include <functional>
#include <string>
#include <vector>

namespace attzoo::testing {

using Tensors = std::vector<torch::Tensor>;
using ScalarFunction = std::function<torch::Tensor()>;  // of the leaves, which it captures

/// Central differences of f with respect to every element of `leaf`.
inline torch::Tensor finite_difference(const ScalarFunction& f, const torch::Tensor& leaf) {
  constexpr double kEps = 1e-6;
  auto grad = torch::zeros_like(leaf).contiguous();
  torch::NoGradGuard no_grad;
  for (int64_t i = 0; i < leaf.numel(); ++i) {
    auto at = leaf.detach().flatten();  // a view of a contiguous leaf
    const double old = at[i].item<double>();
    at[i] = old + kEps;
    const double up = f().item<double>();
    at[i] = old - kEps;
    const double down = f().item<double>();
    at[i] = old;
    grad.view(-1)[i] = (up - down) / (2 * kEps);
  }
  return grad;
}

/// Checks d f / d leaf of every leaf (contiguous, float64, requires grad).
inline void gradcheck(const ScalarFunction& f, const Tensors& leaves, const std::string& what) {
  torch::AutoGradMode enable(true);
  const auto grads = torch::autograd::grad({f()}, leaves, {}, false, false, true);
  for (size_t i = 0; i < leaves.size(); ++i) {
    ASSERT_TRUE(leaves[i].is_contiguous() && leaves[i].scalar_type() == torch::kFloat64) << what;
    const auto want = finite_difference(f, leaves[i]);
    const auto got = grads[i].defined() ? grads[i] : torch::zeros_like(leaves[i]);
    EXPECT_TRUE(torch::allclose(got, want, 1e-3, 1e-5))
        << what << ": leaf " << i << " of shape " << leaves[i].sizes() << ", error "
        << (got - want).abs().max().item<double>();
  }
}

/// Checks second derivatives: the gradient, weighted with random numbers, is itself gradchecked.
inline void gradgradcheck(const ScalarFunction& f, const Tensors& leaves, const std::string& what) {
  torch::AutoGradMode enable(true);
  Tensors weights;
  for (const auto& leaf : leaves) weights.push_back(torch::randn_like(leaf));
  const auto weighted_gradient = [&] {
    torch::AutoGradMode inner(true);
    const auto grads = torch::autograd::grad({f()}, leaves, {}, true, /*create_graph=*/true, true);
    auto sum = torch::zeros({}, torch::kFloat64);
    for (size_t i = 0; i < leaves.size(); ++i) {
      if (grads[i].defined()) sum = sum + (grads[i] * weights[i]).sum();
    }
    return sum;
  };
  gradcheck(weighted_gradient, leaves, what + " (second derivative)");
}

}  // namespace attzoo::testing
