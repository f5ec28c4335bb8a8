#include <gtest/gtest.h>
#include <attzoo/module/rms_norm.hpp>

#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <sstream>

#include "support/expect_error.hpp"

namespace attzoo::testing::rms_norm_test {
namespace {

torch::Tensor by_definition(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  const auto y = x.to(torch::kFloat64);
  return y / (y.square().mean(-1, true) + eps).sqrt() * weight.to(torch::kFloat64);
}

TEST(RMSNorm, IsItsDefinition) {
  for (const double eps : {0.0, 1e-6, 0.5}) {
    RMSNorm norm({.features = 12, .eps = eps});
    {
      torch::NoGradGuard no_grad;
      norm->weight.uniform_(-2, 2);
    }
    for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16, torch::kFloat16}) {
      norm->to(dtype);
      const auto x = torch::randn({3, 5, 12}).transpose(0, 1).to(dtype) * 10;
      const auto want = by_definition(x, norm->weight, eps);
      const auto error = (norm(x).to(torch::kFloat64) - want).abs().max().item<double>();
      const double unit = dtype == torch::kFloat64    ? 1e-15
                          : dtype == torch::kFloat32  ? 1e-7
                          : dtype == torch::kBFloat16 ? 1.0 / 256
                                                      : 1.0 / 2048;
      EXPECT_LT(error, 8 * unit * want.abs().max().item<double>()) << dtype;
      EXPECT_EQ(norm(x).scalar_type(), dtype);
    }
  }
}

TEST(RMSNorm, IsTheSameWithoutGradients) {
  for (const int64_t n : {1, 7, 16, 33, 512}) {
    for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
      RMSNorm norm({.features = n, .eps = 1e-3});
      norm->to(dtype);
      const torch::NoGradGuard no_grad;
      norm->weight.uniform_(-2, 2);
      for (const auto& x : {torch::randn({n}, dtype), torch::randn({3, 0, n}, dtype),
                            torch::randn({5, 3, n}, dtype).transpose(0, 1) * 100,
                            torch::randn({n, 40}, dtype).t() * 1e-3, torch::zeros({2, n}, dtype),
                            at::_neg_view(torch::randn({4, n}, dtype))}) {
        const auto want = by_definition(x, norm->weight, 1e-3);
        const auto got = norm(x);
        EXPECT_EQ(got.sizes(), x.sizes());
        EXPECT_EQ(got.scalar_type(), dtype);
        const double unit = dtype == torch::kFloat64 ? 1e-15 : 1e-7;
        EXPECT_TRUE(torch::allclose(got.to(torch::kFloat64), want, 8 * unit, 8 * unit)) << n;
      }
    }
  }
}

TEST(RMSNorm, ForwardDerivativesAreKept) {
  const torch::NoGradGuard no_grad;
  RMSNorm norm(5);
  const auto x = torch::randn({2, 5});
  const auto level = torch::autograd::forward_ad::enter_dual_level();
  const auto dual = torch::_make_dual(x, torch::randn({2, 5}), static_cast<int64_t>(level));
  const bool kept = norm(dual)._fw_grad(level).defined();
  torch::autograd::forward_ad::exit_dual_level(level);
  EXPECT_TRUE(kept);
}

TEST(RMSNorm, GradientsAreThoseOfItsDefinition) {
  RMSNorm norm(7);
  norm->to(torch::kFloat64);
  const auto x = torch::randn({4, 7}, torch::dtype(torch::kFloat64).requires_grad(true));
  const auto weights = torch::randn({4, 7}, torch::kFloat64);
  const auto got = torch::autograd::grad({(norm(x) * weights).sum()}, {x, norm->weight});
  const auto want = torch::autograd::grad(
      {(by_definition(x, norm->weight, norm->options.eps) * weights).sum()}, {x, norm->weight});
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(torch::allclose(got[i], want[i]));
}

TEST(RMSNorm, LivesAsAModule) {
  RMSNorm norm({.features = 4, .eps = 1e-5});
  std::ostringstream printed;
  printed << norm;
  EXPECT_EQ(printed.str(), "attzoo::RMSNorm(features=4, eps=1e-05)");
  const auto copy = std::dynamic_pointer_cast<RMSNormImpl>(norm->clone());
  {
    torch::NoGradGuard no_grad;
    norm->weight.fill_(3);
  }
  EXPECT_TRUE(copy->weight.equal(torch::ones(4)));
  EXPECT_EQ(norm->named_parameters().keys(), (std::vector<std::string>{"weight"}));
}

TEST(RMSNorm, RefusesWhatItCannotNorm) {
  expect_error([] { RMSNorm norm(0); }, {"RMSNorm: features must be > 0"});
  expect_error([] { RMSNorm norm({.features = 4, .eps = -1}); }, {"eps"});
  expect_error([] { RMSNorm norm({.features = 4, .eps = NAN}); }, {"eps"});
  RMSNorm norm(4);
  expect_error([&] { norm(torch::ones({2, 5})); }, {"[..., 4]", "[2, 5]"});
  expect_error([&] { norm(torch::ones({})); }, {"[..., 4]"});
  expect_error([&] { norm(torch::ones({2, 4}, torch::kHalf)); }, {"dtype"});
  expect_error([&] { norm(torch::ones({2, 4}, torch::kLong)); }, {"x"});
}

}  // namespace
}  // namespace attzoo::testing::rms_norm_test
