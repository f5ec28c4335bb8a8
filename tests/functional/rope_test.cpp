#include <gtest/gtest.h>
#include <attzoo/functional/rope.hpp>

#include <cmath>

#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing {
namespace {

TEST(Rope, TurnsPairsByTheirAngles) {
  const auto x = torch::randn({2, 3, 5, 6}, torch::kFloat64);
  const auto y = apply_rope(x, {.base = 100, .position_offset = 7});
  for (int64_t p = 0; p < 5; ++p) {
    for (int64_t i = 0; i < 3; ++i) {
      const double angle =
          static_cast<double>(p + 7) * std::pow(100.0, -2.0 * static_cast<double>(i) / 6);
      const double a = x[1][2][p][2 * i].item<double>(), b = x[1][2][p][2 * i + 1].item<double>();
      EXPECT_NEAR(y[1][2][p][2 * i].item<double>(), a * std::cos(angle) - b * std::sin(angle),
                  1e-12);
      EXPECT_NEAR(y[1][2][p][2 * i + 1].item<double>(), a * std::sin(angle) + b * std::cos(angle),
                  1e-12);
    }
  }
}

TEST(Rope, FarPositionsStayExactInHalfTypes) {
  const auto x = torch::ones({1, 1, 64}, torch::kBFloat16);
  const RopeOptions far{.position_offset = 100003};
  const auto want = apply_rope(x.to(torch::kFloat64), far);
  EXPECT_LE((apply_rope(x, far).to(torch::kFloat64) - want).abs().max().item<double>(), 0.01);
}

TEST(Rope, TakesPositions) {
  const auto x = torch::randn({2, 3, 5, 6}, torch::kFloat64);
  const auto positions = torch::tensor({{0, 1, 2, 0, 1}, {0, 0, 1, 2, 3}});
  const auto y = apply_rope(x, {.position_offset = 4, .positions = positions.unsqueeze(1)});
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t i = 0; i < 5; ++i) {
      const auto row = x[b].slice(1, i, i + 1);
      const auto want = apply_rope(row, {.position_offset = 4 + positions[b][i].item<int64_t>()});
      EXPECT_TRUE(torch::allclose(y[b].slice(1, i, i + 1), want, 1e-12, 1e-14));
    }
  }
  expect_error([&] { apply_rope(x, {.positions = torch::arange(4)}); },
               {"apply_rope", "positions", "[2, 3, 5]", "[4]"});
}

TEST(Rope, KeepsLengthsAndWorksUnderInferenceMode) {
  auto x = torch::randn({4, 9, 8}, torch::kFloat64);
  {
    c10::InferenceMode guard;
    EXPECT_TRUE(torch::allclose(apply_rope(x).norm(2, -1), x.norm(2, -1)));
  }
  x.requires_grad_();
  gradcheck([&] { return apply_rope(x).sin().sum(); }, {x}, "rope");
  gradgradcheck([&] { return apply_rope(x).sin().sum(); }, {x}, "rope");
  EXPECT_EQ(apply_rope(torch::randn({2, 0, 4})).numel(), 0);
  EXPECT_EQ(apply_rope(torch::randn({2, 3, 0})).numel(), 0);
}

TEST(Rope, Errors) {
  expect_error([] { apply_rope(torch::randn({3, 5})); }, {"apply_rope", "even", "[3, 5]"});
  expect_error([] { apply_rope(torch::randn({4})); }, {"apply_rope", "[4]"});
  expect_error([] { apply_rope(torch::ones({3, 4}, torch::kInt64)); }, {"apply_rope", "Long"});
  expect_error([] { apply_rope(torch::randn({3, 4}).to_sparse()); }, {"apply_rope", "dense"});
  expect_error([] { apply_rope({}); }, {"apply_rope", "undefined"});
  for (const int64_t far :
       {std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()}) {
    expect_error(
        [&] {
          apply_rope(torch::randn({3, 4}), {.position_offset = far});
        },
        {"apply_rope", "position_offset", std::to_string(far)});
  }
  expect_error(
      [] {
        apply_rope(torch::randn({3, 4}), {.base = INFINITY});
      },
      {"apply_rope", "base"});
  expect_error([] { apply_rope(torch::randn({3, 4}), {.base = 0}); }, {"apply_rope", "base", "0"});
}

}  // namespace
}  // namespace attzoo::testing
