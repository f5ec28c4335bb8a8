#include <gtest/gtest.h>
#include <attzoo/core/rope.hpp>

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
  expect_error([] { apply_rope(torch::randn({3, 4}), {.base = 0}); }, {"apply_rope", "base", "0"});
}

}  // namespace
}  // namespace attzoo::testing
