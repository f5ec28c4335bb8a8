#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <attzoo/core/layers/layers.hpp>
#include <attzoo/functional/apply_linear.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/callables.hpp>
#include <attzoo/functional/linear_attention.hpp>
#include <attzoo/functional/masks.hpp>

#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "support/error_rule.hpp"

namespace attzoo::testing::layers_test {
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

/// Sums and gated numbers of two tensors, by core and in plain ATen.
struct Between {
  std::string name;
  std::function<torch::Tensor(const torch::Tensor&, const torch::Tensor&)> core, plain;
};
const std::vector<Between>& between() {
  static const std::vector<Between> all{
      {"plus", core::plus, [](const auto& a, const auto& b) { return a + b; }},
      {"gelu", [](const auto& a, const auto& b) { return core::gelu(a) + b; },
       [](const auto& a, const auto& b) { return torch::gelu(a) + b; }},
      {"swiglu", core::swiglu, [](const auto& a, const auto& b) { return torch::silu(a) * b; }}};
  return all;
}

TEST(FewTokens, WhatStandsBetweenLayersIsItsDefinition) {
  torch::manual_seed(1);
  const torch::NoGradGuard no_grad;
  for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    const auto make = [&](torch::IntArrayRef sizes) { return 4 * torch::randn(sizes, dtype); };
    const std::vector<std::pair<torch::Tensor, torch::Tensor>> pairs{
        {make({1, 1, 1376}), make({1, 1, 1376})},
        {make({2, 3, 17}), make({2, 3, 17})},
        {make({40, 1000}), make({40, 1000})},  // more than few
        {make({5, 3}).t(), make({3, 5})},      // other strides
        {at::_neg_view(make({4, 33})), make({4, 66}).slice(1, 33)},
        {make({3, 7}), make({1, 7})},  // broadcast
        {make({0, 7}), make({0, 7})}};
    for (const auto& [a, b] : pairs) {
      for (const auto& f : between()) {
        expect_within_rule(f.core(a, b), f.plain(a.to(torch::kFloat64), b.to(torch::kFloat64)),
                           f.plain(a, b), 2, 1, c10::str(f.name, " ", dtype, " ", a.sizes()));
      }
    }
  }
  const auto far = torch::tensor({-INFINITY, INFINITY, NAN, -1e4f, 1e4f}), one = torch::ones({5});
  for (const auto& f : between()) {  // in float64, as oneDNN's gelu(inf) is NaN
    const auto want = f.plain(far.to(torch::kFloat64), one.to(torch::kFloat64)).to(torch::kFloat32);
    EXPECT_TRUE(torch::allclose(f.core(far, one), want, 1e-6, 1e-6, true)) << f.name;
  }
  const auto mixed = core::plus(torch::ones({3}), torch::ones({3}, torch::kFloat64));
  EXPECT_EQ(mixed.scalar_type(), torch::kFloat64);
  EXPECT_THROW(core::plus(torch::ones({3}), torch::ones({4})), c10::Error);
}

TEST(FewTokens, WhatStandsBetweenLayersHasDerivatives) {
  const auto a = torch::randn({2, 6}, torch::requires_grad()), b = torch::randn({2, 6}),
             weight = torch::randn({2, 6});
  for (const auto& f : between()) {
    for (const auto& [x, y] : {std::pair(a, b), std::pair(b, a)}) {
      const auto got = torch::autograd::grad({(f.core(x, y) * weight).sum()}, {a})[0];
      const auto want = torch::autograd::grad({(f.plain(x, y) * weight).sum()}, {a})[0];
      EXPECT_TRUE(torch::equal(got, want)) << f.name;
    }
    const torch::NoGradGuard no_grad;
    const auto level = torch::autograd::forward_ad::enter_dual_level();
    const auto dual = torch::_make_dual(b, torch::ones({2, 6}), static_cast<int64_t>(level));
    const bool kept = f.core(dual, a.detach())._fw_grad(level).defined();
    torch::autograd::forward_ad::exit_dual_level(level);
    EXPECT_TRUE(kept) << f.name;
  }
}

TEST(FewTokens, WhatStandsBetweenLayersUnderAutocastAndInference) {
  const auto a = torch::randn({2, 6}), b = torch::randn({2, 6});
  for (const auto& f : between()) {
    const c10::InferenceMode inference;
    const auto got = f.core(a, b);
    EXPECT_TRUE(got.is_inference());
    EXPECT_TRUE(torch::allclose(got, f.plain(a, b))) << f.name;
  }
  const auto half = a.to(torch::kBFloat16);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  for (const auto& f : between()) {
    EXPECT_TRUE(torch::equal(f.core(half, b), f.plain(half, b))) << f.name;
    EXPECT_TRUE(torch::equal(f.core(a, b), f.plain(a, b))) << f.name;
  }
  at::autocast::clear_cache();
  at::autocast::set_autocast_enabled(at::kCPU, false);
}

/// In a process of its own, where no kernel has run: `f` must throw an error that lists the names.
template <class F>
void expect_isa_error(const F& f) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        ::setenv("ATTZOO_ISA", "nonsense", /*overwrite=*/1);
        for (int i = 0; i < 2; ++i) {  // each time
          try {
            f();
            std::_Exit(0);
          } catch (const c10::Error& error) {
            std::fputs(error.what_without_backtrace(), stderr);
          }
        }
        std::_Exit(3);
      },
      ::testing::ExitedWithCode(3),
      "ATTZOO_ISA must be one of portable, avx2, avx512, avx512bf16, amx, best, got \"nonsense\"");
}

TEST(IsaDeathTest, AnUnknownInstructionSetIsAnError) {
  const torch::NoGradGuard no_grad;
  const auto t = torch::ones({1, 1, 8, 4});
  expect_isa_error([&] { attention(t, t, t, causal()); });
  expect_isa_error(
      [&] { attention(t, t, t, mask_mod([](auto, auto, auto q, auto kv) { return q >= kv; })); });
  expect_isa_error([&] { linear_attention(t, t, t, {.causal = true}); });
  expect_isa_error([&] { core::linear(torch::ones({1, 4}), torch::ones({3, 4}), {}); });
  expect_isa_error([&] { core::plus(torch::ones({4}), torch::ones({4})); });
  expect_isa_error([&] { core::swiglu(torch::ones({4}), torch::ones({4})); });
}

}  // namespace
}  // namespace attzoo::testing::layers_test
