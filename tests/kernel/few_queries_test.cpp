// Few queries, as in decoding, against attention by its definition in float64.

#include <gtest/gtest.h>
#include <attzoo/kernel/attention/attention.hpp>
#include <attzoo/kernel/decode/few_queries.hpp>
#include <attzoo/kernel/half.hpp>

#include <memory>
#include <string>

#include "modifiers.hpp"
#include "support.hpp"

namespace attzoo::kernel {
namespace {

class Draw {
 public:
  explicit Draw(unsigned seed) : random_(seed) {}
  int integer(int from, int to) { return std::uniform_int_distribution<int>(from, to)(random_); }
  double normal() { return std::normal_distribution<double>()(random_); }
  bool chance(double p) { return std::bernoulli_distribution(p)(random_); }

 private:
  std::mt19937 random_;
};

/// Numbers [B, H, N, D] of any type with any strides, and NaN in the memory between them; rows of 8
/// bits have no gaps, and a scale behind them.
struct Strided {
  int H, N, D;
  std::vector<double> exact;  // contiguous
  Buffer<char> memory;
  View view;

  Strided(Draw& draw, int B, int heads, int length, int features, DType dtype, double largest = 1)
      : H(heads), N(length), D(features) {
    view.dtype = dtype;
    const bool scaled = size_of(dtype) == 1;
    view.d = !scaled && draw.chance(0.2) ? 2 : 1;
    const int64_t row = D * view.d + (scaled ? 4 : 0) + (draw.chance(0.3) ? draw.integer(1, 9) : 0);
    const int64_t capacity = N + (draw.chance(0.5) ? draw.integer(1, 40) : 0);
    if (draw.chance(0.3)) {  // [B, N, H, D]
      view.h = row;
      view.n = row * H;
      view.b = view.n * capacity;
    } else {
      view.n = row;
      view.h = row * capacity;
      view.b = view.h * H;
    }
    const auto size = static_cast<size_t>(size_of(dtype));
    const auto end = static_cast<size_t>((B - 1) * view.b + (H - 1) * view.h + (N - 1) * view.n +
                                         (D - 1) * view.d + 1 + (scaled ? 4 : 0));
    memory.resize(end * size + 7, static_cast<char>(0xff));
    auto* data = memory.data();  // aligned to the size of a number and to nothing more
    while (reinterpret_cast<uintptr_t>(data) % size != 0) ++data;
    view.data = data;
    for (int b = 0; b < B; ++b) {
      for (int h = 0; h < H; ++h) {
        for (int n = 0; n < N; ++n) {
          const float scale = scale_of(n);
          if (scaled) std::memcpy(static_cast<char*>(view.data) + place(b, h, n, D), &scale, 4);
          for (int d = 0; d < D; ++d) exact.push_back(set(b, h, n, d, largest * draw.normal()));
        }
      }
    }
  }
  int64_t place(int b, int h, int n, int d) const {
    return view.head(b, h) + n * view.n + d * view.d;
  }
  /// What multiplies the numbers of a row of 8 bits.
  float scale_of(int n) const {
    return (view.dtype == DType::kInt8 ? 5e-3f : 2e-3f) * static_cast<float>(1 + n % 7);
  }
  /// What is stored, rounded.
  double set(int b, int h, int n, int d, double x) {
    const int64_t at = place(b, h, n, d);
    const auto f = static_cast<float>(x);
    switch (view.dtype) {
      case DType::kFloat64:
        return static_cast<double*>(view.data)[at] = x;
      case DType::kFloat32:
        return static_cast<float*>(view.data)[at] = f;
      case DType::kBFloat16: {
        const uint16_t bits = static_cast<uint16_t*>(view.data)[at] = float_to_bfloat16(f);
        return __builtin_bit_cast(float, uint32_t{bits} << 16);
      }
      case DType::kInt8: {
        const double integer = std::clamp(std::nearbyint(x / scale_of(n)), -127.0, 127.0);
        return static_cast<double>(scale_of(n)) *
               (static_cast<int8_t*>(view.data)[at] = static_cast<int8_t>(integer));
      }
      case DType::kFloat8: {  // any number but NaN
        const auto bits =
            static_cast<uint8_t>(static_cast<int>(std::abs(x) * 1e3) % 127 | (x < 0 ? 0x80 : 0));
        static_cast<uint8_t*>(view.data)[at] = bits;
        const int exponent = bits >> 3 & 15, mantissa = bits & 7;
        const double size =
            exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
        return static_cast<double>(scale_of(n)) * (x < 0 ? -size : size);
      }
      default:
        return half_to_float(static_cast<uint16_t*>(view.data)[at] = float_to_half(f));
    }
  }
  const double* row(int b, int h, int n) const {
    return &exact[((static_cast<size_t>(b) * H + h) * N + n) * D];
  }
};

template <class T>
struct Case {
  Sizes n;
  Strided q, k, v;
  Buffer<T> output, lse;
  double scale;
  bool stick_breaking = false;

  Case(Draw& draw, const Sizes& sizes, DType dtype)
      : n(sizes),
        q(draw, n.B, n.H, n.L, n.D,
          size_of(dtype) > 1 ? dtype
          : draw.chance(0.5) ? DType::kFloat32
                             : DType::kBFloat16),
        k(draw, n.B, n.Hkv, n.S, n.D, dtype),
        v(draw, n.B, n.Hkv, n.S, n.Dv, dtype),
        scale(1 / std::sqrt(n.D)) {
    output.resize(n.count(n.H, n.L, n.Dv) + 16, T(7));  // what is behind stays 7
    lse.resize(n.count(n.H, n.L, 1) + 16, T(7));
  }
  /// Values become the first features of the keys, in the same memory, as MLA's latents are.
  void put_values_into_keys() {
    v.view = k.view;
    for (int row = 0; row < n.B * n.Hkv * n.S; ++row) {
      std::copy_n(k.exact.begin() + row * n.D, n.Dv, v.exact.begin() + row * n.Dv);
    }
  }
  void run(const Modifiers<T>& m, int threads) {
    auto p = problem_of<T>(n, q.view, k.view, v.view, view(output, n.H, n.L, n.Dv), lse.data());
    p.scale = T(scale);
    p.stick_breaking = stick_breaking;
    ASSERT_TRUE(n.L > 8 || has_few_queries(p, 1));
    Threads runtime(threads);
    attend(p, m, runtime);
  }
  void expect_definition(const AnyMask& mask, const AnyScore<T>& score) {
    const double tolerance = sizeof(T) == 8 ? 1e-12 : 5e-5;
    // Tile registers take weights rounded to bfloat16.
    const bool rounds = use_tile_registers() && k.view.dtype == DType::kBFloat16;
    std::vector<double> w(static_cast<size_t>(n.S)), out(static_cast<size_t>(n.Dv));
    for (int row = 0; row < n.B * n.H * n.L; ++row) {
      const int i = row % n.L, h = row / n.L % n.H, b = row / n.L / n.H, hkv = h / (n.H / n.Hkv);
      constexpr double kForbidden = -1e300;
      double max = kForbidden, sum = 0, largest = 0;
      for (int j = 0; j < n.S; ++j) {
        double x = 0;
        for (int d = 0; d < n.D; ++d) x += q.row(b, h, i)[d] * k.row(b, hkv, j)[d];
        const bool may = mask.pair(b, h, i, j);
        w[j] =
            may ? score.pair({scale * x, 1}, Index{b}, Index{h}, Index{i}, Index{j}).v : kForbidden;
        max = std::max(max, w[j]);
      }
      std::fill(out.begin(), out.end(), 0.0);
      double left = 0;
      for (int j = n.S - 1; j >= 0; --j) {
        if (w[j] == kForbidden) continue;
        const double p =
            stick_breaking ? std::exp(left) / (1 + std::exp(-w[j])) : std::exp(w[j] - max);
        left -= std::log1p(std::exp(w[j]));
        sum += p;
        for (int d = 0; d < n.Dv; ++d) {
          out[d] += p * v.row(b, hkv, j)[d];
          largest = std::max(largest, std::abs(v.row(b, hkv, j)[d]));
        }
      }
      const auto at = static_cast<size_t>(row);
      if (stick_breaking) {
        EXPECT_NEAR(lse[at], left, tolerance * (1 - left)) << row;
        sum = 1;
      } else if (sum == 0) {
        EXPECT_TRUE(is_minus_infinity(lse[at])) << row;
      } else {
        EXPECT_NEAR(lse[at], max + std::log(sum), tolerance * (1 + std::abs(max))) << row;
      }
      for (int d = 0; d < n.Dv; ++d) {
        EXPECT_NEAR(output[at * n.Dv + d], sum == 0 ? 0 : out[d] / sum,
                    tolerance + (rounds ? 0x1p-8 * largest : 0))
            << "row " << row << " feature " << d;
      }
    }
    for (size_t i = lse.size() - 16; i < lse.size(); ++i) EXPECT_TRUE(lse[i] == T(7));
    for (size_t i = output.size() - 16; i < output.size(); ++i) EXPECT_TRUE(output[i] == T(7));
  }
};

Sizes random_sizes(Draw& draw) {
  const auto features = [&] {
    return draw.chance(0.5) ? 16 * draw.integer(1, 9) : draw.integer(1, 80);
  };
  const int Hkv = draw.integer(1, 3), group = draw.chance(0.5) ? 1 : draw.integer(2, 9);
  const int L =
      draw.chance(0.4) ? 1 : draw.integer(2, 16);  // more than 8 where vectors have 16 lanes
  const int S = draw.chance(0.4) ? draw.integer(1, 70) : draw.integer(70, 1300);
  const int D = features();
  return {draw.integer(1, 2), Hkv * group, Hkv, L, S, D, draw.chance(0.5) ? D : features()};
}

struct Masks {
  std::shared_ptr<DocumentTable> documents;
  std::shared_ptr<Flags> flags;
  std::vector<uint8_t> pairs;
  std::vector<int> begin, end;
  std::vector<AnyMask> all;

  Masks(Draw& draw, const Sizes& n) {
    const int shift = n.S - n.L;
    std::vector<int64_t> ids(static_cast<size_t>(n.B) * n.S);
    std::unique_ptr<bool[]> set(new bool[ids.size()]);
    for (size_t i = 0; i < ids.size(); ++i) {
      ids[i] = i == 0 || draw.chance(0.05) ? draw.integer(0, 5) : ids[i - 1];
      set[i] = draw.chance(0.1);
    }
    documents = std::make_shared<DocumentTable>(ids.data(), n.B, n.S);
    flags = std::make_shared<Flags>(set.get(), n.B, n.S);
    pairs.resize(n.count(n.H, n.L, n.S));
    for (auto& x : pairs) x = draw.chance(0.6);
    for (int row = 0; row < n.B * n.H; ++row) {
      for (int i = 0; i < n.L; ++i) {
        begin.push_back(i == 0 ? draw.integer(0, n.S) : std::min(begin.back() + 1, n.S));
        end.push_back(std::min(begin.back() + 50, n.S));
      }
    }
    DenseMask dense;
    dense.data = reinterpret_cast<const bool*>(pairs.data());
    dense.kv = 1;
    dense.q = n.S;
    dense.h = dense.q * n.L;
    dense.b = dense.h * n.H;
    const auto window = [&](int left, int right) {
      return mask_of(CallableMask{Window{left, right}, shift});
    };
    const auto causal = window(1 << 30, 0);
    const auto near = window(draw.integer(0, 90), draw.integer(0, 9));
    const auto by_head = mask_of(CallableMask{
        [](auto b, auto h, auto q, auto kv) { return (q + b + h) % 3 != 1 && kv >= 30 * h; }, 0});
    all = {everybody(),
           causal,
           near,
           mask_of(CallableMask{Window{1 << 30, 0}, -n.L / 2}),
           mask_of(Prefix{draw.integer(0, n.S)}),
           mask_of(CallableMask{Blocks{20, 27, -3, 1 << 30}, shift}),
           mask_of(DenseMask(dense)),
           mask_of(Bands{begin.data(), end.data(), n.H * n.L, n.L}),
           by_head,
           !everybody()};
    const int rate = draw.integer(1, 9);
    all.push_back(mask_of(CallableMask{Dilated{rate}, shift}));
    all.push_back(mask_of(CallableMask{Dilated{rate}, shift}) && near);
    all.push_back(!near);
    all.push_back(by_head || near);
    if (n.L > n.S) return;  // the others look up the query among the keys
    all.push_back(mask_of(Documents(shift, documents)));
    all.push_back(mask_of(Documents(shift, documents)) && causal);
    all.push_back((mask_of(GlobalTokens{shift, flags, true, true}) || near) && causal);
  }
};

template <class T>
struct Scores {
  Buffer<T> slopes, bias, by_distance;
  Buffer<double> slopes64, bias64, by_distance64;
  std::vector<AnyScore<T>> all;

  Scores(const Sizes& n) {
    const auto fill = [](Buffer<T>& x, Buffer<double>& same, int size, unsigned seed) {
      x = random_numbers<T>(static_cast<size_t>(size), seed);
      same.resize(x.size());
      std::copy(x.begin(), x.end(), same.begin());
    };
    fill(slopes, slopes64, n.H, 1);
    for (size_t i = 0; i < slopes.size(); ++i) slopes64[i] = slopes[i] = T(0.01) * slopes[i];
    fill(bias, bias64, n.H * n.L * n.S, 2);
    fill(by_distance, by_distance64, n.H * (n.L + n.S - 1), 3);
    const auto alibi = [&](auto* x) {
      using Number = std::remove_cvref_t<decltype(*x)>;
      return AlibiOfTensor<Number>{{{x, 1}}, n.S - n.L};
    };
    const auto table = [&](auto* x) {
      return Bias<std::remove_pointer_t<decltype(x)>>{x, 0, int64_t{n.L} * n.S, n.S, 1};
    };
    const auto distances = [&](auto* x) {
      return DistanceBias<std::remove_pointer_t<decltype(x)>>{x, n.L + n.S - 1, n.L - 1};
    };
    const auto a = score_of<T>(alibi(slopes.data()), alibi(slopes64.data()));
    const auto b = score_of<T>(table(bias.data()), table(bias64.data()));
    const auto d = score_of<T>(distances(by_distance.data()), distances(by_distance64.data()));
    const auto c = score_of<T>(Softcap{2});
    all = {unchanged<T>(), a, b, c, d, c + a, a + b + c + d};
  }
};

template <class T>
void check_random(const std::vector<DType>& dtypes, unsigned seed) {
  Draw draw(seed);
  for (int i = 0; i < 150 && !::testing::Test::HasFailure(); ++i) {
    const Sizes n = random_sizes(draw);
    const auto dtype = dtypes[static_cast<size_t>(i) % dtypes.size()];
    Case<T> c(draw, n, dtype);
    c.stick_breaking = i % 4 == 3;
    const bool latent = n.Dv <= n.D && size_of(dtype) > 1 && draw.chance(0.3);
    if (latent) c.put_values_into_keys();
    const Masks masks(draw, n);
    const Scores<T> scores(n);
    const auto m = static_cast<size_t>(draw.integer(0, static_cast<int>(masks.all.size()) - 1));
    const auto s = draw.chance(0.5) ? 0 : static_cast<size_t>(draw.integer(1, 6));
    SCOPED_TRACE("case " + std::to_string(i) + " dtype " + std::to_string(int(dtype)) + " B" +
                 std::to_string(n.B) + " H" + std::to_string(n.H) + "/" + std::to_string(n.Hkv) +
                 " L" + std::to_string(n.L) + " S" + std::to_string(n.S) + " D" +
                 std::to_string(n.D) + " Dv" + std::to_string(n.Dv) + " mask " + std::to_string(m) +
                 " score " + std::to_string(s) + " stick " + std::to_string(c.stick_breaking) +
                 " latent " + std::to_string(latent));
    c.run({masks.all[m].mask, scores.all[s].score}, draw.integer(1, 3));
    c.expect_definition(masks.all[m], scores.all[s]);
  }
}

TEST(FewQueries, IsTheDefinition) {
  check_random<double>({DType::kFloat64}, 1);
  check_random<float>(
      {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kInt8, DType::kFloat8}, 2);
}

template <class T>
void expect_same(const Case<T>& a, const Case<T>& b) {
  EXPECT_TRUE(a.output == b.output);
  EXPECT_TRUE(a.lse == b.lse);
}

TEST(FewQueries, ResultsDoNotDependOnThreads) {
  for (const Sizes& n : {Sizes{1, 2, 1, 3, 3000, 32, 32}, Sizes{2, 4, 2, 1, 1000, 48, 16},
                         Sizes{1, 8, 1, 2, 2000, 32, 32}}) {
    const auto shift = n.S - n.L;
    for (const auto dtype : {DType::kFloat32, DType::kBFloat16}) {
      for (const auto& mask : {everybody(), mask_of(CallableMask{Window{700, 0}, shift})}) {
        const Modifiers<float> m{mask.mask, make_score<float>(Softcap{5})};
        Draw draw(3);
        Case<float> one(draw, n, dtype);
        one.run(m, 1);
        for (int repeat = 0; repeat < 6; ++repeat) {
          Draw again(3);
          Case<float> other(again, n, dtype);
          other.run(m, repeat % 2 == 0 ? 2 : 8);
          expect_same(one, other);
        }
      }
    }
  }
}

/// A window costs no more than what it sees of the cache: whatever is in the rest of it.
TEST(FewQueries, SkippedKeysAreNeverRead) {
  for (const int L : {1, 5}) {
    for (const auto dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      const Sizes n{1, 4, 2, L, 4096, 32, 16};
      Draw draw(4), again(4);
      Case<float> clean(draw, n, dtype), dirty(again, n, dtype);
      for (int j = 0; j < n.S - 64 - L; ++j) {
        for (int h = 0; h < n.Hkv; ++h) {
          dirty.k.set(0, h, j, j % 32, std::nan(""));
          dirty.v.set(0, h, j, j % 16, std::nan(""));
        }
      }
      const Modifiers<float> m{make_mask(CallableMask{Window{63, 0}, n.S - L}), {}};
      clean.run(m, 2);
      dirty.run(m, 2);
      expect_same(clean, dirty);
    }
  }
}

/// What is read beside the keys of a tile, to fill a group, never meets an infinite number of
/// theirs.
TEST(FewQueries, InfiniteValuesStayWhereTheyAre) {
  for (const auto dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const int L : {1, 3, 7}) {
      for (int S = 1; S < 20; ++S) {
        Draw draw(5);
        Case<float> c(draw, {1, 2, 1, L, S, 32, 16}, dtype);
        c.v.set(0, 0, S - 1, 3, std::numeric_limits<double>::infinity());
        c.run({}, 1);
        for (int row = 0; row < 2 * L; ++row) {
          for (int d = 0; d < 16; ++d) {
            const auto at = static_cast<size_t>(row * 16 + d);
            EXPECT_EQ(bits(c.output[at]) == 0x7f800000u, d == 3) << S;
            EXPECT_FALSE(is_nan(c.output[at])) << S;
          }
        }
      }
    }
  }
}

/// The rows of a NaN query are NaN, and no others.
TEST(FewQueries, NansStayInTheirRows) {
  for (const auto dtype : {DType::kFloat32, DType::kBFloat16}) {
    for (const int L : {3, 6}) {
      const Sizes n{1, 4, 2, L, 700, 32, 32};
      Draw draw(6), again(6);
      Case<float> clean(draw, n, dtype), dirty(again, n, dtype);
      dirty.q.set(0, 1, 2, 5, std::nan(""));
      clean.run({}, 2);
      dirty.run({}, 2);
      for (size_t i = 0; i < n.count(n.H, n.L, n.Dv); ++i) {
        if (static_cast<int>(i) / 32 == L + 2) {
          EXPECT_TRUE(is_nan(dirty.output[i]));
        } else {
          EXPECT_EQ(bits(clean.output[i]), bits(dirty.output[i]));
        }
      }
    }
  }
}

}  // namespace
}  // namespace attzoo::kernel
