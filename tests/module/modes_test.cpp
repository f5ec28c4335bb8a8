// LibTorch's modes leave every mechanism's numbers alone: InferenceMode, anomaly mode.

#include <gtest/gtest.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <string>

#include "support/every_mechanism.hpp"
#include "support/expect_error.hpp"

namespace attzoo::testing::modes_test {
namespace {

constexpr int64_t kTokens = 40;

struct Case {
  std::string name;
  AnyAttention attend;
};

/// In float64, and as after training: LSH draws its rotations once.
std::vector<Case> mechanisms() {
  std::vector<Case> all;
  for (const auto& listed :
       every_mechanism({.width = 32, .heads = 4, .span = 8, .longest = kTokens})) {
    all.push_back({listed.name, listed.make()});
    all.back().attend->to(torch::kFloat64);
    all.back().attend->eval();
  }
  return all;
}

bool same(const torch::Tensor& a, const torch::Tensor& b) {
  return torch::allclose(a, b, 1e-10, 1e-12);
}

TEST(Modes, InferenceModeLeavesNumbersAlone) {
  for (const auto& [name, attend] : mechanisms()) {
    const auto x = torch::randn({2, kTokens, 32}, torch::kFloat64);
    const auto want = attend(x).output.detach();
    const c10::InferenceMode inference;
    EXPECT_TRUE(same(attend(x).output, want)) << name;
    EXPECT_TRUE(same(attend(x.clone()).output, want)) << name << ", of its tensor";
  }
}

/// Of those whose gradients are made by different functions: LibTorch takes milliseconds a node.
TEST(Modes, AnomalyModeLeavesGradientsAlone) {
  for (const auto& [name, attend] : mechanisms()) {
    if (name != "multi_head" && name != "moba" && name != "performer" && name != "mamba2") continue;
    const auto x = torch::randn({2, kTokens, 32}, torch::kFloat64).requires_grad_();
    auto learn = attend->parameters();
    learn.push_back(x);
    const auto gradients = [&, &attend = attend] {
      return torch::autograd::grad({attend(x).output.square().sum()}, learn);
    };
    const auto want = gradients();
    const torch::autograd::DetectAnomalyGuard anomalies;
    const auto got = gradients();
    for (size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(same(got[i], want[i])) << name << i;
  }
}

/// A gradient that is NaN is an error there, whose node has a name.
TEST(Modes, AnomalyModeNamesWhereItBegan) {
  MultiHeadSelfAttention attn({.d_model = 8, .num_heads = 2});
  const auto x = torch::randn({1, 5, 8}).requires_grad_();
  const torch::autograd::DetectAnomalyGuard anomalies;
  const auto loss = (attn(x).output * std::numeric_limits<float>::quiet_NaN()).sum();
  expect_error([&] { loss.backward(); }, {"nan values"});
}

}  // namespace
}  // namespace attzoo::testing::modes_test
