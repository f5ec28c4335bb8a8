#pragma once
// One problem of attention(), and the judgement of its results.

#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>

#include <functional>
#include <string>
#include <vector>

#include "gpu/report.hpp"

namespace bench {

constexpr auto kBf16 = torch::kBFloat16, kF16 = torch::kHalf, kF32 = torch::kFloat32,
               kF64 = torch::kFloat64;

struct Modifiers {
  attzoo::AnyMask mask = {};
  attzoo::AnyScore score = {};
};

/// Where a problem is computed, and the tensors that want a gradient there, in an order.
struct Setting {
  torch::Device device;
  torch::ScalarType stored, dtype;  // numbers are rounded to the first, and computed with in the
                                    // other
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
    const auto wide = dtype == kF64 ? dtype : kF32;
    learning.push_back(t.to(wide).to(device).detach().requires_grad_());
    return learning.back();
  }
};
using Make = std::function<Modifiers(Setting&)>;

struct Case {
  std::string name;
  torch::ScalarType dtype = kBf16;
  int64_t B = 2, H = 4, Hkv = 2, L = 300, S = 530, D = 64, E = 64;
  Make make = [](Setting&) { return Modifiers(); };
  attzoo::AttentionOptions options = {};
  std::function<torch::Tensor(const torch::Tensor&)> layout = [](const auto& t) { return t; };
  std::function<void(torch::Tensor& q, torch::Tensor& k, torch::Tensor& v)> spoil = {};
};

inline Make constant(attzoo::AnyMask mask, attzoo::AnyScore score = {}) {
  return [=](Setting&) { return Modifiers{mask, score}; };
}

struct Results {
  torch::Tensor output, lse;
  std::vector<torch::Tensor> grads;  // of q, k, v and what learns
  std::string way;                   // that attention took
};

/// Output, lse and gradients of a case in a dtype on a device; tensors stay there.
Results compute(const Case& c, torch::ScalarType dtype, const torch::Device& device);

/// Runs the case on the device by each way there is: kernels compiled at run time and chunks, or
/// the CPU's. Each must keep the error rule.
void judge_case(Entry& entry, const Case& c, const torch::Device& device);

/// The cases that attention has to pass.
std::vector<Case> attention_cases(bool quick);

}  // namespace bench
