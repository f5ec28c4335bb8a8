// The fused kernel without LibTorch, against attention by its definition in float64.

#include <gtest/gtest.h>
#include <attzoo/kernel/attention.hpp>

#include "support.hpp"

namespace attzoo::kernel {
namespace {

struct Sizes {
  int B, H, Hkv, L, S, D, Dv;
};

/// One problem and its gradients, in memory of its own.
template <class T>
struct Case {
  Sizes n;
  double dropout;
  Buffer<T> q, k, v, grad, grad_lse, output, lse, gq, gk, gv;

  Case(const Sizes& sizes, double p) : n(sizes), dropout(p) {
    const auto count = [&](int heads, int length, int features) {
      return static_cast<size_t>(n.B) * static_cast<size_t>(heads * length * features);
    };
    q = random_numbers<T>(count(n.H, n.L, n.D), 1);
    k = random_numbers<T>(count(n.Hkv, n.S, n.D), 2);
    v = random_numbers<T>(count(n.Hkv, n.S, n.Dv), 3);
    grad = random_numbers<T>(count(n.H, n.L, n.Dv), 4);
    grad_lse = random_numbers<T>(count(n.H, n.L, 1), 5);
    output.resize(grad.size());
    lse.resize(grad_lse.size());
    gq.resize(q.size());
    gk.resize(count(n.Hkv, n.S, padded(n.D)));
    gv.resize(count(n.Hkv, n.S, padded(n.Dv)));
  }

  template <class Number>
  static View view(Buffer<Number>& x, int heads, int length, int features,
                   DType dtype = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32) {
    return {x.data(), dtype, int64_t{heads} * length * features, int64_t{length} * features,
            features, 1};
  }

  Problem<T> problem() {
    return {view(q, n.H, n.L, n.D),
            view(k, n.Hkv, n.S, n.D),
            view(v, n.Hkv, n.S, n.Dv),
            view(output, n.H, n.L, n.Dv),
            lse.data(),
            n.B,
            n.H,
            n.Hkv,
            n.L,
            n.S,
            n.D,
            n.Dv,
            T(0.4),
            dropout,
            99};
  }
  Gradients<T> gradients() {
    std::fill(gk.begin(), gk.end(), T(0));
    std::fill(gv.begin(), gv.end(), T(0));
    return {view(grad, n.H, n.L, n.Dv), view(gq, n.H, n.L, n.D), grad_lse.data(),
            view(gk, n.Hkv, n.S, padded(n.D)), view(gv, n.Hkv, n.S, padded(n.Dv))};
  }

  template <class Mask, class Score>
  void run(const Mask& mask, const Score& score, int threads) {
    Threads runtime(threads);
    const MaskAndScore<Mask, Score> modifiers{mask, score};
    forward(problem(), modifiers, runtime);
    backward(problem(), modifiers, gradients(), runtime);
  }

  /// The definition, pair by pair, in float64.
  template <class Mask, class Score>
  void expect_definition(const Mask& mask, const Score& score, double tolerance) {
    std::vector<double> dq(q.size()), dk(k.size()), dv(v.size());
    const auto S = static_cast<size_t>(n.S);
    constexpr double kForbidden = -1e300;  // anything below it, too
    std::vector<double> s(S), slope(S), w(S), factor(S);
    using I = Index;
    for (int b = 0; b < n.B; ++b) {
      for (int h = 0; h < n.H; ++h) {
        for (int i = 0; i < n.L; ++i) {
          const int hkv = h / (n.H / n.Hkv);
          const size_t row = static_cast<size_t>((b * n.H + h) * n.L + i);
          const auto key = [&](int j) { return static_cast<size_t>((b * n.Hkv + hkv) * n.S + j); };
          double max = kForbidden, sum = 0, delta = 0;
          for (int j = 0; j < n.S; ++j) {
            const auto at = static_cast<size_t>(j);
            double x = 0;
            for (int d = 0; d < n.D; ++d) x += double(q[row * n.D + d]) * k[key(j) * n.D + d];
            const auto y = score(Dual<double>(0.4 * x, 1), I{b}, I{h}, I{i}, I{j});
            s[at] = mask(b, h, i, j) ? y.v : kForbidden;
            slope[at] = y.d;
            max = std::max(max, s[at]);
            const auto bits = dropout_bits<int64_t>(dropout_row_key<int64_t>(99, b, h, i), j);
            factor[at] = bits >= dropout_threshold(dropout) ? 1 / (1 - dropout) : 0;
          }
          for (size_t j = 0; j < S; ++j) {
            sum += w[j] = s[j] > kForbidden ? std::exp(s[j] - max) : 0;
          }
          if (sum == 0) {
            EXPECT_TRUE(is_minus_infinity(lse[row]));
          } else {
            EXPECT_NEAR(lse[row], max + std::log(sum), tolerance);
          }
          for (auto& x : w) x = sum == 0 ? 0 : x / sum;
          for (int d = 0; d < n.Dv; ++d) {
            double x = 0;
            for (int j = 0; j < n.S; ++j) x += w[j] * factor[j] * v[key(j) * n.Dv + d];
            EXPECT_NEAR(output[row * n.Dv + d], x, tolerance);
            delta += x * grad[row * n.Dv + d];
          }
          delta -= grad_lse[row];
          for (int j = 0; j < n.S; ++j) {
            double dp = 0;
            for (int d = 0; d < n.Dv; ++d) {
              dp += double(grad[row * n.Dv + d]) * v[key(j) * n.Dv + d];
              dv[key(j) * n.Dv + d] += w[j] * factor[j] * grad[row * n.Dv + d];
            }
            if (w[j] == 0) continue;
            const double ds = 0.4 * w[j] * (dp * factor[j] - delta) * slope[j];
            for (int d = 0; d < n.D; ++d) {
              dq[row * n.D + d] += ds * k[key(j) * n.D + d];
              dk[key(j) * n.D + d] += ds * q[row * n.D + d];
            }
          }
        }
      }
    }
    for (size_t i = 0; i < dq.size(); ++i) EXPECT_NEAR(gq[i], dq[i], tolerance) << "dq " << i;
    for (size_t j = 0; j < static_cast<size_t>(n.B * n.Hkv * n.S); ++j) {
      for (int d = 0; d < n.D; ++d) {
        EXPECT_NEAR(gk[j * padded(n.D) + d], dk[j * n.D + d], tolerance) << "dk " << j;
      }
      for (int d = 0; d < n.Dv; ++d) {
        EXPECT_NEAR(gv[j * padded(n.Dv) + d], dv[j * n.Dv + d], tolerance) << "dv " << j;
      }
    }
  }
};

template <class T, class Mask, class Score>
void check(const char* what, const Sizes& n, const Mask& mask, const Score& score,
           double dropout = 0) {
  SCOPED_TRACE(what);
  Case<T> c(n, dropout);
  c.run(mask, score, 2);
  c.expect_definition(mask, score, sizeof(T) == 8 ? 1e-12 : 3e-5);
}

const Window kCausal{0, 1 << 30, 0};

TEST(Kernel, IsTheDefinition) {
  constexpr auto kLambda = [](auto s, auto, auto h, auto q, auto kv) {
    using std::tanh;
    return 2.0 * tanh(s / 2.0) - 0.02 * (h + 1) * (q - kv);
  };
  const ScoreFunction<decltype(kLambda)> lambda{kLambda, 0};
  check<double>("dense", {2, 4, 2, 37, 45, 20, 9}, Full{}, IdentityScore{});
  check<float>("dense in float", {1, 2, 1, 100, 90, 64, 64}, Full{}, IdentityScore{});
  check<double>("dropout", {2, 2, 1, 37, 45, 8, 5}, Full{}, IdentityScore{}, 0.3);
  check<double>("causal, callable", {1, 2, 2, 130, 130, 8, 8}, kCausal, lambda);
  check<float>("causal, callable in float", {1, 2, 2, 130, 130, 8, 8}, kCausal, lambda);
  check<double>("window", {1, 2, 1, 150, 150, 16, 16}, Window{0, 5, 3}, Softcap{2});
  check<double>("window, more keys", {1, 2, 1, 100, 150, 16, 16}, Window{50, 5, 3}, Softcap{2});
  check<double>("more queries than keys", {1, 1, 1, 150, 100, 8, 8}, Window{-50, 1 << 30, 0},
                IdentityScore{});
  check<double>("dilated", {1, 2, 2, 130, 123, 8, 8},
                And<Dilated, Window>{{-7, 3}, {-7, 20, 1 << 30}}, IdentityScore{}, 0.2);
  check<double>("blocks", {1, 2, 2, 130, 130, 8, 8}, Blocks{0, 20, 27, -3, 1 << 30}, lambda);
  check<double>("not", {1, 2, 2, 130, 130, 8, 8}, Not<Window>{{0, 20, 20}}, IdentityScore{});
  constexpr auto kScore = [](auto s, auto, auto, auto q, auto kv) {
    using std::exp;
    return where((q + kv) % 5 == 0, -std::numeric_limits<double>::infinity() + 0 * s,
                 exp(0.25 * s) - 1 / (1 + s * s));
  };
  constexpr auto kMask = [](auto, auto, auto q, auto kv) { return (q - kv) % 3 == 0; };
  const ScoreFunction<decltype(kScore)> score{kScore, 0};
  const MaskFunction<decltype(kMask)> mask{kMask, 0};
  check<double>("callables", {1, 2, 1, 70, 75, 8, 8}, mask, score);
  check<float>("callables in float", {1, 2, 1, 70, 75, 8, 8}, mask, score);
  check<float>("softcap in float", {1, 2, 1, 70, 75, 8, 8}, kCausal, Softcap{2});
}

TEST(Kernel, AllHeadDims) {
  for (const int d : {1, 2, 3, 5, 31, 59, 111, 257}) {
    check<double>("D and Dv", {1, 1, 1, 33, 40, d, 1 + d % 7}, Full{}, IdentityScore{});
    check<float>("D and Dv in float", {1, 1, 1, 33, 40, 1 + d % 5, d}, kCausal, IdentityScore{});
  }
}

TEST(Kernel, AllLengths) {
  for (const int n : {1, 2, 15, 16, 17, 31, 47, 48, 49, 63, 64, 65, 97, 129}) {
    check<double>("L", {1, 1, 1, n, 50, 4, 4}, Full{}, IdentityScore{});
    check<double>("S", {1, 1, 1, 50, n, 4, 4}, Full{}, IdentityScore{});
  }
}

/// One head of one sequence is split into chunks, whose gradients are added up in a fixed order.
TEST(Kernel, ResultsDoNotDependOnThreads) {
  const Sizes n{1, 1, 1, 1100, 1100, 16, 16};
  const auto results = [&](auto mask, int threads) {
    Case<float> c(n, 0.1);
    c.run(mask, Softcap{5}, threads);
    return std::tuple(c.output, c.lse, c.gq, c.gk, c.gv);
  };
  const auto all = [&](auto mask) {
    const auto one = results(mask, 1);
    for (int repeat = 0; repeat < 50; ++repeat) {
      EXPECT_TRUE(one == results(mask, repeat % 3 == 0 ? 1 : repeat % 3 == 1 ? 2 : 8));
    }
  };
  all(Window{0, 64, 64});
  all(Or<Window, Prefix>{{0, 30, 0}, {40}});
}

TEST(Kernel, OneHeadInChunksIsTheDefinition) {
  check<double>("dense", {1, 1, 1, 700, 700, 4, 4}, Full{}, IdentityScore{});
  check<double>("causal", {1, 2, 1, 700, 700, 4, 4}, kCausal, IdentityScore{});
  check<double>("window", {1, 1, 1, 700, 700, 4, 4}, Window{0, 20, 10}, IdentityScore{});
}

/// bfloat16 and float16, on memory that ends with the last number.
TEST(Kernel, HalfTypesAreTheirFloats) {
  for (const auto dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int features : {1, 7, 8, 31, 64}) {
      Case<float> wide({1, 2, 1, 40, 50, features, features}, 0);
      Case<float> half = wide;
      Buffer<uint16_t> q, k, v, grad;
      const auto convert = [&](Buffer<float>& from, Buffer<uint16_t>& to) {
        to.resize(from.size());
        for (size_t i = 0; i < from.size(); ++i) {
          const bool brain = dtype == DType::kBFloat16;
          if (i % 11 == 0) from[i] *= 1e-5f;  // subnormal in float16
          to[i] = brain ? float_to_bfloat16(from[i]) : float_to_half(from[i]);
          from[i] = brain ? __builtin_bit_cast(float, uint32_t{to[i]} << 16) : half_to_float(to[i]);
        }
      };
      convert(wide.q, q);
      convert(wide.k, k);
      convert(wide.v, v);
      convert(wide.grad, grad);
      wide.run(kCausal, IdentityScore{}, 2);
      auto p = half.problem();
      auto g = half.gradients();
      const auto view = [&](auto& x, int heads, int length) {
        return Case<float>::view(x, heads, length, features, dtype);
      };
      p.q = view(q, 2, 40);
      p.k = view(k, 1, 50);
      p.v = view(v, 1, 50);
      g.grad_output = view(grad, 2, 40);
      Threads runtime(2);
      const MaskAndScore<Window, IdentityScore> modifiers{kCausal, {}};
      forward(p, modifiers, runtime);
      backward(p, modifiers, g, runtime);
      if (isa() == Isa::kAmx && dtype == DType::kBFloat16) continue;  // rounds between the products
      EXPECT_TRUE(half.output == wide.output && half.lse == wide.lse) << features;
      EXPECT_TRUE(half.gq == wide.gq && half.gk == wide.gk && half.gv == wide.gv) << features;
    }
  }
}

/// Whatever such a query and its cotangents are: nothing of it reaches another gradient, and its
/// own is 0.
template <class T, class Mask>
void expect_no_part(const char* what, const Sizes& n, const Mask& mask) {
  SCOPED_TRACE(what);
  constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
  constexpr T kInf = std::numeric_limits<T>::infinity();
  Case<T> clean(n, 0.1), dirty(n, 0.1);
  const auto has_key = [&](size_t row) {
    const int i = static_cast<int>(row), q = i % n.L, h = i / n.L % n.H, b = i / n.L / n.H;
    for (int kv = 0; kv < n.S; ++kv) {
      if (mask(b, h, q, kv)) return true;
    }
    return false;
  };
  const auto features = static_cast<size_t>(n.Dv);
  int without = 0;
  for (size_t row = 0; row < dirty.lse.size(); ++row) {
    if (has_key(row)) continue;
    const T bad = without % 2 == 0 ? kNan : kInf;
    dirty.grad_lse[row] = bad;
    if (without % 3 < 2) dirty.grad[row * features + static_cast<size_t>(without) % features] = bad;
    if (without % 3 == 2) dirty.q[row * static_cast<size_t>(n.D)] = bad;
    ++without;
  }
  ASSERT_GT(without, 0);
  const auto tensors = [&](Case<T>& c, Buffer<T>& slopes, Buffer<T>& bias) {
    const auto length = static_cast<size_t>(n.L) * static_cast<size_t>(n.S);
    slopes = random_numbers<T>(static_cast<size_t>(n.H), 8);
    bias = random_numbers<T>(length, 9);
    using Score = Chain<Alibi<T>, Bias<T>>;
    const Score score{{n.S - n.L, slopes.data(), 1}, {bias.data(), 0, 0, n.S, 1}};
    c.run(mask, score, 2);
    Buffer<T> slope_sums, bias_sums;
    slope_sums.resize(TensorGradients<T>::kMostSlots * slopes.size());
    bias_sums.resize(length);
    TensorGradients<T> to;
    to.tensors = {{slope_sums.data(), 0, 1, 0, 0}, {bias_sums.data(), 0, 0, n.S, 1}};
    to.slot_stride = {n.H, 0};
    Threads runtime(2);
    backward_tensors(c.problem(), MaskAndScore<Mask, Score>{mask, score}, c.gradients(), to,
                     runtime);
    slopes = slope_sums;
    bias = bias_sums;
  };
  Buffer<T> clean_slopes, clean_bias, dirty_slopes, dirty_bias;
  tensors(clean, clean_slopes, clean_bias);
  tensors(dirty, dirty_slopes, dirty_bias);
  EXPECT_TRUE(clean.output == dirty.output);
  EXPECT_TRUE(clean.lse == dirty.lse);
  EXPECT_TRUE(clean.gq == dirty.gq);
  EXPECT_TRUE(clean.gk == dirty.gk);
  EXPECT_TRUE(clean.gv == dirty.gv);
  EXPECT_TRUE(clean_slopes == dirty_slopes);
  EXPECT_TRUE(clean_bias == dirty_bias);
  for (size_t row = 0; row < dirty.lse.size(); ++row) {
    if (has_key(row)) continue;
    EXPECT_TRUE(is_minus_infinity(dirty.lse[row]));
    for (size_t d = 0; d < static_cast<size_t>(n.D); ++d) {
      EXPECT_EQ(bits(dirty.gq[row * static_cast<size_t>(n.D) + d]), bits(T(0))) << row;
    }
  }
}

TEST(Kernel, QueriesWithoutKeysTakeNoPart) {
  constexpr auto kThirds = [](auto b, auto h, auto q, auto kv) {
    return (q + b + h) % 3 != 1 && kv <= q + 20;
  };
  const MaskFunction<decltype(kThirds)> thirds{kThirds, 0};
  const auto both = [&]<class T>(T) {
    expect_no_part<T>("every third", {2, 2, 1, 90, 75, 8, 5}, thirds);
    expect_no_part<T>("the first", {1, 2, 2, 70, 50, 20, 16}, Window{-20, 1 << 30, 0});
    expect_no_part<T>("in chunks", {1, 1, 1, 700, 700, 4, 4}, thirds);
    expect_no_part<T>("dilated", {1, 1, 1, 90, 40, 8, 8},
                      And<Dilated, Window>{{-50, 3}, {-50, 9, 9}});
  };
  both(float());
  both(double());
}

/// Padding of lanes and features never reaches the caller's memory.
TEST(Kernel, ForgottenMemoryStaysUntouched) {
  Case<float> c({1, 1, 1, 33, 40, 5, 5}, 0);
  c.output.resize(c.output.size() + 64, 7.0f);
  c.gq.resize(c.gq.size() + 64, 7.0f);
  c.run(Full{}, IdentityScore{}, 1);
  for (size_t i = 33 * 5; i < 33 * 5 + 64; ++i) EXPECT_TRUE(c.output[i] == 7 && c.gq[i] == 7) << i;
}

TEST(Kernel, SkippedKeysAreNeverRead) {
  const Sizes n{1, 1, 1, 200, 200, 8, 8};
  Case<float> clean(n, 0), dirty(n, 0);
  for (size_t i = 150 * 8; i < 200 * 8; ++i) dirty.k[i] = dirty.v[i] = std::nanf("");
  clean.run(Prefix{150}, IdentityScore{}, 2);
  dirty.run(Prefix{150}, IdentityScore{}, 2);
  EXPECT_TRUE(clean.output == dirty.output);
  EXPECT_TRUE(clean.gq == dirty.gq);
}

}  // namespace
}  // namespace attzoo::kernel
