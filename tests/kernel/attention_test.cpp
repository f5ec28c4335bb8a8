// The fused kernel without LibTorch, against attention by its definition in float64.

#include <gtest/gtest.h>
#include <attzoo/kernel/attention/attention.hpp>
#include <attzoo/kernel/dropout.hpp>
#include <attzoo/kernel/half.hpp>

#include "modifiers.hpp"
#include "support.hpp"

namespace attzoo::kernel {
namespace {

constexpr double kScale = 0.4;

double share(double score) { return 1 / (1 + std::exp(-score)); }

template <class T>
struct Case : Tensors<T> {
  using Base = Tensors<T>;
  using Base::n, Base::q, Base::k, Base::v, Base::grad, Base::grad_lse, Base::output, Base::lse,
      Base::gq, Base::gk, Base::gv, Base::dropout;

  bool stick_breaking = false;

  explicit Case(const Sizes& sizes, double p = 0) : Base(sizes, p) {
    unsigned seed = 0;
    for (auto* x : {&q, &k, &v, &grad, &grad_lse}) *x = random_numbers<T>(x->size(), ++seed);
  }

  Problem<T> problem() {
    auto p = Base::problem(T(kScale));
    p.stick_breaking = stick_breaking;
    return p;
  }

  void run(const Modifiers<T>& m, int threads) {
    Threads runtime(threads);
    attend(problem(), m, runtime);
    attend_backward(problem(), m, this->gradients(), runtime);
  }

  /// The definition, pair by pair, in float64.
  void expect_definition(const AnyMask& mask, const AnyScore<T>& score, double tolerance) {
    std::vector<double> dq(q.size()), dk(k.size()), dv(v.size());
    const auto S = static_cast<size_t>(n.S);
    constexpr double kForbidden = -1e300;  // anything below it, too
    std::vector<double> s(S), slope(S), w(S), factor(S), gain(S);
    using I = Index;
    for (int b = 0; b < n.B; ++b) {
      for (int h = 0; h < n.H; ++h) {
        for (int i = 0; i < n.L; ++i) {
          const int hkv = h / (n.H / n.Hkv);
          const size_t row = static_cast<size_t>((b * n.H + h) * n.L + i);
          const auto key = [&](int j) { return static_cast<size_t>((b * n.Hkv + hkv) * n.S + j); };
          double max = kForbidden, sum = 0, delta = 0, left = 0;
          for (int j = 0; j < n.S; ++j) {
            const auto at = static_cast<size_t>(j);
            double x = 0;
            for (int d = 0; d < n.D; ++d) x += double(q[row * n.D + d]) * k[key(j) * n.D + d];
            const auto y = score.pair(Dual<double>(kScale * x, 1), I{b}, I{h}, I{i}, I{j});
            s[at] = mask.pair(b, h, i, j) ? y.v : kForbidden;
            slope[at] = y.d;
            max = std::max(max, s[at]);
            const auto bits = dropout_bits<int64_t>(dropout_row_key<int64_t>(99, b, h, i), j);
            factor[at] = bits >= dropout_threshold(dropout) ? 1 / (1 - dropout) : 0;
          }
          for (size_t j = S; j-- > 0;) {
            const bool counts = s[j] > kForbidden;
            w[j] = !counts          ? 0
                   : stick_breaking ? share(s[j]) * std::exp(left)
                                    : std::exp(s[j] - max);
            if (counts) left -= std::log1p(std::exp(s[j]));
            sum += w[j];
          }
          if (stick_breaking) {
            EXPECT_NEAR(lse[row], left, tolerance * std::max(1.0, -left));
            sum = 1;
          } else if (sum == 0) {
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
            gain[j] = w[j] * dp * factor[j];
          }
          double before = 0;  // gains of the keys before, this one included
          for (int j = 0; j < n.S; ++j) {
            before += gain[j];
            if (s[j] <= kForbidden || (w[j] == 0 && !stick_breaking)) continue;
            const double by_score = stick_breaking
                                        ? gain[j] - share(s[j]) * (before + grad_lse[row])
                                        : gain[j] - w[j] * delta;
            const double ds = kScale * by_score * slope[j];
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

template <class T>
void check(const char* what, const Sizes& n, const AnyMask& mask,
           const AnyScore<T>& score = unchanged<T>(), double dropout = 0) {
  SCOPED_TRACE(what);
  Case<T> c(n, dropout);
  c.run({mask.mask, score.score}, 2);
  c.expect_definition(mask, score, sizeof(T) == 8 ? 1e-12 : 3e-5);
}

AnyMask window(int shift, int left, int right) {
  return mask_of(CallableMask{Window{left, right}, shift});
}
AnyMask causal() { return window(0, 1 << 30, 0); }

TEST(Attention, IsTheDefinition) {
  const auto all = everybody();
  check<double>("dense", {2, 4, 2, 37, 45, 20, 9}, all);
  check<float>("dense in float", {1, 2, 1, 100, 90, 64, 64}, all);
  check<double>("dropout", {2, 2, 1, 37, 45, 8, 5}, all, unchanged<double>(), 0.3);
  const auto softcap = score_of<double>(Softcap{2});
  check("window", {1, 2, 1, 150, 150, 16, 16}, window(0, 5, 3), softcap);
  check("window, more keys", {1, 2, 1, 100, 150, 16, 16}, window(50, 5, 3), softcap);
  check<double>("more queries than keys", {1, 1, 1, 150, 100, 8, 8}, window(-50, 1 << 30, 0));
  check<double>("dilated", {1, 2, 2, 130, 123, 8, 8},
                mask_of(CallableMask{Dilated{3}, -7}) && window(-7, 20, 1 << 30),
                unchanged<double>(), 0.2);
  check<double>("not", {1, 2, 2, 130, 130, 8, 8}, !window(0, 20, 20));
  check<float>("softcap in float", {1, 2, 1, 70, 75, 8, 8}, causal(), score_of<float>(Softcap{2}));
}

TEST(Attention, BreaksSticksAsTheDefinition) {
  const auto check_stick = [](const char* what, const auto& score, const Sizes& n,
                              const AnyMask& mask, double dropout = 0) {
    SCOPED_TRACE(what);
    const auto run = [&]<class T>(const AnyScore<T>& any, double tolerance) {
      Case<T> c(n, dropout);
      c.stick_breaking = true;
      c.run({mask.mask, any.score}, 2);
      c.expect_definition(mask, any, tolerance);
    };
    if constexpr (std::is_same_v<decltype(score), const int&>) {
      run(unchanged<double>(), 1e-12);
      run(unchanged<float>(), 3e-5);
    } else {
      run(score_of<double>(score), 1e-12);
      run(score_of<float>(score), 3e-5);
    }
  };
  check_stick("all", 0, {2, 4, 2, 37, 45, 20, 9}, everybody());
  check_stick("before", 0, {1, 2, 1, 200, 200, 16, 16}, window(0, 1 << 30, -1));
  check_stick("dropout", 0, {2, 2, 1, 37, 45, 8, 5}, causal(), 0.3);
  check_stick("window, more keys", Softcap{2}, {1, 2, 1, 100, 150, 16, 16}, window(50, 5, 3));
  check_stick("more queries than keys", 0, {1, 1, 1, 150, 100, 8, 8}, window(-50, 1 << 30, 0));
  check_stick("dilated", 0, {1, 2, 2, 130, 123, 8, 8},
              mask_of(CallableMask{Dilated{3}, -7}) && window(-7, 20, 1 << 30));
  check_stick("one query", 0, {1, 2, 1, 1, 700, 8, 8}, everybody());
  const auto lambda = [](auto s, auto, auto h, auto q, auto kv) {
    return where((q + kv) % 5 == 0, -std::numeric_limits<double>::infinity() + 0 * s,
                 2.0 * s - 3.0 + 0.02 * (h + 1) * (q - kv));
  };
  check_stick("lambda", lambda, {1, 2, 1, 90, 90, 8, 8}, causal());
}

TEST(Attention, WithCallablesIsTheDefinition) {
  const auto lambda = [](auto s, auto, auto h, auto q, auto kv) {
    using std::tanh;
    return 2.0 * tanh(s / 2.0) - 0.02 * (h + 1) * (q - kv);
  };
  const auto score = [](auto s, auto, auto, auto q, auto kv) {
    using std::exp;
    return where((q + kv) % 5 == 0, -std::numeric_limits<double>::infinity() + 0 * s,
                 exp(0.25 * s) - 1 / (1 + s * s));
  };
  const auto mask =
      mask_of(CallableMask{[](auto, auto, auto q, auto kv) { return (q - kv) % 3 == 0; }, 0});
  const auto both = [&]<class T>(T) {
    const auto capped = score_of<T>(CallableScore{lambda, 0});
    check("causal", {1, 2, 2, 130, 130, 8, 8}, causal(), capped);
    check("blocks", {1, 2, 2, 130, 130, 8, 8},
          mask_of(CallableMask{Blocks{20, 27, -3, 1 << 30}, 0}), capped);
    check("two", {1, 2, 1, 70, 75, 8, 8}, mask, score_of<T>(CallableScore{score, 0}));
  };
  both(float());
  both(double());
}

TEST(Attention, WithCompositionsIsTheDefinition) {
  const auto thirds =
      mask_of(CallableMask{[](auto, auto, auto q, auto kv) { return (q - kv) % 3 == 0; }, 0});
  const auto shifted = [](auto s, auto, auto, auto q, auto kv) { return s - 0.1 * (q - kv); };
  const auto both = [&]<class T>(T) {
    const Sizes n{2, 2, 1, 90, 100, 8, 8};
    T slopes[] = {T(0.25), T(0.125)};
    double same[] = {0.25, 0.125};
    const auto score =
        score_of<T>(Softcap{3}) + score_of<T>(CallableScore{shifted, 0}) +
        score_of<T>(AlibiOfTensor<T>{{{slopes, 1}}, 10}, AlibiOfTensor<double>{{{same, 1}}, 10}) +
        score_of<T>(Softcap{2});
    check("and", n, (window(10, 40, 3) && thirds) || mask_of(CallableMask{Prefix{7}, 0}), score);
    check("not", n, !(thirds || window(10, 5, 5)) && window(10, 1 << 30, 0), score);
    check("nobody", n, !everybody(), score);
  };
  both(float());
  both(double());
}

TEST(Attention, AllHeadDims) {
  for (const int d : {1, 2, 3, 5, 31, 59, 111, 257}) {
    check<double>("D and Dv", {1, 1, 1, 33, 40, d, 1 + d % 7}, everybody());
    check<float>("D and Dv in float", {1, 1, 1, 33, 40, 1 + d % 5, d}, causal());
  }
}

TEST(Attention, AllLengths) {
  for (const int n : {1, 2, 15, 16, 17, 31, 47, 48, 49, 63, 64, 65, 97, 129}) {
    check<double>("L", {1, 1, 1, n, 50, 4, 4}, everybody());
    check<double>("S", {1, 1, 1, 50, n, 4, 4}, everybody());
  }
}

/// One head of one sequence is split into chunks, whose gradients are added up in a fixed order.
TEST(Attention, ResultsDoNotDependOnThreads) {
  const Sizes n{1, 1, 1, 1100, 1100, 16, 16};
  const auto all = [&](const AnyMask& mask) {
    const Modifiers<float> m{mask.mask, make_score<float>(Softcap{5})};
    Case<float> one(n, 0.1);
    one.run(m, 1);
    for (int repeat = 0; repeat < 50; ++repeat) {
      Case<float> other(n, 0.1);
      other.run(m, repeat % 3 == 0 ? 1 : repeat % 3 == 1 ? 2 : 8);
      expect_same_bits<float, float>(one, other);
    }
  };
  all(window(0, 64, 64));
  all(window(0, 30, 0) || mask_of(CallableMask{Prefix{40}, 0}));
}

TEST(Attention, OneHeadInChunksIsTheDefinition) {
  check<double>("dense", {1, 1, 1, 700, 700, 4, 4}, everybody());
  check<double>("causal", {1, 2, 1, 700, 700, 4, 4}, causal());
  check<double>("window", {1, 1, 1, 700, 700, 4, 4}, window(0, 20, 10));
  check<double>("features", {1, 1, 1, 700, 700, 20, 4}, causal());
  check<double>("features of a window", {1, 1, 1, 700, 700, 20, 4}, window(0, 20, 10));
  check<double>("more features of values", {1, 1, 1, 700, 700, 4, 20}, window(0, 20, 10));
  std::vector<int> begin, end;  // the last head reaches less than the others
  for (int i = 0; i < 2 * 700; ++i) {
    begin.push_back(0);
    end.push_back(i < 700 ? i + 1 : std::max(0, i % 700 - 300));
  }
  check<double>("heads", {1, 2, 1, 700, 700, 4, 4},
                mask_of(Bands{begin.data(), end.data(), 2 * 700, 700}));
}

/// So many tiles that their sums are added up in parts, which all shrink.
TEST(Attention, MaximaThatGrowOverManyTilesAreTheDefinition) {
  const auto grows = [](auto s, auto, auto, auto, auto kv) { return s + 0.01 * kv; };
  check<double>("growing", {1, 1, 1, 20, 2500, 4, 4}, everybody(),
                score_of<double>(CallableScore{grows, 0}));
}

/// bfloat16 and float16, on memory that ends with the last number.
TEST(Attention, HalfTypesAreTheirFloats) {
  for (const auto dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int features : {1, 7, 8, 31, 64}) {
      Case<float> wide({1, 2, 1, 40, 50, features, features});
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
      const Modifiers<float> modifiers{causal().mask, {}};
      wide.run(modifiers, 2);
      auto p = half.problem();
      auto g = half.gradients();
      p.q = view(q, 2, 40, features, dtype);
      p.k = view(k, 1, 50, features, dtype);
      p.v = view(v, 1, 50, features, dtype);
      g.grad_output = view(grad, 2, 40, features, dtype);
      Threads runtime(2);
      attend(p, modifiers, runtime);
      attend_backward(p, modifiers, g, runtime);
      if (multiply_bfloat16() && dtype == DType::kBFloat16) continue;  // rounded in between
      SCOPED_TRACE(features);
      expect_same_bits<float, float>(half, wide);
    }
  }
}

/// A query with one key returns its value, which a 16-bit output rounds: numbers of all sizes, and
/// what is no number.
TEST(Attention, HalfOutputsAreRoundedFloats) {
  constexpr int kFeatures = 70;
  uint32_t bits = 0;
  for (int i = 0; i < 1000; ++i) {
    Case<float> n({1, 1, 1, i % 2 == 0 ? 1 : 20, 1, 8, kFeatures});
    for (auto& x : n.v) {
      bits += 61'357u;
      // Programs compiled with -ffast-math take subnormal floats for 0.
      x = (bits & 0x7f800000) == 0 ? 0 : __builtin_bit_cast(float, bits);
    }
    Buffer<uint16_t> output;
    output.resize(n.output.size());
    for (const auto dtype : {DType::kBFloat16, DType::kFloat16}) {
      const bool brain = dtype == DType::kBFloat16;
      auto p = n.problem();
      p.output = view(output, 1, n.n.L, kFeatures, dtype);
      Threads runtime(1);
      attend(p, {everybody().mask, {}}, runtime);
      for (size_t j = 0; j < output.size(); ++j) {
        const float from = n.v[j % kFeatures];
        const uint16_t want = brain ? float_to_bfloat16(from) : float_to_half(from);
        const uint16_t infinity = brain ? 0x7f80 : 0x7c00;
        if (is_nan(from)) {
          ASSERT_GT(output[j] & 0x7fff, infinity) << from;
        } else {
          ASSERT_EQ(output[j], want) << from << " brain " << brain;
        }
      }
    }
  }
}

/// Whatever such a query and its cotangents are: nothing of it reaches another gradient, and its
/// own is 0.
template <class T>
void expect_no_part(const char* what, const Sizes& n, const AnyMask& mask) {
  SCOPED_TRACE(what);
  constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
  constexpr T kInf = std::numeric_limits<T>::infinity();
  Case<T> clean(n, 0.1), dirty(n, 0.1);
  const auto has_key = [&](size_t row) {
    const int i = static_cast<int>(row), q = i % n.L, h = i / n.L % n.H, b = i / n.L / n.H;
    for (int kv = 0; kv < n.S; ++kv) {
      if (mask.pair(b, h, q, kv)) return true;
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
    const Modifiers<T> m{mask.mask,
                         chain(make_score<T>(AlibiOfTensor<T>{{{slopes.data(), 1}}, n.S - n.L}),
                               make_score<T>(Bias<T>{bias.data(), 0, 0, n.S, 1}))};
    c.run(m, 2);
    Buffer<T> slope_sums, bias_sums;
    slope_sums.resize(TensorGradients<T>::kMostSlots * slopes.size());
    bias_sums.resize(length);
    TensorGradients<T> to;
    to.tensors = {{slope_sums.data(), 0, 1, 0, 0}, {bias_sums.data(), 0, 0, n.S, 1}};
    to.slot_stride = {n.H, 0};
    Threads runtime(2);
    attend_backward_tensors(c.problem(), m, c.gradients(), to, runtime);
    slopes = slope_sums;
    bias = bias_sums;
  };
  Buffer<T> clean_slopes, clean_bias, dirty_slopes, dirty_bias;
  tensors(clean, clean_slopes, clean_bias);
  tensors(dirty, dirty_slopes, dirty_bias);
  expect_same_bits<T, T>(clean, dirty);
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

TEST(Attention, QueriesWithoutKeysTakeNoPart) {
  const auto kept = [](auto b, auto h, auto q, auto kv) {
    return (q + b + h) % 3 != 1 && kv <= q + 20;
  };
  const auto thirds = mask_of(CallableMask{kept, 0});
  const auto both = [&]<class T>(T) {
    expect_no_part<T>("every third", {2, 2, 1, 90, 75, 8, 5}, thirds);
    expect_no_part<T>("the first", {1, 2, 2, 70, 50, 20, 16}, window(-20, 1 << 30, 0));
    expect_no_part<T>("in chunks", {1, 1, 1, 700, 700, 4, 4}, thirds);
    expect_no_part<T>("dilated", {1, 1, 1, 90, 40, 8, 8},
                      mask_of(CallableMask{Dilated{3}, -50}) && window(-50, 9, 9));
  };
  both(float());
  both(double());
}

/// Padding of lanes and features never reaches the caller's memory.
TEST(Attention, ForgottenMemoryStaysUntouched) {
  Case<float> c({1, 1, 1, 33, 40, 5, 5});
  c.output.resize(c.output.size() + 64, 7.0f);
  c.gq.resize(c.gq.size() + 64, 7.0f);
  c.run({}, 1);
  for (size_t i = 33 * 5; i < 33 * 5 + 64; ++i) EXPECT_TRUE(c.output[i] == 7 && c.gq[i] == 7) << i;
}

TEST(Attention, SkippedKeysAreNeverRead) {
  const Sizes n{1, 1, 1, 200, 200, 8, 8};
  Case<float> clean(n), dirty(n);
  for (size_t i = 150 * 8; i < 200 * 8; ++i) dirty.k[i] = dirty.v[i] = std::nanf("");
  const Modifiers<float> prefix{make_mask(CallableMask{Prefix{150}, 0}), {}};
  clean.run(prefix, 2);
  dirty.run(prefix, 2);
  EXPECT_TRUE(clean.output == dirty.output);
  EXPECT_TRUE(clean.gq == dirty.gq);
}

/// n equal weights of values that are all 0.1, and as many equal gradients: each sum is known.
void expect_digits(int L, int S) {
  Tensors<float> c({1, 1, 1, L, S, 16, 16});
  for (auto& x : c.v) x = 0.1f;
  for (auto& x : c.grad) x = 0.1f;
  for (auto& x : c.grad_lse) x = 0.5f;  // for dQ = the mean of the keys
  for (auto& x : c.k) x = 0.1f;
  for (auto& x : c.q) x = 0;
  Threads runtime(2);
  attend(c.problem(1), {}, runtime);
  attend_backward(c.problem(1), {}, c.gradients(), runtime);
  double output = 0, gq = 0, gv = 0;
  const double tenth = 0.1f;
  for (const float x : c.output) output = std::max(output, std::abs(x / tenth - 1));
  for (const float x : c.gv) gv = std::max(gv, std::abs(x * S / (tenth * L) - 1));
  for (const float x : c.gq) gq = std::max(gq, std::abs(x / (0.5 * tenth) - 1));
  EXPECT_LE(output, 5e-6) << L << " " << S;  // as one chain of S, or of L, 1e-3
  EXPECT_LE(gq, 5e-6) << L << " " << S;
  EXPECT_LE(gv, 5e-6) << L << " " << S;
}

TEST(Attention, KeepsItsDigitsOverManyKeysAndQueries) {
  expect_digits(20, 100'000);
  expect_digits(100'000, 20);
}

/// Every score is far from 0: the gradients are those of the same problem without the distance.
TEST(Attention, HasExactGradientsWhereScoresAreLarge) {
  for (const float distance : {-1e9f, 3e6f}) {
    const Sizes n{1, 2, 1, 40, 50, 8, 8};
    Case<float> c(n);
    for (auto& x : c.q) x = 0;
    for (auto& x : c.grad_lse) x = 0;
    const auto far = [distance](auto s, auto, auto, auto, auto) { return s + distance; };
    c.run({everybody().mask, make_score<float>(CallableScore{far, 0})}, 2);
    double sum = 0, want = 0;
    for (const float x : c.gv) sum += x;
    for (const float x : c.grad) want += x;
    EXPECT_NEAR(sum, want, 1e-3) << distance;
  }
}

/// A cap makes a finite score of an infinite query, whose product with a gradient of 0 is no
/// number: that must not reach the keys which the query does not see.
TEST(Attention, AnInfiniteQueryReachesNoHiddenKeys) {
  constexpr int kQuery = 5;
  Case<float> c({1, 1, 1, 40, 40, 8, 8});
  c.q[kQuery * 8] = std::numeric_limits<float>::infinity();
  c.run({causal().mask, score_of<float>(Softcap{2}).score}, 1);
  for (size_t j = kQuery + 1; j < 40; ++j) {
    for (size_t d = 0; d < 8; ++d) {
      EXPECT_LT(bits(c.gk[j * 16 + d]) & 0x7fffffff, 0x7f800000u) << j << " " << d;
    }
  }
}

/// A score of -inf has weight 0 and gives no gradient, though its slope is infinite.
TEST(Attention, ScoresOfMinusInfinityGiveNoGradients) {
  constexpr int kKey = 5;
  const Sizes n{1, 1, 1, 40, 70, 8, 8};
  Case<double> got(n), want(n);
  for (auto* c : {&got, &want}) {
    for (size_t d = 0; d < 8; ++d) c->k[kKey * 8 + d] = 0;
  }
  const auto steep = score_of<double>(CallableScore{
      [](auto s, auto, auto, auto, auto kv) { return log(where(kv == kKey, s, 1.0 + s * s)); }, 0});
  const auto others =
      mask_of(CallableMask{[](auto, auto, auto, auto kv) { return kv != kKey; }, 0});
  got.run({everybody().mask, steep.score}, 1);
  want.run({others.mask, steep.score}, 1);
  const auto expect_same = [](const auto& a, const auto& b) {
    for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-9) << i;
  };
  expect_same(got.output, want.output), expect_same(got.gq, want.gq);
  expect_same(got.gk, want.gk), expect_same(got.gv, want.gv);
}

/// An infinite value shows where it is seen, and nowhere else.
TEST(Attention, AnInfiniteValueReachesNoOtherQueries) {
  constexpr int kKey = 21;
  const Sizes n{1, 1, 1, 40, 40, 8, 8};
  for (const int rate : {1, 3}) {
    const auto mask = mask_of(CallableMask{Dilated{rate}, 0}) && causal();
    Case<float> clean(n), dirty(n);
    dirty.v[kKey * 8 + 3] = std::numeric_limits<float>::infinity();
    clean.run({mask.mask, {}}, 1);
    dirty.run({mask.mask, {}}, 1);
    for (int q = 0; q < n.L; ++q) {
      for (int d = 0; d < n.Dv; ++d) {
        const auto at = static_cast<size_t>(q * n.Dv + d);
        if (d == 3 && mask.pair(0, 0, q, kKey)) {
          EXPECT_EQ(bits(dirty.output[at]), 0x7f800000u) << rate << " " << q;
        } else {
          EXPECT_LT(bits(dirty.output[at]) & 0x7fffffff, 0x7f800000u) << rate << " " << q;
          EXPECT_NEAR(dirty.output[at], clean.output[at], 1e-5) << rate << " " << q;
        }
      }
    }
  }
}

}  // namespace
}  // namespace attzoo::kernel
