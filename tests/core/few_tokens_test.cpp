#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <attzoo/functional/apply_linear.hpp>

#include <torch/csrc/autograd/autograd.h>

namespace attzoo::testing {
namespace {

TEST(FewTokens, LinearIsItsDefinition) {
  torch::manual_seed(0);
  const torch::NoGradGuard no_grad;
  for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16}) {
    for (const int64_t from : {1, 15, 16, 50, 300}) {
      for (const int64_t to : {1, 7, 1000}) {
        const auto w = torch::randn({to, from}, dtype), b = torch::randn({to}, dtype);
        for (const auto& x :
             {torch::randn({from}, dtype), torch::randn({1, 1, from}, dtype),
              torch::randn({2, 2, from}, dtype).transpose(0, 1), torch::randn({5, from}, dtype),
              torch::randn({from, 3}, dtype).t(), at::_neg_view(torch::randn({2, from}, dtype)),
              torch::randn({0, from}, dtype)}) {
          for (const auto& bias : {torch::Tensor(), b}) {
            const auto x64 = x.to(torch::kFloat64), w64 = w.to(torch::kFloat64);
            auto want = x64.matmul(w64.t());
            auto size = x64.abs().matmul(w64.abs().t());  // of the sums' terms
            if (bias.defined()) want = want + bias, size = size + bias.abs();
            const auto got = core::linear(x, w, bias);
            EXPECT_EQ(got.sizes(), want.sizes());
            EXPECT_EQ(got.scalar_type(), dtype);
            const double unit = dtype == torch::kFloat64   ? 1e-16
                                : dtype == torch::kFloat32 ? 6e-8
                                                           : 4e-3;
            EXPECT_TRUE(
                ((got.to(torch::kFloat64) - want).abs() <= 40 * unit * size).all().item<bool>())
                << dtype << " " << from << " " << to << " " << x.sizes();
          }
        }
      }
    }
  }
}

TEST(FewTokens, WhatDoesNotFitIsTorchLinears) {
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({2, 30}), w = torch::randn({7, 30});
  EXPECT_TRUE(torch::equal(apply_linear(x, w), core::linear(x, w)));
  const torch::nn::Linear layer(30, 7);
  EXPECT_TRUE(torch::equal(apply_linear(x, layer), apply_linear(x, layer->weight, layer->bias)));
  const auto number = torch::randn({1});  // broadcast
  EXPECT_TRUE(torch::allclose(apply_linear(x, w, number), torch::linear(x, w) + number));
  EXPECT_TRUE(torch::allclose(apply_linear(x, w[0]), torch::linear(x, w[0])));
  EXPECT_THROW(apply_linear(x, w, torch::randn({3})), c10::Error);
  EXPECT_THROW(apply_linear(x, torch::randn({7, 31})), c10::Error);
  EXPECT_THROW(apply_linear(torch::Tensor(), w), c10::Error);
}

TEST(FewTokens, SeveralLayersAreEachOfThem) {
  const torch::NoGradGuard no_grad;
  const std::vector<torch::nn::Linear> layers{torch::nn::Linear(300, 70), torch::nn::Linear(300, 5),
                                              torch::nn::Linear(300, 400)};
  for (const int64_t tokens : {1, 3, 9}) {
    const auto x = torch::randn({1, tokens, 300});
    const auto got = core::linear_each(x, layers);
    ASSERT_EQ(got.size(), layers.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_TRUE(torch::equal(got[i], core::linear(x, layers[i])));
    }
  }
}

TEST(FewTokens, BitsDoNotDependOnThreads) {
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({3, 700}), w = torch::randn({900, 700});
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const auto want = core::linear(x, w);
  at::set_num_threads(4);
  EXPECT_TRUE(torch::equal(core::linear(x, w), want));
  at::set_num_threads(before);
}

TEST(FewTokens, DerivativesAndAutocastAreKept) {
  torch::nn::Linear layer(6, 5);
  const auto x = torch::randn({2, 6}, torch::requires_grad());
  const auto got = torch::autograd::grad({core::linear(x, layer).square().sum()},
                                         {x, layer->weight, layer->bias});
  const auto want =
      torch::autograd::grad({layer(x).square().sum()}, {x, layer->weight, layer->bias});
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(torch::allclose(got[i], want[i]));

  const torch::NoGradGuard no_grad;
  const auto level = torch::autograd::forward_ad::enter_dual_level();
  const auto dual =
      torch::_make_dual(x.detach(), torch::randn({2, 6}), static_cast<int64_t>(level));
  const bool kept = core::linear(dual, layer)._fw_grad(level).defined();
  torch::autograd::forward_ad::exit_dual_level(level);
  EXPECT_TRUE(kept);

  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const auto cast = core::linear(x, layer);
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCPU, false);
  EXPECT_EQ(cast.scalar_type(), torch::kBFloat16);
}

TEST(FewTokens, WhatDoesNotFitIsAnError) {
  const torch::NoGradGuard no_grad;
  EXPECT_THROW(core::linear(torch::ones({2, 3}), torch::ones({4, 5})), c10::Error);
  EXPECT_THROW(core::linear(torch::ones({2, 5}), torch::ones({4, 5}, torch::kFloat64)), c10::Error);
}

}  // namespace
}  // namespace attzoo::testing
