// Causal linear attention, against its definition in float64.

#include <gtest/gtest.h>
#include <attzoo/kernel/recurrence/scan.hpp>

#include "support.hpp"

namespace attzoo::kernel {
namespace {

template <class T>
void check(int B, int H, int n, int F, int E, bool reverse, double tolerance) {
  const auto count = [&](int features) {
    return static_cast<size_t>(B) * static_cast<size_t>(H * n * features);
  };
  auto q = random_numbers<T>(count(F), 1), k = random_numbers<T>(count(F), 2),
       v = random_numbers<T>(count(E), 3), out = random_numbers<T>(count(E), 4);
  Threads runtime(2);
  scan<T>({.q = view(q, H, n, F),
           .k = view(k, H, n, F),
           .v = view(v, H, n, E),
           .out = view(out, H, n, E),
           .B = B,
           .H = H,
           .n = n,
           .F = F,
           .E = E,
           .reverse = reverse},
          runtime);
  const auto f = static_cast<size_t>(F), e = static_cast<size_t>(E),
             length = static_cast<size_t>(n);
  for (size_t i = 0; i < out.size() / e; ++i) {
    const size_t head = i / length * length;
    std::vector<double> want(e);
    for (size_t j = reverse ? i : head; j < (reverse ? head + length : i + 1); ++j) {
      double score = 0;
      for (size_t d = 0; d < f; ++d) score += double{q[i * f + d]} * k[j * f + d];
      for (size_t d = 0; d < e; ++d) want[d] += score * v[j * e + d];
    }
    for (size_t d = 0; d < e; ++d) ASSERT_NEAR(out[i * e + d], want[d], tolerance) << i << " " << d;
  }
}

TEST(Scan, IsTheDefinition) {
  for (const bool reverse : {false, true}) {
    check<double>(2, 2, 130, 5, 7, reverse, 1e-11);
    check<double>(1, 1, 64, 16, 140, reverse, 1e-11);
    check<float>(1, 2, 100, 17, 33, reverse, 2e-3);
    check<float>(1, 1, 1, 1, 1, reverse, 1e-5);
  }
}

/// Long sums keep their digits: of n times the same value, each output is exactly that value.
TEST(Scan, KeepsItsDigitsOverManyTokens) {
  constexpr int n = 100'000;
  Buffer<float> q, k, v, out;
  for (auto* x : {&q, &k, &v, &out}) x->resize(n, 1);
  for (auto& x : v) x = 0.1f;
  for (const bool reverse : {false, true}) {
    Threads runtime(1);
    scan<float>({.q = view(q, 1, n, 1),
                 .k = view(k, 1, n, 1),
                 .v = view(v, 1, n, 1),
                 .out = view(out, 1, n, 1),
                 .B = 1,
                 .H = 1,
                 .n = n,
                 .F = 1,
                 .E = 1,
                 .reverse = reverse},
                runtime);
    double error = 0;
    for (int i = 0; i < n; ++i) {
      const double sum = 0.1f * double(reverse ? n - i : i + 1);
      error = std::max(error, std::abs(out[static_cast<size_t>(i)] - sum) / sum);
    }
    EXPECT_LE(error, 5e-6) << reverse;  // as one chain it is 1e-3
  }
}

}  // namespace
}  // namespace attzoo::kernel
