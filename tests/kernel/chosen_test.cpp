// Attention to chosen keys, forward and backward, against its definition in float64.

#include <gtest/gtest.h>
#include <attzoo/kernel/decode/chosen.hpp>
#include <attzoo/kernel/half.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "support.hpp"

namespace attzoo::kernel {
namespace {

double value_of(double x) { return x; }
double value_of(float x) { return x; }
double value_of(uint16_t x) { return __builtin_bit_cast(float, uint32_t{x} << 16); }
template <class In>
In number_of(double x) {
  if constexpr (sizeof(In) == 2) return float_to_bfloat16(static_cast<float>(x));
  return static_cast<In>(x);
}

/// T computes, In is what queries, keys and values are of.
template <class T, class In>
struct Case {
  Tensors<T, In> t;
  int units, M;
  bool shared;  // by all units
  std::vector<int64_t> chosen;

  Case(const Sizes& n, int units_, int most, bool shared_, unsigned seed)
      : t(n), units(units_), M(most), shared(shared_) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (auto* x : {&t.q, &t.k, &t.v}) {
      for (auto& y : *x) y = number_of<In>(normal(random));
    }
    for (auto* x : {&t.grad, &t.grad_lse}) {
      for (auto& y : *x) y = static_cast<T>(normal(random));
    }
    const int lists = n.B * (shared ? 1 : units) * n.L;
    std::vector<int> keys(static_cast<size_t>(n.S));
    for (int list = 0; list < lists; ++list) {
      for (int j = 0; j < n.S; ++j) keys[static_cast<size_t>(j)] = j;
      std::shuffle(keys.begin(), keys.end(), random);
      const int gaps = list % 4 == 0 ? M : static_cast<int>(random() % 4);  // every fourth is empty
      for (int j = 0; j < M; ++j) {
        chosen.push_back(j < n.S && M - j > gaps ? keys[static_cast<size_t>(j)] : -1);
      }
      std::shuffle(chosen.end() - M, chosen.end(), random);
    }
  }

  ChosenProblem<T> problem() {
    const auto& n = t.n;
    const int64_t list = M, unit = shared ? 0 : n.L * list;
    return {.p = t.problem(T(0.3)),
            .chosen = chosen.data(),
            .chosen_b = (shared ? 1 : units) * n.L * list,
            .chosen_u = unit,
            .chosen_n = list,
            .units = units,
            .M = M};
  }
  void run(int threads) {
    Threads runtime(threads);
    attend_chosen(problem(), runtime);
    attend_chosen_backward(problem(), t.gradients(), runtime);
  }

  void expect_definition() {
    const auto& n = t.n;
    const double tolerance = sizeof(T) == 8 ? 1e-12 : 1e-4, scale = T(0.3);
    std::vector<double> gk(t.gk.size()), gv(t.gv.size());
    auto c = problem();
    for (int b = 0; b < n.B; ++b) {
      for (int h = 0; h < n.H; ++h) {
        const int hkv = h / (n.H / n.Hkv);
        for (int i = 0; i < n.L; ++i) {
          const size_t row = static_cast<size_t>((b * n.H + h) * n.L + i);
          const auto key = [&](int64_t j) {
            return static_cast<size_t>((b * n.Hkv + hkv) * n.S + j);
          };
          std::vector<int64_t> keys;
          for (int m = 0; m < M; ++m) {
            if (const int64_t j = c.row(b, h / (n.H / units), i)[m]; j >= 0) keys.push_back(j);
          }
          std::vector<double> w, dp;
          double sum = 0, mean = 0;
          for (const int64_t j : keys) {
            double s = 0, g = 0;
            for (int d = 0; d < n.D; ++d) {
              s += value_of(t.q[row * n.D + d]) * value_of(t.k[key(j) * n.D + d]);
            }
            for (int d = 0; d < n.Dv; ++d)
              g += t.grad[row * n.Dv + d] * value_of(t.v[key(j) * n.Dv + d]);
            w.push_back(std::exp(scale * s));
            dp.push_back(g);
            sum += w.back();
          }
          for (size_t m = 0; m < keys.size(); ++m) mean += (w[m] /= sum) * dp[m];
          std::vector<double> out(static_cast<size_t>(n.Dv)), gq(static_cast<size_t>(n.D));
          for (size_t m = 0; m < keys.size(); ++m) {
            const double ds = scale * w[m] * (dp[m] - mean + t.grad_lse[row]);
            for (int d = 0; d < n.Dv; ++d) {
              out[d] += w[m] * value_of(t.v[key(keys[m]) * n.Dv + d]);
              gv[key(keys[m]) * padded(n.Dv) + d] += w[m] * t.grad[row * n.Dv + d];
            }
            for (int d = 0; d < n.D; ++d) {
              gq[d] += ds * value_of(t.k[key(keys[m]) * n.D + d]);
              gk[key(keys[m]) * padded(n.D) + d] += ds * value_of(t.q[row * n.D + d]);
            }
          }
          if (keys.empty()) {
            EXPECT_TRUE(is_minus_infinity(t.lse[row]));
          } else {
            EXPECT_NEAR(t.lse[row], std::log(sum), tolerance) << row;
          }
          for (int d = 0; d < n.Dv; ++d)
            EXPECT_NEAR(t.output[row * n.Dv + d], out[d], tolerance) << row;
          for (int d = 0; d < n.D; ++d) {
            EXPECT_NEAR(value_of(t.gq[row * n.D + d]), gq[d], tolerance * (1 + std::abs(gq[d])))
                << row;
          }
        }
      }
    }
    for (size_t i = 0; i < gk.size(); ++i)
      EXPECT_NEAR(t.gk[i], gk[i], tolerance * (1 + std::abs(gk[i])));
    for (size_t i = 0; i < gv.size(); ++i)
      EXPECT_NEAR(t.gv[i], gv[i], tolerance * (1 + std::abs(gv[i])));
  }
};

template <class T, class In>
void check_random(unsigned seed) {
  std::mt19937 random(seed);
  const auto draw = [&](int from, int to) {
    return std::uniform_int_distribution<int>(from, to)(random);
  };
  for (int i = 0; i < 32 && !::testing::Test::HasFailure(); ++i) {
    const int Hkv = draw(1, 3), group = i % 16 == 5 ? 70 : draw(1, 6),
              S = draw(1, i % 3 ? 90 : 900);
    const auto features = [&] { return i % 2 == 0 ? 16 * draw(1, 5) : draw(1, 50); };
    const Sizes n{draw(1, 2), Hkv * group, Hkv,       draw(1, group > 6 ? 2 : 12),
                  S,          features(),  features()};
    const int units = draw(0, 1) ? n.Hkv : n.H, M = draw(1, std::min(S + 5, i % 8 == 3 ? 400 : 60));
    SCOPED_TRACE("case " + std::to_string(i) + " B" + std::to_string(n.B) + " H" +
                 std::to_string(n.H) + "/" + std::to_string(n.Hkv) + " L" + std::to_string(n.L) +
                 " S" + std::to_string(n.S) + " D" + std::to_string(n.D) + " Dv" +
                 std::to_string(n.Dv) + " units " + std::to_string(units) + " M" +
                 std::to_string(M));
    Case<T, In> c(n, units, M, draw(0, 1) == 1, seed + static_cast<unsigned>(i));
    c.run(draw(1, 3));
    c.expect_definition();
  }
}

TEST(Chosen, IsTheDefinition) {
  check_random<double, double>(1);
  check_random<float, float>(2);
  check_random<float, uint16_t>(3);
}

TEST(Chosen, ResultsDoNotDependOnThreads) {
  for (const Sizes& n : {Sizes{1, 8, 1, 33, 700, 32, 16}, Sizes{2, 6, 3, 9, 300, 48, 48}}) {
    Case<float, float> one(n, n.Hkv, 200, false, 5);
    one.run(1);
    for (const int threads : {2, 8}) {
      Case<float, float> other(n, n.Hkv, 200, false, 5);
      other.run(threads);
      expect_same_bits(one.t, other.t);
    }
  }
}

}  // namespace
}  // namespace attzoo::kernel
