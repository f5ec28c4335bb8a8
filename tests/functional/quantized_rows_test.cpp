// Rows of 8 bits: their numbers, and attention to them as they are.

#include <gtest/gtest.h>
#include <attzoo/attzoo.hpp>

#include <limits>
#include <vector>

#include "support/expect_error.hpp"

namespace attzoo::testing {
namespace {

constexpr torch::ScalarType kTypes[] = {torch::kInt8, torch::kFloat8_e4m3fn};

class QuantizedRows : public ::testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(7); }
};

TEST_F(QuantizedRows, AreNearTheirNumbers) {
  for (const auto own : {torch::kFloat64, torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    for (const auto dtype : kTypes) {
      for (const int64_t D : {1, 3, 64, 100}) {
        const auto x = (torch::randn({2, 3, D, 5}, torch::kFloat64) * 10).to(own).transpose(2, 3);
        const auto rows = quantize_rows(x, dtype);
        EXPECT_EQ(rows.sizes(), torch::IntArrayRef({2, 3, 5, D + 4}));
        EXPECT_EQ(rows.element_size(), 1);
        const auto y = dequantize_rows(rows, torch::kFloat64), exact = x.to(torch::kFloat64);
        const auto largest = exact.abs().amax(-1, true);
        // Half a step of an integer; of a float 2^-4 of itself, or half of its least subnormal.
        const auto bound = dtype == torch::kInt8
                               ? largest / 127 / 2
                               : torch::maximum(exact.abs() * 0x1p-4, largest / 448 * 0x1p-10);
        EXPECT_TRUE(((y - exact).abs() <= bound * (1 + 1e-5)).all().item<bool>()) << dtype << D;
      }
    }
  }
}

/// The CPU's loop and ATen's operators give the same bits, of any finite number.
TEST_F(QuantizedRows, AreTheSameOnEveryDevice) {
  const auto x = torch::randn({500, 24}) * torch::pow(10.0, torch::randint(-38, 38, {500, 1}));
  x[0].zero_();
  x[1].fill_(1e-45);
  x[2][3] = std::numeric_limits<float>::max();
  for (const auto dtype : kTypes) {
    const float most = dtype == torch::kInt8 ? 127 : 448;
    EXPECT_TRUE(torch::equal(quantize_rows(x, dtype), core::quantize_by_tensors(x, dtype, most)));
  }
}

TEST_F(QuantizedRows, WhatIsNotFiniteMakesItsRowNaN) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const auto dtype : kTypes) {
    for (const float bad : {kInf, -kInf, std::numeric_limits<float>::quiet_NaN()}) {
      auto x = torch::randn({3, 8});
      x[1][2] = bad;
      const auto y = dequantize_rows(quantize_rows(x, dtype));
      EXPECT_TRUE(y[1].isnan().all().item<bool>());
      EXPECT_FALSE(y[0].isnan().any().item<bool>());
      EXPECT_FALSE(y[2].isnan().any().item<bool>());
    }
  }
}

/// One to many queries, heads in groups, masks and scores, as the reference over dequantized rows.
TEST_F(QuantizedRows, AreAttendedToAsTheyAre) {
  for (const auto own : {torch::kFloat32, torch::kBFloat16}) {
    const double tolerance = own == torch::kFloat32 ? 2e-5 : 2e-2;
    const auto same = [&](const torch::Tensor& a, const torch::Tensor& b) {
      return torch::allclose(a.to(torch::kFloat64), b, tolerance, tolerance);
    };
    const auto wide = [](const torch::Tensor& t) { return dequantize_rows(t, torch::kFloat64); };
    for (const auto dtype : kTypes) {
      for (const int64_t L : {1, 5, 40}) {
        for (const int64_t D : {24, 64}) {
          const auto q = torch::randn({2, 4, L, D}).to(own), q64 = q.to(torch::kFloat64);
          const auto rows = [&](int64_t features) {  // of a longer cache
            const auto all = quantize_rows(torch::randn({2, 2, 300, features}).to(own), dtype);
            return all.slice(2, 0, 290);
          };
          const auto k = rows(D), v = rows(40);
          const auto exact = attention(q64, wide(k), wide(v), causal(), softcap(5.0));
          const auto got = attention(q, k, v, causal(), softcap(5.0));
          EXPECT_TRUE(same(got.output, exact.output)) << L << ' ' << D;
          EXPECT_TRUE(same(got.lse, exact.lse)) << L << ' ' << D;
          EXPECT_TRUE(same(got.weights.tensor(), exact.weights.tensor())) << L << ' ' << D;
          EXPECT_EQ(got.output.scalar_type(), own);
          for (const int64_t M : {1, 7, 290}) {
            const auto index = torch::randperm(290).slice(0, 0, M).expand({1, 1, L, M});
            const auto some = chosen_attention(q, k, v, {.index = index}, causal());
            const auto want = chosen_attention(q64, wide(k), wide(v), {.index = index}, causal());
            EXPECT_TRUE(same(some.output, want.output)) << L << ' ' << D << ' ' << M;
            EXPECT_TRUE(same(some.weights.tensor(), want.weights.tensor())) << L << ' ' << M;
          }
        }
      }
    }
  }
}

/// What is computed otherwise dequantizes first.
TEST_F(QuantizedRows, GradientsOfQueries) {
  const auto q = torch::randn({1, 2, 9, 16}).requires_grad_();
  const auto rows = [] { return quantize_rows(torch::randn({1, 2, 40, 16}), torch::kInt8); };
  const auto k = rows(), v = rows();
  const auto gradient = [&](const torch::Tensor& keys, const torch::Tensor& values) {
    const auto y = attention(q, keys, values, causal()).output;
    return torch::autograd::grad({y.square().sum()}, {q})[0];
  };
  EXPECT_TRUE(torch::equal(gradient(k, v), gradient(dequantize_rows(k), dequantize_rows(v))));
  EXPECT_NE(explain(q, k, v).find("dequantized first"), std::string::npos);
  const torch::NoGradGuard no_grad;
  EXPECT_NE(explain(q.detach(), k, v).find("read in 8 bits"), std::string::npos);
}

TEST_F(QuantizedRows, WrongOnesAreErrors) {
  const auto x = torch::randn({1, 2, 8, 16}), rows = quantize_rows(x, torch::kInt8);
  const auto other = quantize_rows(x, torch::kFloat8_e4m3fn);
  expect_error([&] { quantize_rows(x, torch::kBFloat16); }, {"int8"});
  expect_error([&] { quantize_rows(rows, torch::kInt8); }, {"float32"});
  expect_error([&] { quantize_rows(torch::randn({}), torch::kInt8); }, {"D > 0"});
  expect_error([&] { dequantize_rows(x); }, {"int8"});
  expect_error([&] { dequantize_rows(rows.slice(3, 0, 4)); }, {"D + 4"});
  expect_error([&] { attention(x, rows, x); }, {"quantize_rows"});
  expect_error([&] { attention(x, x, rows); }, {"v must be float64"});
  expect_error([&] { attention(x, rows, other); }, {"one dtype"});
  expect_error([&] { attention(x.to(torch::kFloat64), rows, rows); }, {"float32"});
  expect_error([&] { attention(x, rows.slice(3, 0, 18), rows); }, {"last size"});
  expect_error([&] { attention(x, rows.mT().contiguous().mT(), rows); }, {"without gaps"});
  expect_error([&] { linear_attention(x, rows, rows); }, {"k must be float64"});
}

}  // namespace
}  // namespace attzoo::testing
