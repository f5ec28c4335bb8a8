// Products of few tokens with a layer's rows, against sums in float64.

#include <gtest/gtest.h>
#include <attzoo/kernel/few_tokens.hpp>

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

}  // namespace
}  // namespace attzoo::kernel
