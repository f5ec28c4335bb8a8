// Callables in the loops of each instruction set. This file is optimised, and products may be
// contracted (tests/CMakeLists.txt), as in a user's program.

#include <gtest/gtest.h>
#include <attzoo/kernel/modifier/callable_forms.hpp>
#include <attzoo/kernel/modifier/make_modifier.hpp>

#include <cmath>
#include <limits>
#include <vector>

namespace attzoo::kernel {
namespace {

constexpr int kPairs = 192;
constexpr int kLanes = TilePosition::kMostLanes;

/// Calls f with each row of lanes.
template <class F>
void for_each_row(F f) {
  int q[kLanes];
  for (int begin = 0; begin < kPairs; begin += kLanes) {
    for (int i = 0; i < kLanes; ++i) q[i] = begin + i;
    for (int kv = 0; kv < kPairs; ++kv) f(TilePosition{0, 0, q, kLanes, kv, 1, 1, true});
  }
}

/// How often it falls otherwise than `expected` (q, kv) says: as a mask, and in a score.
template <class F, class Expected>
int wrong_in_mask(F f, Expected expected) {
  const auto mask = make_mask(CallableMask<F>{f, 0});
  int wrong = 0;
  for_each_row([&](const TilePosition& t) {
    float s[kLanes] = {};
    mask.forbid(mask.self.get(), t, s, nullptr);
    for (int i = 0; i < kLanes; ++i) wrong += (s[i] == 0) != expected(t.q[i], t.kv);
  });
  return wrong;
}
template <class T, class F, class Expected>
int wrong_in_score(F f, Expected expected) {
  const auto choose = [f](auto s, auto b, auto h, auto q, auto kv) {
    return where(f(b, h, q, kv), s, 7);
  };
  const auto score = make_score<T>(CallableScore{choose, 0});
  int wrong = 0;
  for_each_row([&](const TilePosition& t) {
    T s[kLanes] = {}, d[kLanes] = {}, slope[kLanes];
    for (T& x : slope) x = 1;
    score.modify(score.self.get(), t, s, nullptr);
    score.modify(score.self.get(), t, d, slope);
    for (int i = 0; i < kLanes; ++i) {
      const bool want = expected(t.q[i], t.kv);
      wrong += (s[i] == 0) != want || (d[i] == 0) != want || (slope[i] == 1) != want;
    }
  });
  return wrong;
}

/// A number that has been rounded, whatever the compiler's flags.
struct Rounded {
  volatile double v;
  Rounded(double x) : v(x) {}  // NOLINT: implicit
  friend double operator+(const Rounded& a, const Rounded& b) { return a.v + b.v; }
  friend double operator-(const Rounded& a, const Rounded& b) { return a.v - b.v; }
  friend double operator*(const Rounded& a, const Rounded& b) { return a.v * b.v; }
  friend double operator/(const Rounded& a, const Rounded& b) { return a.v / b.v; }
};

#define EXPECT_PAIRS(pairs, ...)                                      \
  {                                                                   \
    const auto f = [](auto, auto, auto q, auto kv) { return pairs; }; \
    const auto expected = [](int iq, int ikv) {                       \
      const Rounded q = iq, kv = ikv;                                 \
      return __VA_ARGS__;                                             \
    };                                                                \
    EXPECT_EQ(wrong_in_mask(f, expected), 0) << #pairs;               \
    EXPECT_EQ(wrong_in_score<float>(f, expected), 0) << #pairs;       \
    EXPECT_EQ(wrong_in_score<double>(f, expected), 0) << #pairs;      \
  }

/// A product and a sum rounded once, as some CPUs can, would fall otherwise in a comparison.
TEST(Callables, ComparisonsFallTheSameWayOnEveryCpu) {
  using R = Rounded;
  EXPECT_PAIRS(0.1 * q > 0.3 * kv - 2.0, R(0.1) * q > R(R(0.3) * kv) - R(2.0))
  EXPECT_PAIRS(0.1 * q - 0.3 * kv > -2.0, R(R(0.1) * q) - R(R(0.3) * kv) > -2.0)
  EXPECT_PAIRS(0.1 * q + 0.7 == 0.1 * kv + 0.7, R(R(0.1) * q) + R(0.7) == R(R(0.1) * kv) + R(0.7))
  EXPECT_PAIRS(0.1 * q - 0.1 == 0.1 * (q - 1) && kv > 3,
               R(R(0.1) * q) - R(0.1) == R(0.1) * R(q - R(1)) && kv.v > 3)
  EXPECT_PAIRS(-(0.1 * kv) + 0.1 <= 0.1 * (1 - q), R(0.1) - R(R(0.1) * kv) <= R(0.1) * R(R(1) - q))
  EXPECT_PAIRS(floor(0.1 * q + 0.1 * kv) == floor(0.1 * (q + kv)),
               std::floor(R(R(0.1) * q) + R(R(0.1) * kv)) == std::floor(R(0.1) * R(q + kv)))
  EXPECT_PAIRS(q / 49.0 >= kv / 49.0 + 0.1, q / R(49.0) >= R(kv / R(49.0)) + R(0.1))
  EXPECT_PAIRS(3 * (0.1 * q) == 0.3 * kv, R(3) * R(R(0.1) * q) == R(0.3) * kv)
}

}  // namespace
}  // namespace attzoo::kernel
