#include <gtest/gtest.h>
#include <attzoo/kernel/dropout.hpp>
#include <attzoo/kernel/half.hpp>
#include <attzoo/kernel/modifier/lane.hpp>

#include <cmath>

#include "support.hpp"

namespace attzoo::kernel {
namespace {

// As the kernels call them, whatever this file is compiled with.
ATTZOO_BEGIN_KERNEL
template <class T>
T exp2_in_kernel(T x) {
  return exp2(x);
}
template <class T>
T tanh_in_kernel(T x) {
  return tanh(x);
}
ATTZOO_END_KERNEL

TEST(Math, ExponentialsAreAccurate) {
  for (float x = -120; x < 120; x += 0.0137f) {
    EXPECT_NEAR(exp2(x) / std::exp2(static_cast<double>(x)), 1, 4e-7) << x;
  }
  for (double x = -300; x < 300; x += 0.37) {
    EXPECT_NEAR(exp2(x) / std::exp2(x), 1, 1e-15) << x;
  }
  for (float x = -20; x < 20; x += 0.0031f) {
    EXPECT_NEAR(exp(x) / std::exp(static_cast<double>(x)), 1, 2e-6) << x;
  }
}

TEST(Math, ExponentialsAtTheEnds) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(exp2_in_kernel(-kInf), 0);
  EXPECT_EQ(exp2_in_kernel(-500.0f), 0);
  EXPECT_EQ(bits(exp2_in_kernel(kInf)), bits(kInf));
  EXPECT_EQ(bits(exp2_in_kernel(300.0f)), bits(kInf));
  EXPECT_EQ(exp2_in_kernel(0.0f), 1);
  EXPECT_TRUE(is_nan(exp2_in_kernel(std::nanf(""))));
  EXPECT_TRUE(is_nan(tanh_in_kernel(std::nanf(""))));
  EXPECT_NEAR(tanh_in_kernel(kInf), 1, 4e-7);
  EXPECT_LE(tanh_in_kernel(kInf), 1);
  EXPECT_NEAR(tanh_in_kernel(-kInf), -1, 4e-7);
  EXPECT_EQ(tanh_in_kernel(0.0), 0);
}

TEST(Math, TanhKeepsItsRelativeAccuracyAtZero) {
  const auto tanh = [](auto x) { return tanh_in_kernel(x); };
  for (float x = -12; x < 12; x += 0.00137f) {
    EXPECT_NEAR(tanh(x), std::tanh(static_cast<double>(x)), 6e-7 * std::abs(std::tanh(x))) << x;
  }
  for (const float x : {1e-30f, 1e-10f, -3e-5f}) EXPECT_NEAR(tanh(x) / x, 1, 1e-6);
  for (double x = -21; x < 21; x += 0.0037) {
    EXPECT_NEAR(tanh(x), std::tanh(x), 2e-15 * std::abs(std::tanh(x))) << x;
  }
}

/// Callables are compiled with the flags of their program: under -ffast-math, too, its functions
/// are right.
TEST(Math, InACallable) {
  for (float x = -20; x < 20; x += 0.0031f) {
    EXPECT_NEAR(exp(x) / std::exp(static_cast<double>(x)), 1, 2e-6) << x;
    EXPECT_NEAR(tanh(x), std::tanh(static_cast<double>(x)), 6e-7) << x;
    EXPECT_NEAR(tanh(static_cast<double>(x)), std::tanh(static_cast<double>(x)), 2e-15) << x;
  }
}

/// A callable as users write them: literals of any type, indices, all functions.
constexpr auto kEverything = [](auto s, auto b, auto h, auto q, auto kv) {
  using std::abs;
  using std::exp;
  using std::log;
  using std::max;
  using std::min;
  using std::sqrt;
  using std::tanh;
  auto x = 2 * tanh(s / 3.0) + exp(-0.5 * s) - abs(s) * 0.25 + sqrt(s * s + 1) / (s * s + 2);
  x = x + log(s * s + 1.5f) - 0.125 * (q - kv) + where(q >= kv, s * s, 3 * s) + sigmoid(s);
  return max(x, s - 7) + min(s, 0.5 * (b + h) + 1.0) / (1 + (q - kv) % 3);
};

TEST(Lane, DualNumbersDifferentiate) {
  using I = Index;
  for (double s = -3; s < 3; s += 0.173) {
    for (int kv = 0; kv < 4; ++kv) {
      const auto f = [&](double x) {
        return kEverything(Real<double>(x), I{1}, I{2}, I{5}, I{kv}).v;
      };
      const auto dual = kEverything(Dual<double>(s, 1), I{1}, I{2}, I{5}, I{kv});
      EXPECT_NEAR(dual.v, f(s), 1e-14);
      EXPECT_NEAR(dual.d, (f(s + 1e-6) - f(s - 1e-6)) / 2e-6, 1e-7) << s;
    }
  }
}

TEST(Lane, LiteralsDoNotWiden) {
  const Real<float> s(0.1f);
  static_assert(std::is_same_v<decltype(20.0 * s), Real<float>>);
  static_assert(std::is_same_v<decltype(0.5 * (Index{3} - Index{1}) * s), Real<float>>);
  static_assert(std::is_same_v<decltype((Index{3} % 2).v), int32_t>);
  static_assert(std::is_same_v<decltype(s * Index{3}), Real<float>>);
}

TEST(Half, EveryValueSurvives) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float f = half_to_float(h);
    if (is_nan(f)) {
      EXPECT_TRUE(is_nan(half_to_float(float_to_half(f))));
    } else {
      EXPECT_EQ(float_to_half(f), h);
    }
    const float b = __builtin_bit_cast(float, h << 16);
    if (!is_nan(b)) {
      EXPECT_EQ(float_to_bfloat16(b), h);
    }
  }
}

TEST(Half, RoundsToTheNearestEven) {
  EXPECT_EQ(half_to_float(float_to_half(1.0f + 0x1p-11f)), 1.0f);
  EXPECT_EQ(half_to_float(float_to_half(1.0f + 3 * 0x1p-11f)), 1.0f + 0x1p-9f);
  EXPECT_EQ(half_to_float(float_to_half(65519.0f)), 65504.0f);
  EXPECT_EQ(bits(half_to_float(float_to_half(65520.0f))), 0x7f800000);
  EXPECT_EQ(float_to_half(0x1p-25f), 0);
  EXPECT_EQ(half_to_float(float_to_half(0x1.8p-25f)), 0x1p-24f);
  EXPECT_EQ(float_to_bfloat16(1.0f + 0x1p-8f), 0x3f80);
  EXPECT_EQ(float_to_bfloat16(1.0f + 3 * 0x1p-8f), 0x3f82);
  EXPECT_TRUE(is_nan(__builtin_bit_cast(float, uint32_t{float_to_bfloat16(std::nanf(""))} << 16)));
}

TEST(Dropout, KeepsTheRightShareIndependently) {
  constexpr int kRows = 200, kKeys = 500;
  for (const double p : {0.1, 0.5, 0.9}) {
    int dropped = 0, pairs = 0;
    for (int q = 0; q < kRows; ++q) {
      const auto key = dropout_row_key<int64_t>(17, 1, 2, q);
      bool before = false;
      for (int kv = 0; kv < kKeys; ++kv) {
        const bool drop = dropout_bits<int64_t>(key, kv) < dropout_threshold(p);
        dropped += drop;
        pairs += drop && before;
        before = drop;
      }
    }
    EXPECT_NEAR(dropped / (1.0 * kRows * kKeys), p, 0.01);
    EXPECT_NEAR(pairs / (1.0 * kRows * kKeys), p * p,
                0.01);  // neighbours know nothing of each other
  }
}

/// Of another seed, sequence, head or query.
TEST(Dropout, OtherRowsDropOtherWeights) {
  const auto key = [](uint64_t seed, int64_t b, int64_t h, int64_t q) {
    return dropout_row_key<int64_t>(seed, b, h, q);
  };
  const auto row = key(17, 1, 2, 3), limit = dropout_threshold(0.5);
  for (const auto other : {key(18, 1, 2, 3), key(17 + (uint64_t{1} << 32), 1, 2, 3),
                           key(17, 2, 2, 3), key(17, 1, 3, 3), key(17, 1, 2, 4)}) {
    constexpr int kKeys = 10'000;
    int both = 0;
    for (int kv = 0; kv < kKeys; ++kv) {
      both += dropout_bits(row, int64_t{kv}) < limit && dropout_bits(other, int64_t{kv}) < limit;
    }
    EXPECT_NEAR(both / (1.0 * kKeys), 0.25, 0.02) << other;
  }
}

}  // namespace
}  // namespace attzoo::kernel
