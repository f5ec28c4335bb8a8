#pragma once
/// \file
/// A case of attention on the pretended device, whose driver runs the kernels' PTX, against the
/// eager reference.

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/callables.hpp>
#include <attzoo/functional/cuda_jit.hpp>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/scores.hpp>

#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "cuda/pretended_cuda.hpp"
#include "support/error_rule.hpp"

namespace attzoo::testing {
using core::AnyMask, core::AnyScore;

constexpr auto kBf16 = torch::kBFloat16, kF16 = torch::kHalf, kF32 = torch::kFloat32;

struct Modifiers {
  AnyMask mask = {};
  AnyScore score = {};
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

struct Case {
  std::string name;
  torch::ScalarType dtype = kBf16;
  int64_t B = 1, H = 2, Hkv = 2, L = 130, S = 330, D = 16, E = 16;
  Make make = [](Setting&) { return Modifiers(); };
  AttentionOptions options = {};
  std::function<torch::Tensor(const torch::Tensor&)> layout = [](const auto& t) { return t; };
  std::function<void(torch::Tensor& q, torch::Tensor& k, torch::Tensor& v)> spoil = {};
};

inline Make constant(AnyMask mask, AnyScore score = {}) {
  return [=](Setting&) { return Modifiers{mask, score}; };
}

struct Results {
  torch::Tensor output, lse;
  std::vector<torch::Tensor> grads;  // of q, k, v and what learns
};

/// Output, lse and gradients of one case in a dtype on a device.
inline Results run(const Case& c, torch::ScalarType dtype, const torch::Device& device) {
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
  const auto modifiers = c.make(at);
  inputs.insert(inputs.end(), at.learning.begin(), at.learning.end());
  const auto r =
      attention(inputs[0], inputs[1], inputs[2], modifiers.mask, modifiers.score, c.options);
  const auto empty = r.lse == -std::numeric_limits<double>::infinity();
  const auto grads =
      torch::autograd::grad({r.output, r.lse}, inputs,
                            {grad.to(dtype).to(device),
                             grad_lse.to(r.lse.scalar_type()).to(device).masked_fill(empty, 0)},
                            std::nullopt, false, /*allow_unused=*/true);
  Results all{r.output.detach().cpu(), r.lse.detach().cpu(), {}};
  for (size_t i = 0; i < grads.size(); ++i) {
    all.grads.push_back(grads[i].defined() ? grads[i].cpu() : torch::zeros_like(inputs[i]).cpu());
  }
  return all;
}

inline void expect_attention(const Case& c, const char* forward = "forward") {
  SCOPED_TRACE(c.name);
  const torch::Device cuda(torch::kCUDA, 0), cpu(torch::kCPU);
  attzoo_reset();
  const auto got = run(c, c.dtype, cuda);
  EXPECT_TRUE(launched(forward) && launched("backward_queries") && launched("backward_keys"))
      << "not by kernels: " << attzoo_error();
  const EagerReferenceGuard eager;
  const auto gold = run(c, torch::kFloat64, cpu), own = run(c, c.dtype, cpu);
  const int64_t length = std::max(c.L, c.S) + c.D;
  expect_within_rule(got.output, gold.output, own.output, 2, length, "output");
  expect_within_rule(got.lse, gold.lse, own.lse, 2, length, "lse");
  for (size_t i = 0; i < got.grads.size(); ++i) {
    const int64_t terms =
        i < 3 ? length * c.H : c.L * c.S;  // a table's entry has those of many rows
    expect_within_rule(got.grads[i], gold.grads[i], own.grads[i], 3, terms,
                       "gradient " + std::to_string(i));
  }
}

class CudaKernels : public PretendedCuda {
 protected:
  void SetUp() override {
    PretendedCuda::SetUp();
    set_cuda_jit(true);
  }
};

}  // namespace attzoo::testing
