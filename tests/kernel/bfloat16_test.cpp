// The products of bfloat16 on the CPUs that have AVX-512 with bfloat16: by its dot products, by a
// model of AMX's registers, and by the registers themselves where there are any.

#include <gtest/gtest.h>
#include <attzoo/kernel/bodies.hpp>

#include <cmath>

#include "modifiers.hpp"
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

using ModelUnit = AmxUnit<ModelTiles>;
using RealUnit = AmxUnit<AmxTiles>;

template <class Unit>
class BFloat16 : public testing::Test {
 public:
  void SetUp() override {
    if constexpr (std::is_same_v<Unit, RealUnit>) {
      if (isa() != Isa::kAmx) GTEST_SKIP() << "this CPU has no AMX, or ATTZOO_ISA forbids it";
    } else {
      if (isa() < Isa::kAvx512 || !has_avx512_bfloat16()) {
        GTEST_SKIP() << "this CPU has no AVX-512 with bfloat16, or ATTZOO_ISA forbids it";
      }
    }
  }
};
using Units = testing::Types<DotUnit, ModelUnit, RealUnit>;
TYPED_TEST_SUITE(BFloat16, Units);

std::vector<float> whole_numbers(size_t n, unsigned seed) {  // their products are exact
  std::mt19937 random(seed);
  std::vector<float> out(n);
  for (auto& x : out) x = static_cast<float>(static_cast<int>(random() % 17) - 8);
  return out;
}

TYPED_TEST(BFloat16, GemmIsExactOnWholeNumbers) {
  [[maybe_unused]] const typename TypeParam::Session session{};
  for (const int M : {1, 15, 16, 33, 48, 70}) {
    for (const int N : {16, 32, 48, 64}) {
      for (const int K : {1, 16, 33, 64, 95}) {
        const auto count = [](int a, int b) { return static_cast<size_t>(a * b); };
        const int depth = whole_depth(K), wide = (K + 15) / 16 * 16;
        auto a = whole_numbers(count(whole_rows(M), wide), 1);
        const auto b = whole_numbers(count(K, N), 2);
        for (size_t i = 0; i < a.size(); ++i) {
          if (static_cast<int>(i) % wide >= K) a[i] = std::nanf("");  // not read
        }
        std::vector<uint16_t> packed_a(count(whole_rows(M), depth), 0xffff),
            packed_b(count(depth, N), 0xffff);
        pack_a(a.data(), wide, whole_rows(M), K, 0.5f, packed_a.data());
        pack_b(b.data(), N, K, N, 2, packed_b.data());
        for (const bool add : {false, true}) {
          std::vector<float> c(count(M + 1, N), 3);
          TypeParam::gemm(M, N, depth, packed_a.data(), depth, packed_b.data(), c.data(), N, add);
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

/// Of whole numbers, so exactly; what lies beyond an operand is not read.
TYPED_TEST(BFloat16, ProductsOfChunksAreThoseOfFloats) {
  struct Buffers {
    BFloat16ChunkProducts<TypeParam> multiply;
    Buffers(Scratch<float>& memory, const RecurrenceProblem& p) : multiply(memory, p) {}
  };
  [[maybe_unused]] const typename TypeParam::Session session{};
  Threads runtime(1);
  RecurrenceProblem p;
  p.F = 70, p.E = 100;
  const Allocated<float, Buffers> s(runtime, p);
  const auto at = [](int row, int64_t ld, int column) {
    return static_cast<size_t>(row * ld + column);
  };
  for (const bool transposed : {false, true}) {
    for (const int M : {1, 16, 37, 64}) {
      for (const int K : {3, 16, 50, 64, 70, 100}) {
        if (transposed && K > kC) continue;
        for (const int N : {16, 80, 112}) {
          const int64_t ldb = N + 16, ldc = N + 32, lda = padded(transposed ? M : K),
                        rows = padded(transposed ? K : M);
          auto a = whole_numbers(static_cast<size_t>(lda * rows), 1);
          for (size_t i = 0; i < a.size(); ++i) {
            const auto row = static_cast<int64_t>(i) / lda, column = static_cast<int64_t>(i) % lda;
            if ((transposed ? row : column) >= K) a[i] = std::nanf("");
          }
          const auto b = whole_numbers(static_cast<size_t>(ldb * K), 2);
          for (const bool add : {false, true}) {
            std::vector<float> c(static_cast<size_t>(ldc * (M + 1)), 3);
            const Operand<float> left =
                transposed ? Operand<float>{a.data(), 1, lda} : Operand<float>{a.data(), lda, 1};
            s.multiply(M, N, K, left, b.data(), ldb, c.data(), ldc, add);
            for (int m = 0; m <= M; ++m) {
              for (int n = 0; n < N; ++n) {
                float want = add || m == M ? 3 : 0;
                for (int k = 0; m < M && k < K; ++k) {
                  want += (transposed ? a[at(k, lda, m)] : a[at(m, lda, k)]) * b[at(k, ldb, n)];
                }
                ASSERT_EQ(c[at(m, ldc, n)], want) << M << " x " << N << " x " << K << " at " << m
                                                  << ", " << n << (transposed ? " transposed" : "");
              }
            }
          }
        }
      }
    }
  }
}

/// A problem of bfloat16 tensors whose outputs and gradients are floats.
struct HalfCase : Tensors<float, uint16_t> {
  explicit HalfCase(const Sizes& sizes, double p = 0) : Tensors(sizes, p) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    for (auto* x : {&q, &k, &v}) {
      for (auto& y : *x) y = float_to_bfloat16(normal(random));
    }
    for (auto& y : grad)
      y = __builtin_bit_cast(float, uint32_t{float_to_bfloat16(normal(random))} << 16);
  }

  template <class Products>
  void run(const Modifiers<float>& m) {
    const auto p = problem(0.3f);
    Threads runtime(2);
    forward_pass<Products>(p, m, runtime);
    backward_pass<Products>(p, m, gradients(), runtime);
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
template <class Unit>
void expect_float_result(const Sizes& n, const Modifiers<float>& m, double dropout = 0) {
  SCOPED_TRACE(testing::Message() << "L " << n.L << " S " << n.S << " D " << n.D << " Dv " << n.Dv);
  HalfCase want(n, dropout), got(n, dropout);
  want.run<Products<float>>(m);
  got.run<BFloat16Products<Unit>>(m);
  EXPECT_LT(relative_error(got.output, want.output), 4e-3);
  EXPECT_LT(relative_error(got.gq, want.gq), 4e-3);
  EXPECT_LT(relative_error(got.gk, want.gk), 4e-3);
  EXPECT_LT(relative_error(got.gv, want.gv), 4e-3);
  for (size_t i = 0; i < got.lse.size(); ++i) EXPECT_NEAR(got.lse[i], want.lse[i], 1e-4);
  const auto first = got;  // and the same bits again
  got.run<BFloat16Products<Unit>>(m);
  expect_same_bits(first, got);
}

TYPED_TEST(BFloat16, AttentionIsThatOfFloats) {
  const auto check = [](const Sizes& n, const Modifiers<float>& m = {}, double dropout = 0) {
    expect_float_result<TypeParam>(n, m, dropout);
  };
  check({1, 2, 2, 256, 256, 64, 64});
  check({2, 2, 1, 100, 150, 32, 64});
  check({1, 4, 2, 77, 77, 40, 24}, {make_mask(CallableMask{Window{1 << 30, 0}, 0}), {}});
  check({1, 1, 1, 300, 300, 64, 16}, {make_mask(CallableMask{Window{20, 20}, 0}), {}});
  check({1, 1, 1, 5, 33, 1, 3});
  check({1, 2, 2, 300, 310, 64, 64}, {make_mask(CallableMask{Dilated{3}, 10}), {}});
  check({1, 2, 2, 130, 130, 64, 80}, {}, 0.3);
  const auto capped = [](auto s, auto, auto, auto, auto) {
    using std::tanh;
    return 2.0 * tanh(s / 2.0);
  };
  Modifiers<float> changed;
  changed.score = make_score<float>(CallableScore{capped, 0});
  check({1, 1, 1, 90, 128, 96, 64}, changed);
}

/// Pairs of numbers are read at addresses that are multiples of one number.
TYPED_TEST(BFloat16, KeysLieAnywhere) {
  const Sizes n{1, 1, 1, 80, 96, 64, 64};
  HalfCase want(n), got(n);
  const Modifiers<float> m{make_mask(CallableMask{Window{1 << 30, 0}, 16}), {}};
  want.template run<BFloat16Products<TypeParam>>(m);
  for (const int row : {65, 66}) {
    Buffer<uint16_t> k, v;
    for (auto [from, to] : {std::pair(&got.k, &k), std::pair(&got.v, &v)}) {
      to->resize(static_cast<size_t>(row) * 96);
      for (size_t i = 0; i < from->size(); ++i) {
        (*to)[i / 64 * static_cast<size_t>(row) + i % 64] = (*from)[i];
      }
    }
    auto p = got.problem(0.3f);
    p.k = view(k, 1, 96, row);
    p.v = view(v, 1, 96, row);
    Threads runtime(2);
    forward_pass<BFloat16Products<TypeParam>>(p, m, runtime);
    backward_pass<BFloat16Products<TypeParam>>(p, m, got.gradients(), runtime);
    expect_same_bits(want, got);
  }
}

TYPED_TEST(BFloat16, QueriesWithoutKeysTakeNoPart) {
  const Sizes n{1, 2, 1, 100, 80, 32, 32};
  HalfCase clean(n), dirty(n);
  for (size_t row : {size_t{0}, size_t{7}, size_t{19}, size_t{100}}) {  // the last: of head 1
    for (size_t e = row * 32; e < row * 32 + 32; ++e) dirty.grad[e] = std::nanf("");
    dirty.grad_lse[row] = std::nanf("");
    dirty.q[row * 32] = float_to_bfloat16(std::nanf(""));
  }
  const Modifiers<float> m{make_mask(CallableMask{Window{1 << 30, 0}, -20}), {}};
  clean.run<BFloat16Products<TypeParam>>(m);
  dirty.run<BFloat16Products<TypeParam>>(m);
  expect_same_bits(clean, dirty);
}

}  // namespace
}  // namespace attzoo::kernel::avx512

#endif
