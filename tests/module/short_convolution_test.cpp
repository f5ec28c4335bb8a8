#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <attzoo/module/short_convolution.hpp>

#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/modules/conv.h>
#include <torch/serialize.h>

#include <climits>
#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "support/bad_inputs.hpp"
#include "support/expect_error.hpp"

namespace attzoo::testing::module_short_convolution_test {
namespace {

TEST(ShortConvolutionModule, IsTorchsConv1dOfThatWeight) {
  torch::manual_seed(1);
  for (const bool bias : {false, true}) {
    ShortConvolution conv({.channels = 12, .kernel_size = 3, .bias = bias, .silu = false});
    torch::nn::Conv1d upstream(
        torch::nn::Conv1dOptions(12, 12, 3).groups(12).padding(2).bias(bias));
    {
      torch::NoGradGuard no_grad;
      for (const auto& p : conv->named_parameters()) {
        auto theirs = upstream->named_parameters()[p.key()];
        ASSERT_EQ(theirs.sizes(), p.value().sizes());
        theirs.copy_(p.value());
      }
    }
    const auto x = torch::randn({2, 9, 12});
    const auto want = upstream(x.transpose(1, 2)).slice(2, 0, 9).transpose(1, 2);
    EXPECT_TRUE(torch::allclose(conv(x), want, 1e-5, 1e-6));
  }
}

TEST(ShortConvolutionModule, BeginsAsTorchsConv1d) {
  for (const int64_t K : {1, 4}) {
    ShortConvolution conv({.channels = 4096, .kernel_size = K, .bias = true});
    const double bound = 1 / std::sqrt(static_cast<double>(K));
    for (const auto& p : conv->parameters()) {
      EXPECT_LE(p.abs().max().item<double>(), bound);
      EXPECT_GT(p.abs().max().item<double>(), 0.9 * bound);
      EXPECT_NEAR(p.mean().item<double>(), 0, 0.1 * bound);
    }
  }
}

TEST(ShortConvolutionModule, DecodesTokenByToken) {
  torch::manual_seed(2);
  torch::NoGradGuard no_grad;
  ShortConvolution conv({.channels = 40});
  const auto x = torch::randn({2, 11, 40});
  const auto whole = conv(x);
  torch::Tensor state;
  for (int64_t t = 0; t < 11; ++t) {
    const auto y = conv->convolve(x.narrow(1, t, 1), state);
    EXPECT_TRUE(torch::equal(y.output, whole.narrow(1, t, 1))) << t;
    state = y.state;
  }
  EXPECT_TRUE(torch::equal(state, x.slice(1, 8)));
}

TEST(ShortConvolutionModule, PacksDocuments) {
  torch::manual_seed(3);
  ShortConvolution conv({.channels = 8, .bias = true});
  const auto x = torch::randn({2, 11, 8});
  const auto y = conv->convolve(x, {}, {.offsets = torch::tensor({0, 2, 11})}).output;
  EXPECT_TRUE(torch::equal(y.slice(1, 2), conv(x.slice(1, 2))));
}

TEST(ShortConvolutionModule, TakesHalfTypes) {
  torch::manual_seed(4);
  ShortConvolution conv({.channels = 24});
  const auto x = torch::randn({2, 30, 24});
  const auto want = conv(x);
  for (const auto dtype : {torch::kFloat64, torch::kBFloat16, torch::kHalf}) {
    const auto copy = std::dynamic_pointer_cast<ShortConvolutionImpl>(conv->clone());
    copy->to(dtype);
    const auto y = copy->convolve(x.to(dtype));
    EXPECT_EQ(y.output.scalar_type(), dtype);
    EXPECT_EQ(y.state.scalar_type(), dtype);
    EXPECT_TRUE(torch::allclose(y.output.to(torch::kFloat32), want, 0.03, 0.03));
  }
}

TEST(ShortConvolutionModule, RunsUnderAutocast) {
  torch::manual_seed(5);
  ShortConvolution conv({.channels = 24, .bias = true});
  const auto x = torch::randn({2, 30, 24});
  const auto want = conv(x);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const auto narrow = conv(x.to(torch::kBFloat16)), wide = conv(x);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(narrow.scalar_type(), torch::kBFloat16);
  EXPECT_TRUE(torch::allclose(narrow.to(torch::kFloat32), want, 0.03, 0.03));
  EXPECT_TRUE(torch::equal(wide, want));
  narrow.sum().backward();
  EXPECT_EQ(conv->weight.grad().scalar_type(), torch::kFloat32);
}

TEST(ShortConvolutionModule, LivesAsAModule) {
  torch::manual_seed(6);
  ShortConvolution conv({.channels = 4, .bias = true});
  EXPECT_EQ(conv->named_parameters().keys(), (std::vector<std::string>{"weight", "bias"}));
  EXPECT_EQ(conv->weight.sizes(), torch::IntArrayRef({4, 1, 4}));
  EXPECT_EQ(ShortConvolution({.channels = 4})->named_parameters().keys(),
            (std::vector<std::string>{"weight"}));
  std::ostringstream printed;
  printed << conv;
  EXPECT_EQ(printed.str(),
            "attzoo::ShortConvolution(channels=4, kernel_size=4, bias=true, silu=true)");

  const auto x = torch::randn({1, 5, 4});
  const auto want = conv(x);
  std::stringstream file;
  torch::serialize::OutputArchive out;
  conv->save(out);
  out.save_to(file);
  ShortConvolution other({.channels = 4, .bias = true});
  torch::serialize::InputArchive in;
  in.load_from(file);
  other->load(in);
  EXPECT_TRUE(torch::equal(other(x), want));

  const auto copy = std::dynamic_pointer_cast<ShortConvolutionImpl>(conv->clone());
  {
    torch::NoGradGuard no_grad;
    for (auto& p : conv->parameters()) p.fill_(3);
  }
  EXPECT_TRUE(torch::equal(copy->forward(x), want));
  const auto drawn = copy->weight.clone();
  copy->reset_parameters();
  EXPECT_FALSE(torch::equal(copy->weight, drawn));
}

TEST(ShortConvolutionModule, LearnsBehindItsState) {
  torch::manual_seed(7);
  ShortConvolution conv({.channels = 6, .bias = true});
  const auto x = torch::randn({2, 8, 6}).requires_grad_();
  const auto want = torch::autograd::grad({conv(x).square().sum()}, {x, conv->weight, conv->bias});
  const auto first = conv->convolve(x.slice(1, 0, 5));
  const auto rest = conv->convolve(x.slice(1, 5), first.state);
  const auto got = torch::autograd::grad({first.output.square().sum() + rest.output.square().sum()},
                                         {x, conv->weight, conv->bias});
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_TRUE(torch::allclose(got[i], want[i], 1e-4, 1e-5)) << i;
  }
}

TEST(ShortConvolutionModule, RefusesWhatItCannotConvolve) {
  for (const int64_t wrong : kNotPositive) {
    expect_error([&] { ShortConvolution conv({.channels = wrong}); }, {"channels must be > 0"});
    expect_error([&] { ShortConvolution conv({.channels = 4, .kernel_size = wrong}); },
                 {"kernel_size must be > 0"});
  }
  expect_error([] { ShortConvolution conv({.channels = INT64_MAX}); }, {"ShortConvolution"});
  expect_error([] { ShortConvolution conv({.channels = 1 << 20, .kernel_size = 1 << 20}); },
               {"ShortConvolution", "kernel_size"});
  ShortConvolution conv({.channels = 4});
  expect_error([&] { conv(torch::ones({2, 3, 5})); }, {"channels=4", "[2, 3, 5]"});
  expect_error([&] { conv(torch::ones({2, 4})); }, {"ShortConvolution", "[2, 4]"});
  expect_error([&] { conv(torch::ones({2, 3, 4}, torch::kHalf)); }, {"dtype"});
  expect_error([&] { conv(torch::ones({2, 3, 4}, torch::kLong)); }, {"x"});
  expect_error(
      [&] {
        conv->convolve(torch::ones({2, 3, 4}), torch::ones({2, 4, 4}));
      },
      {"initial_state", "[2, 3, 4]"});
}

}  // namespace
}  // namespace attzoo::testing::module_short_convolution_test
