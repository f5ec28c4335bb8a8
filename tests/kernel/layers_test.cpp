// Products of few tokens with a layer's rows, against sums in float64.

#include <gtest/gtest.h>
#include <attzoo/kernel/decode/layers.hpp>

#include <cmath>
#include <vector>

#include "support.hpp"

namespace attzoo::kernel {
namespace {

template <class T>
void check(int64_t L, int64_t from, int64_t rows, bool bias, double tolerance) {
  const auto size = [](int64_t n) { return static_cast<size_t>(n); };
  auto x = random_numbers<T>(size(L * from), 1), w = random_numbers<T>(size(rows * from), 2),
       b = random_numbers<T>(size(rows), 3);
  const int64_t step = rows + 3;  // what lies between must stay
  std::vector<T> out(size(L * step), T(7)), parts = out;
  const FewTokens<T> p{.tokens = x.data(),
                       .weight = w.data(),
                       .bias = bias ? b.data() : nullptr,
                       .out = out.data(),
                       .L = L,
                       .from = from,
                       .rows = rows,
                       .step = step};
  multiply(p);
  for (int64_t l = 0; l < L; ++l) {
    for (int64_t i = 0; i < step; ++i) {
      double want = i >= rows ? 7 : bias ? double{b[size(i)]} : 0;
      for (int64_t d = 0; i < rows && d < from; ++d) {
        want += double{x[size(l * from + d)]} * w[size(i * from + d)];
      }
      ASSERT_NEAR(out[size(l * step + i)], want, tolerance) << L << " " << from << " " << i;
    }
  }
  auto cut = p;
  cut.out = parts.data();
  const int64_t middle = rows / 3;
  multiply(cut.part(0, middle));
  multiply(cut.part(middle, rows));
  ASSERT_EQ(parts, out) << "the bits depend on who computes the row";
}

TEST(KernelFewTokens, AreTheirDefinition) {
  for (const int64_t L : {1, 2, 4}) {
    for (const int64_t from : {1, 15, 16, 100, 512}) {
      for (const int64_t rows : {1, 7, 8, 50}) {
        for (const bool bias : {false, true}) {
          check<float>(L, from, rows, bias, 1e-4);
          check<double>(L, from, rows, bias, 1e-12);
        }
      }
    }
  }
}

template <class T>
void check_between_layers(int64_t n, double unit) {
  const auto size = static_cast<size_t>(n);
  auto a = random_numbers<T>(size, 1), b = random_numbers<T>(size, 2);
  std::vector<T> sum(size + 1, T(7)), gated = sum;  // what lies behind must stay
  add(a.data(), b.data(), sum.data(), n);
  swiglu(a.data(), b.data(), gated.data(), n);
  for (size_t i = 0; i < size; ++i) {
    ASSERT_EQ(sum[i], a[i] + b[i]) << n << " " << i;
    const double x = a[i], want = x / (1 + std::exp(-x)) * double{b[i]};
    ASSERT_NEAR(gated[i], want, 8 * unit * (1 + std::abs(x)) * std::abs(want)) << n << " " << i;
  }
  ASSERT_EQ(sum[size], 7);
  ASSERT_EQ(gated[size], 7);
}

TEST(KernelFewTokens, WhatStandsBetweenLayers) {
  for (const int64_t n : {0, 1, 3, 15, 16, 17, 100, 1376}) {
    check_between_layers<float>(n, 6e-8);
    check_between_layers<double>(n, 1.2e-16);
  }
}

TEST(KernelFewTokens, GatesFarOut) {
  std::vector<float> gate(32), in(32, 1.0f), out(32);
  for (size_t i = 0; i < 32; ++i) gate[i] = i % 2 ? 200.0f : -200.0f;
  swiglu(gate.data(), in.data(), out.data(), 32);
  for (size_t i = 0; i < 32; ++i) ASSERT_EQ(out[i], i % 2 ? 200.0f : 0.0f);
  // In place.
  swiglu(gate.data(), in.data(), gate.data(), 32);
  ASSERT_EQ(gate, out);
}

}  // namespace
}  // namespace attzoo::kernel
