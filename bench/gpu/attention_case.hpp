#pragma once
// One problem of attention(), and the judgement of its results.

#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>

#include <functional>
#include <string>
#include <vector>

#include "gpu/report.hpp"
#include "support/attention_case.hpp"

namespace bench {

using attzoo::testing::constant, attzoo::testing::Make, attzoo::testing::Modifiers,
    attzoo::testing::Setting;
using attzoo::testing::kBf16, attzoo::testing::kF16, attzoo::testing::kF32;
constexpr auto kF64 = torch::kFloat64;

struct Case {
  std::string name;
  torch::ScalarType dtype = kBf16;
  int64_t B = 2, H = 4, Hkv = 2, L = 300, S = 530, D = 64, E = 64;
  Make make = [](Setting&) { return Modifiers(); };
  attzoo::AttentionOptions options = {};
  std::function<torch::Tensor(const torch::Tensor&)> layout = [](const auto& t) { return t; };
  std::function<void(torch::Tensor& q, torch::Tensor& k, torch::Tensor& v)> spoil = {};
};

struct Results : attzoo::testing::Results {
  std::string way;  // that attention took
};

/// Output, lse and gradients of a case in a dtype on a device; tensors stay there.
Results compute(const Case& c, torch::ScalarType dtype, const torch::Device& device);

/// Runs the case on the device by each way there is: kernels compiled at run time and chunks, or
/// the CPU's. Each must keep the error rule.
void judge_case(Entry& entry, const Case& c, const torch::Device& device);

/// The cases that attention has to pass.
std::vector<Case> attention_cases(bool quick);

}  // namespace bench
