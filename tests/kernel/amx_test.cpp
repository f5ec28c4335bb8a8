// The products on AMX registers, which few CPUs have: with a model of the registers on every CPU
// that has AVX-512 with bfloat16, and with the registers themselves where there are any.

#include <gtest/gtest.h>
#include <attzoo/kernel/attention.hpp>

#include <cmath>

#include "support.hpp"

#if defined(__x86_64__)

namespace attzoo::kernel::avx512 {
namespace {

/// What the instructions do, by Intel's description of them.
struct ModelTiles {
  struct Register {
    unsigned char rows[16][64];
  };
  static thread_local inline Register registers[8];

  ModelTiles() { std::memset(registers, 0xff, sizeof registers); }
  template <int I>
  static void zero() {
    std::memset(&registers[I], 0, sizeof(Register));
  }
  template <int I>
  static void load(const void* from, int64_t row_bytes) {
    for (int i = 0; i < 16; ++i) {
      std::memcpy(registers[I].rows[i], static_cast<const char*>(from) + i * row_bytes, 64);
    }
  }
  template <int I>
  static void store(void* to, int64_t row_bytes) {
    for (int i = 0; i < 16; ++i) {
      std::memcpy(static_cast<char*>(to) + i * row_bytes, registers[I].rows[i], 64);
    }
  }
  template <int C, int A, int B>
  static void multiply() {
    float c[16][16];
    uint16_t a[16][32], b[16][32];
    std::memcpy(c, registers[C].rows, sizeof c);
    std::memcpy(a, registers[A].rows, sizeof a);
    std::memcpy(b, registers[B].rows, sizeof b);
    const auto wide = [](uint16_t x) { return __builtin_bit_cast(float, uint32_t{x} << 16); };
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 16; ++n) {
        for (int k = 0; k < 32; ++k) c[m][n] += wide(a[m][k]) * wide(b[k / 2][2 * n + k % 2]);
      }
    }
    std::memcpy(registers[C].rows, c, sizeof c);
  }
};

template <class Tiles>
class Amx : public testing::Test {
 public:
  void SetUp() override {
    if constexpr (std::is_same_v<Tiles, AmxTiles>) {
      if (isa() != Isa::kAmx) GTEST_SKIP() << "this CPU has no AMX, or ATTZOO_ISA forbids it";
    } else {
      if (isa() < Isa::kAvx512 || !__builtin_cpu_supports("avx512bf16")) {
        GTEST_SKIP() << "this CPU has no AVX-512 with bfloat16, or ATTZOO_ISA forbids it";
      }
    }
  }
};
using BothTiles = testing::Types<ModelTiles, AmxTiles>;
TYPED_TEST_SUITE(Amx, BothTiles);

std::vector<float> whole_numbers(size_t n, unsigned seed) {  // their products are exact
  std::mt19937 random(seed);
  std::vector<float> out(n);
  for (auto& x : out) x = static_cast<float>(static_cast<int>(random() % 17) - 8);
  return out;
}

TYPED_TEST(Amx, GemmIsExactOnWholeNumbers) {
  const TypeParam session;
  for (const int M : {1, 15, 16, 33, 48, 70}) {
    for (const int N : {16, 32, 48, 64}) {
      for (const int K : {1, 16, 33, 64, 95}) {
        const auto count = [](int a, int b) { return static_cast<size_t>(a * b); };
        const int depth = amx_depth(K), wide = (K + 15) / 16 * 16;
        auto a = whole_numbers(count(amx_rows(M), wide), 1);
        const auto b = whole_numbers(count(K, N), 2);
        for (size_t i = 0; i < a.size(); ++i) {
          if (static_cast<int>(i) % wide >= K) a[i] = 0;
        }
        std::vector<uint16_t> packed_a(count(amx_rows(M), depth), 0xffff),
            packed_b(count(depth, N), 0xffff);
        amx_pack_a(a.data(), amx_rows(M), wide, 0.5f, packed_a.data());
        amx_pack_b(b.data(), K, N, 2, packed_b.data());
        for (const bool add : {false, true}) {
          std::vector<float> c(count(M + 1, N), 3);
          amx_gemm<TypeParam>(M, N, depth, packed_a.data(), depth, packed_b.data(), c.data(), N,
                              add);
          for (int m = 0; m <= M; ++m) {
            for (int n = 0; n < N; ++n) {
              float want = add || m == M ? 3 : 0;  // the row behind is not touched
              for (int k = 0; m < M && k < K; ++k)
                want += a[count(m, wide) + static_cast<size_t>(k)] *
                        b[count(k, N) + static_cast<size_t>(n)];
              ASSERT_EQ(c[count(m, N) + static_cast<size_t>(n)], want)
                  << M << " x " << N << " x " << K << " at " << m << ", " << n << " add " << add;
            }
          }
        }
      }
    }
  }
}

struct Sizes {
  int B, H, Hkv, L, S, D, Dv;
};

/// A problem of bfloat16 tensors whose outputs and gradients are floats.
struct HalfCase {
  Sizes n;
  double dropout;
  Buffer<uint16_t> q, k, v;
  Buffer<float> grad, grad_lse, output, lse, gq, gk, gv;

  HalfCase(const Sizes& sizes, double p) : n(sizes), dropout(p) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    const auto count = [&](int heads, int length, int features) {
      return static_cast<size_t>(n.B * heads) * static_cast<size_t>(length * features);
    };
    q.resize(count(n.H, n.L, n.D));
    k.resize(count(n.Hkv, n.S, n.D));
    v.resize(count(n.Hkv, n.S, n.Dv));
    for (auto* x : {&q, &k, &v}) {
      for (auto& y : *x) y = float_to_bfloat16(normal(random));
    }
    grad.resize(count(n.H, n.L, n.Dv));
    for (auto& y : grad)
      y = __builtin_bit_cast(float, uint32_t{float_to_bfloat16(normal(random))} << 16);
    output.resize(grad.size());
    lse.resize(count(n.H, n.L, 1));
    grad_lse.resize(lse.size());
    gq.resize(q.size());
    gk.resize(count(n.Hkv, n.S, padded(n.D)));
    gv.resize(count(n.Hkv, n.S, padded(n.Dv)));
  }

  template <class T>
  static View view(Buffer<T>& x, int heads, int length, int features) {
    return {x.data(),
            sizeof(T) == 2 ? DType::kBFloat16 : DType::kFloat32,
            int64_t{heads} * length * features,
            int64_t{length} * features,
            features,
            1};
  }

  template <class Products, class Mask, class Score>
  void run(const Mask& mask, const Score& score) {
    Problem<float> p{view(q, n.H, n.L, n.D),
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
                     0.3f,
                     dropout,
                     99};
    Gradients<float> g{view(grad, n.H, n.L, n.Dv), view(gq, n.H, n.L, n.D), grad_lse.data(),
                       view(gk, n.Hkv, n.S, padded(n.D)), view(gv, n.Hkv, n.S, padded(n.Dv))};
    std::fill(gk.begin(), gk.end(), 0.0f);
    std::fill(gv.begin(), gv.end(), 0.0f);
    Threads runtime(2);
    const MaskAndScore<Mask, Score> modifiers{mask, score};
    with_isa<float>(modifiers, [&](const Modifiers<float>& m, const auto&) {
      forward_with<Products>(p, m, runtime);
      backward_with<Products>(p, m, g, runtime);
    });
  }
};

double relative_error(const Buffer<float>& got, const Buffer<float>& want) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    norm += double{want[i]} * want[i];
  }
  return std::sqrt(error / norm);
}

/// Weights and their gradients are rounded to bfloat16, whose relative error is up to 2^-9.
template <class Tiles, class Mask, class Score>
void expect_float_result(const Sizes& n, const Mask& mask, const Score& score, double dropout = 0) {
  SCOPED_TRACE(testing::Message() << "L " << n.L << " S " << n.S << " D " << n.D << " Dv " << n.Dv);
  HalfCase want(n, dropout), got(n, dropout);
  want.run<Products<float>>(mask, score);
  got.run<AmxProducts<Tiles>>(mask, score);
  EXPECT_LT(relative_error(got.output, want.output), 4e-3);
  EXPECT_LT(relative_error(got.gq, want.gq), 4e-3);
  EXPECT_LT(relative_error(got.gk, want.gk), 4e-3);
  EXPECT_LT(relative_error(got.gv, want.gv), 4e-3);
  for (size_t i = 0; i < got.lse.size(); ++i) EXPECT_NEAR(got.lse[i], want.lse[i], 1e-4);
  const auto first = got;  // and the same bits again
  got.run<AmxProducts<Tiles>>(mask, score);
  EXPECT_TRUE(first.output == got.output);
  EXPECT_TRUE(first.gq == got.gq);
  EXPECT_TRUE(first.gk == got.gk);
  EXPECT_TRUE(first.gv == got.gv);
}

TYPED_TEST(Amx, AttentionIsThatOfFloats) {
  const IdentityScore none;
  expect_float_result<TypeParam>({1, 2, 2, 256, 256, 64, 64}, Full{}, none);
  expect_float_result<TypeParam>({2, 2, 1, 100, 150, 32, 64}, Full{}, none);
  expect_float_result<TypeParam>({1, 4, 2, 77, 77, 40, 24}, Window{0, 1 << 30, 0}, none);
  expect_float_result<TypeParam>({1, 1, 1, 300, 300, 64, 16}, Window{0, 20, 20}, none);
  expect_float_result<TypeParam>({1, 1, 1, 5, 33, 1, 3}, Full{}, none);
  expect_float_result<TypeParam>({1, 2, 2, 300, 310, 64, 64}, Dilated{10, 3}, none);
  expect_float_result<TypeParam>({1, 2, 2, 130, 130, 64, 80}, Full{}, none, 0.3);
  const auto capped = [](auto s, auto, auto, auto, auto) {
    using std::tanh;
    return 2.0 * tanh(s / 2.0);
  };
  expect_float_result<TypeParam>({1, 1, 1, 90, 128, 96, 64}, Full{},
                                 ScoreFunction<decltype(capped)>{capped, 0});
}

TYPED_TEST(Amx, QueriesWithoutKeysTakeNoPart) {
  const Sizes n{1, 2, 1, 100, 80, 32, 32};
  HalfCase clean(n, 0), dirty(n, 0);
  for (size_t row : {size_t{0}, size_t{7}, size_t{19}, size_t{100}}) {  // the last: of head 1
    for (size_t e = row * 32; e < row * 32 + 32; ++e) dirty.grad[e] = std::nanf("");
    dirty.grad_lse[row] = std::nanf("");
    dirty.q[row * 32] = float_to_bfloat16(std::nanf(""));
  }
  const Window mask{-20, 1 << 30, 0};
  clean.run<AmxProducts<TypeParam>>(mask, IdentityScore{});
  dirty.run<AmxProducts<TypeParam>>(mask, IdentityScore{});
  EXPECT_TRUE(clean.output == dirty.output);
  EXPECT_TRUE(clean.gq == dirty.gq);
  EXPECT_TRUE(clean.gk == dirty.gk);
  EXPECT_TRUE(clean.gv == dirty.gv);
}

}  // namespace
}  // namespace attzoo::kernel::avx512

#endif
