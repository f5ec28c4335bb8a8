// The short convolution and its gradients, against their definition in float64.

#include <gtest/gtest.h>
#include <attzoo/kernel/half.hpp>
#include <attzoo/kernel/recurrence/short_convolution.hpp>

#include <cmath>
#include <string>
#include <type_traits>

#include "support.hpp"

namespace attzoo::kernel {
namespace {

struct Case {
  int B, n, C, K;
  bool silu = true, bias = true, state = true, packed = false;
  DType half = DType::kBFloat16;
};

/// Numbers of a tensor in its own type and as float64.
template <class In>
struct Both {
  Buffer<In> own;
  std::vector<double> wide;

  Both(size_t n, unsigned seed, DType half) {
    const auto from = random_numbers<std::conditional_t<sizeof(In) == 8, double, float>>(n, seed);
    own.resize(n);
    for (size_t i = 0; i < n; ++i) {
      if constexpr (sizeof(In) > 2) {
        own[i] = from[i];
      } else {
        own[i] = half == DType::kBFloat16 ? float_to_bfloat16(from[i]) : float_to_half(from[i]);
      }
    }
    widen(half);
  }
  void widen(DType half) {
    wide.clear();
    for (const In x : own) {
      if constexpr (sizeof(In) > 2) {
        wide.push_back(x);
      } else {
        wide.push_back(half == DType::kBFloat16 ? __builtin_bit_cast(float, uint32_t{x} << 16)
                                                : half_to_float(x));
      }
    }
  }
};

/// Inputs, outputs and gradients; T is the type of sums, In that of tokens.
template <class T, class In>
class Checked {
 public:
  explicit Checked(const Case& c)
      : c_(c),
        x_(tokens(c.n), 1, c.half),
        state_(tokens(c.K - 1), 2, c.half),
        grad_(tokens(c.n), 3, c.half),
        weight_(random_numbers<T>(size(c.K * padded(c.C)), 4)),
        bias_(random_numbers<T>(size(padded(c.C)), 5)),
        run_(size(c.B * c.n)) {
    for (int b = 0; b < c.B; ++b) {
      for (int t = 1; t < c.n; ++t) {
        run_[at(b, t)] = run_[at(b, t - 1)] + ((t * 7 + b) % 11 < 2 ? 1 : 0);
      }
    }
    p_.x = rows(x_.own, c.n);
    if (c.state) p_.state = rows(state_.own, c.K - 1);
    p_.weight = weight_.data();
    if (c.bias) p_.bias = bias_.data();
    if (c.packed) p_.run = run_.data(), p_.run_b = c.n;
    p_.B = c.B, p_.n = c.n, p_.C = c.C, p_.K = c.K;
    p_.silu = c.silu;
  }

  void forward(double tolerance) {
    Both<In> out(tokens(c_.n), 6, c_.half), parts = out;
    const int64_t all = int64_t{c_.B} * c_.n, some = all / 3;
    convolve(p_, rows(out.own, c_.n), 0, all);
    for (const auto& [begin, end] : {std::pair{some, all}, {int64_t{0}, some}}) {
      convolve(p_, rows(parts.own, c_.n), begin, end);
    }
    EXPECT_TRUE(out.own == parts.own);
    out.widen(c_.half);
    each([&](int b, int t, int c) {
      const double y = sum(b, t, c);
      near(out.wide[at(b, t) * size(c_.C) + size(c)], c_.silu ? y / (1 + std::exp(-y)) : y,
           tolerance);
    });
  }

  void backward(double tolerance) {
    Both<In> dx(tokens(c_.n), 7, c_.half), dstate(tokens(c_.K - 1), 8, c_.half);
    const auto one = run_backward(1, dx, dstate);
    Both<In> other_dx = dx, other_dstate = dstate;
    const auto two = run_backward(2, other_dx, other_dstate);
    EXPECT_TRUE(dx.own == other_dx.own && dstate.own == other_dstate.own);
    dx.widen(c_.half);
    dstate.widen(c_.half);
    std::vector<double> of_x(dx.wide.size()), of_state(dstate.wide.size()),
        sums(size((c_.K + 1) * padded(c_.C)));
    each([&](int b, int t, int c) {
      const double y = sum(b, t, c), s = 1 / (1 + std::exp(-y));
      const double g =
          grad_.wide[at(b, t) * size(c_.C) + size(c)] * (c_.silu ? s * (1 + y * (1 - s)) : 1.0);
      for (int j = 0; j < c_.K; ++j) {
        const int before = t - c_.K + 1 + j;
        if (!sees(b, t, before)) continue;
        sums[size(j * padded(c_.C) + c)] += g * value(b, before, c);
        (before < 0 ? of_state[place(b, before, c)] : of_x[place(b, before, c)]) += g * w(j, c);
      }
      sums[size(c_.K * padded(c_.C) + c)] += g;
    });
    for (size_t i = 0; i < of_x.size(); ++i) near(dx.wide[i], of_x[i], tolerance);
    for (size_t i = 0; c_.state && i < of_state.size(); ++i) {
      near(dstate.wide[i], of_state[i], tolerance);
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      EXPECT_TRUE(bits(one[i]) == bits(two[i]));
      if (static_cast<int>(i) % padded(c_.C) < c_.C) near(one[i], sums[i], 4 * tolerance);
    }
  }

 private:
  static size_t size(int n) { return static_cast<size_t>(n); }
  size_t tokens(int n) const { return size(c_.B * n * c_.C); }
  size_t at(int b, int t) const { return size(b * c_.n + t); }
  View rows(Buffer<In>& of, int n) const { return view(of, 1, n, c_.C, c_.half); }
  static void near(double got, double want, double tolerance) {
    ASSERT_NEAR(got, want, tolerance * (1 + std::abs(want)));
  }
  template <class F>
  void each(const F& f) const {
    for (int b = 0; b < c_.B; ++b) {
      for (int t = 0; t < c_.n; ++t) {
        for (int c = 0; c < c_.C; ++c) f(b, t, c);
      }
    }
  }
  double w(int j, int c) const { return weight_[size(j * padded(c_.C) + c)]; }
  bool sees(int b, int t, int before) const {
    return !c_.packed || run_[at(b, t)] == (before < 0 ? 0 : run_[at(b, before)]);
  }
  size_t place(int b, int t, int c) const {
    return t < 0 ? size((b * (c_.K - 1) + t + c_.K - 1) * c_.C + c)
                 : at(b, t) * size(c_.C) + size(c);
  }
  double value(int b, int t, int c) const {
    return t >= 0 ? x_.wide[place(b, t, c)] : c_.state ? state_.wide[place(b, t, c)] : 0.0;
  }
  double sum(int b, int t, int c) const {
    double y = c_.bias ? double{bias_[size(c)]} : 0.0;
    for (int j = 0; j < c_.K; ++j) {
      const int before = t - c_.K + 1 + j;
      if (sees(b, t, before)) y += w(j, c) * value(b, before, c);
    }
    return y;
  }
  Buffer<T> run_backward(int threads, Both<In>& dx, Both<In>& dstate) {
    Buffer<T> sums;
    sums.resize(size(c_.B * p_.blocks() * (c_.K + 1) * padded(c_.C)), T(99));
    ConvolutionGradients<T> g{rows(grad_.own, c_.n), rows(dx.own, c_.n), {}, sums.data()};
    if (c_.state) g.state = rows(dstate.own, c_.K - 1);
    Threads runtime(threads);
    convolve_backward(p_, g, runtime);
    return sums;
  }

  Case c_;
  Both<In> x_, state_, grad_;
  Buffer<T> weight_, bias_;
  std::vector<int64_t> run_;
  ConvolutionProblem<T> p_;
};

template <class T, class In = T>
void check(const Case& c, double tolerance) {
  SCOPED_TRACE("B " + std::to_string(c.B) + " n " + std::to_string(c.n) + " C " +
               std::to_string(c.C) + " K " + std::to_string(c.K));
  Checked<T, In> checked(c);
  checked.forward(tolerance);
  checked.backward(tolerance);
}

const std::vector<Case> kCases{{2, 70, 5, 4},
                               {1, 1, 16, 4},
                               {2, 3, 33, 4, true, false},
                               {1, 130, 40, 4, true, true, false},
                               {2, 67, 19, 4, true, true, true, true},
                               {2, 40, 7, 1, true, true, true, true},
                               {1, 66, 20, 3, false, false},
                               {2, 9, 17, 13, true, true, true, true},
                               {1, 5, 2100, 4},
                               {1, 5, 600, 2, false}};

TEST(ShortConvolution, IsTheDefinition) {
  for (const auto& c : kCases) {
    check<double>(c, 1e-12);
    check<float>(c, 2e-5);
  }
}

TEST(ShortConvolution, TakesHalfTypes) {
  for (auto c : kCases) {
    check<float, uint16_t>(c, 0x1p-8);
    c.half = DType::kFloat16;
    check<float, uint16_t>(c, 0x1p-10);
  }
}

}  // namespace
}  // namespace attzoo::kernel
