// The interpreter of PTX against C++, on kernels that NVRTC compiles.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cuda/ptx_launch.hpp"

namespace attzoo::ptx {
namespace {

/// Compiles for the architecture that is the parameter.
class Compiled : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (!Nvrtc::get().found()) GTEST_SKIP() << "no libnvrtc; ATTZOO_REAL_NVRTC may name its folder";
    if (!Nvrtc::get().knows(GetParam()))
      GTEST_SKIP() << "NVRTC does not know compute_" << GetParam();
  }
  std::string compile(const std::string& source) {
    return Nvrtc::get().compile(source, GetParam());
  }
};

INSTANTIATE_TEST_SUITE_P(Ptx, Compiled, ::testing::Values(80, 90, 100, 120));

#define TEXT(...) #__VA_ARGS__
#define EXPANDED(...) TEXT(__VA_ARGS__)

// Functions of a and b, the same here and in the kernel.
#define FUNCTIONS                                                                                  \
  exp(a), exp2(a), log(a), log2(a), sin(a), cos(a), tanh(a), erf(a), pow(a, b), sqrt(a), floor(a), \
      fmod(a, b), trunc(a), ceil(a), rint(a), a / b, a *b, a + b, a - b, fmin(a, b), fmax(a, b),   \
      fabs(a), log1p(a), expm1(a), atan2(a, b), copysign(a, b), erfc(a), sinh(a), 1 / a, tan(a),   \
      cbrt(a), hypot(a, b)
constexpr size_t kFunctions = 32;

template <class T>
double ulps(T value, double wanted) {
  const T rounded = static_cast<T>(wanted);
  if (std::isnan(rounded) || std::isnan(value))
    return std::isnan(rounded) == std::isnan(value) ? 0 : 1e9;
  if (value == rounded) return 0;
  if (std::isinf(value) || std::isinf(rounded)) return 1e9;
  const T next = std::nextafter(std::fabs(rounded), std::numeric_limits<T>::infinity());
  return std::fabs(static_cast<double>(value) - wanted) / (next - std::fabs(rounded));
}

template <class T>
std::vector<T> numbers(size_t n) {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  std::vector<T> out{0,
                     -T{0},
                     1,
                     -1,
                     std::numeric_limits<T>::infinity(),
                     T(0.5),
                     2,
                     3,
                     T(1e5),
                     -std::numeric_limits<T>::infinity(),
                     std::numeric_limits<T>::quiet_NaN(),
                     std::numeric_limits<T>::denorm_min(),
                     std::numeric_limits<T>::max() / 4,
                     T(1e22)};
  const int most = std::is_same_v<T, float> ? 20 : 80;
  while (out.size() < n) {
    const int exponent = out.size() % 3 ? 2 : static_cast<int>(random() % (2u * most)) - most;
    out.push_back(static_cast<T>(std::ldexp(normal(random), exponent)));
  }
  std::shuffle(out.begin(), out.end(), random);
  return out;
}

template <class T>
void check_functions(Module& module, const char* kernel) {
  const size_t n = 1500;
  const std::vector<T> x = numbers<T>(n), y = numbers<T>(n + 7);
  std::vector<T> out(n * kFunctions);
  launch(module, kernel, {12}, {128}, 0, x.data(), y.data() + 7, out.data(), static_cast<int>(n));
  for (size_t i = 0; i < n; ++i) {
    const double a = x[i], b = y[i + 7];
    const double wanted[] = {FUNCTIONS};
    for (size_t f = 0; f < kFunctions; ++f) {
      EXPECT_LE(ulps(out[i * kFunctions + f], wanted[f]), 5)
          << kernel << f << " of " << a << ", " << b;
    }
  }
}

TEST_P(Compiled, FunctionsAreThoseOfTheLibrary) {
  Module module(
      compile("template <class T> __device__ void all(const T* x, const T* y, T* out, int n) {"
              "  int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return;"
              "  T a = x[i], b = y[i]; T values[] = {" EXPANDED(
                  FUNCTIONS) "};"
                             "  for (int f = 0; f < 32; ++f) out[i * 32 + f] = values[f]; }"
                             "extern \"C\" __global__ void single(const float* x, const float* y, "
                             "float* o, int n)"
                             "{ all(x, y, o, n); }"
                             "extern \"C\" __global__ void twofold(const double* x, const double* "
                             "y, double* o, int n)"
                             "{ all(x, y, o, n); }"));
  check_functions<float>(module, "single");
  check_functions<double>(module, "twofold");
}

int64_t high(uint64_t u, uint64_t v) {
  return static_cast<int64_t>(static_cast<unsigned __int128>(u) * v >> 64);
}

#define INTEGERS                                                                                   \
  a / (b | 1), a % (b | 1), u / (v | 1), u % (v | 1), u << (v & 63), a >> (b & 63), u >> (v & 63), \
      u * v, (a < b) - (a > b), (int)a / ((int)b | 1), (int)a % ((int)b | 1),                      \
      (unsigned)u / ((unsigned)v | 1), (short)a * (short)b, (signed char)a, (unsigned char)u,      \
      (a ^ b) | (a & ~b), (u << 13) | (u >> 51), a / 7 + (long long)(u % 10),                      \
      (long long)(float)(a >> 1), (long long)((double)u * 0.25), high(u, v),                       \
      (unsigned)u >> (v & 31), (int)a >> (b & 31)
constexpr size_t kIntegers = 23;

template <class... A>
std::vector<int64_t> listed(A... values) {
  return {static_cast<int64_t>(values)...};
}

TEST_P(Compiled, IntegersAreThoseOfTheLanguage) {
  Module module(compile(
      "typedef unsigned long long u64;"
      "__device__ long long high(u64 u, u64 v) { return __umul64hi(u, v); }"
      "template <class... A> __device__ void put(long long* to, A... a) {"
      "  long long values[] = {(long long)a...}; for (auto v : values) *to++ = v; }"
      "extern \"C\" __global__ void f(const long long* x, const long long* y, long long* o) {"
      "  int i = blockIdx.x * blockDim.x + threadIdx.x;"
      "  long long a = x[i], b = y[i]; u64 u = a, v = b; put(o + i * 23, " EXPANDED(
          INTEGERS) "); }"));
  std::mt19937_64 random(3);
  std::vector<int64_t> x(1024), y(1024), out(1024 * kIntegers);
  for (auto& e : x) e = static_cast<int64_t>(random()) >> (random() % 60);
  for (auto& e : y) e = static_cast<int64_t>(random()) >> (random() % 60);
  x[0] = INT64_MAX, y[0] = -1, x[1] = INT64_MIN + 1, y[1] = 3, x[2] = y[2] = 0;
  launch(module, "f", {8}, {128}, 0, x.data(), y.data(), out.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t a = x[i], b = y[i];
    const uint64_t u = static_cast<uint64_t>(a), v = static_cast<uint64_t>(b);
    const std::vector<int64_t> wanted = listed(INTEGERS);
    for (size_t k = 0; k < kIntegers; ++k)
      EXPECT_EQ(out[i * kIntegers + k], wanted[k]) << k << " of " << a << ", " << b;
  }
}

// Loops, switches, local arrays and calls, the same here and in the kernel.
#define STEPS                                             \
  float helper(float x, int n) {                          \
    for (int i = 0; i < n; ++i) x = x * 0.5f + 1;         \
    return x;                                             \
  }                                                       \
  HERE float walk(unsigned n) {                           \
    int seen[16];                                         \
    for (int i = 0; i < 16; ++i) seen[i] = i * (int)n;    \
    float sum = 0;                                        \
    for (int steps = 0; n != 1 && steps < 200; ++steps) { \
      n = n % 2 ? 3 * n + 1 : n / 2;                      \
      seen[n & 15] += 3;                                  \
      switch (n % 9) {                                    \
        case 0:                                           \
          sum += 1;                                       \
          break;                                          \
        case 1:                                           \
          sum *= 0.5f;                                    \
          break;                                          \
        case 2:                                           \
          sum += helper(sum, n % 5);                      \
          break;                                          \
        case 3:                                           \
          if (n % 7 == 1) continue;                       \
          sum -= 3;                                       \
          break;                                          \
        case 5:                                           \
          sum = -sum;                                     \
          break;                                          \
        case 7:                                           \
          sum += (float)seen[(n >> 3) & 15];              \
          break;                                          \
        default:                                          \
          sum += 0.25f;                                   \
      }                                                   \
    }                                                     \
    return sum;                                           \
  }
#define HERE
STEPS
#undef HERE

TEST_P(Compiled, LanesPartAndMeet) {
  Module module(compile("#define HERE __device__ __noinline__\n HERE " EXPANDED(
      STEPS) "__device__ int counter = 5; __constant__ float table[3] = {1, 2, 4};"
             "extern \"C\" __global__ void f(float* o, float* t) { int i = blockIdx.x * 96 + "
             "threadIdx.x;"
             "  o[i] = walk(i + 1); t[i] = table[i % 3]; atomicAdd(&counter, i); }"));
  std::vector<float> out(960), t(960);
  launch(module, "f", {10}, {96}, 0, out.data(), t.data());
  for (size_t i = 0; i < out.size(); ++i) {
    EXPECT_NEAR(out[i], walk(static_cast<unsigned>(i + 1)), 1e-3 + 1e-5 * std::fabs(out[i])) << i;
    EXPECT_EQ(t[i], i % 3 == 0 ? 1 : i % 3 == 1 ? 2 : 4);
  }
  EXPECT_EQ(*static_cast<int*>(module.variable("counter")), 5 + 3 * 960 * 959 / 2);
}

const char* const kSums = R"(
extern __shared__ float tile[];
extern "C" __global__ void sum(const float* x, float* o) {
  __shared__ float first;
  int t = threadIdx.x;
  tile[t] = x[blockIdx.x * blockDim.x + t];
  BARRIER;
  for (int n = blockDim.x / 2; n > 0; n /= 2) {
    if (t < n) tile[t] += tile[t + n];
    __syncthreads();
  }
  if (t == 0) first = tile[0];
  __syncthreads();
  if (t == 70) o[blockIdx.x] = first;
})";

TEST_P(Compiled, BarriersOrderSharedMemory) {
  Module module(compile(std::string("#define BARRIER __syncthreads()\n") + kSums));
  std::vector<float> x(1024), out(4);
  std::iota(x.begin(), x.end(), 0.0f);
  launch(module, "sum", {4}, {256}, 1024, x.data(), out.data());
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(out[i], 256 * 256 * i + 255 * 128);
  expect_part(failure(module, "sum", {256}, 1000, x.data(), out.data()), "out of range");
}

TEST_P(Compiled, RacesThrow) {
  Module module(compile(std::string("#define BARRIER\n") + kSums));
  std::vector<float> x(256), out(1);
  expect_part(failure(module, "sum", {256}, 1024, x.data(), out.data()), "race in shared memory");
  module.options.races = false;
  EXPECT_EQ(failure(module, "sum", {256}, 1024, x.data(), out.data()), "");
}

TEST_P(Compiled, DivergentBarriersThrow) {
  Module module(compile(R"(
      extern "C" __global__ void f(int* o, int n) {
        __shared__ int s[64];
        s[threadIdx.x] = threadIdx.x;
        if (threadIdx.x < n) { __syncthreads(); o[threadIdx.x] = s[threadIdx.x ^ 1]; }
      })"));
  std::vector<int> out(64);
  EXPECT_EQ(failure(module, "f", {64}, 0, out.data(), 64), "");
  const std::string what = failure(module, "f", {64}, 0, out.data(), 16);
  expect_part(what, "divergent barrier");
  expect_part(what, "bar");
}

TEST_P(Compiled, LanesExchangeValues) {
  Module module(compile(R"(
      extern "C" __global__ void f(unsigned* o, int apart) {
        unsigned i = threadIdx.x, v = i * i, k = 0; o += i;
        auto put = [&](unsigned r) { o[32 * k++] = r; };
        put(__shfl_xor_sync(~0u, v, 5)); put(__shfl_up_sync(~0u, v, 3));
        put(__shfl_down_sync(~0u, v, 3)); put(__shfl_sync(~0u, v, i + 9, 8));
        put(__ballot_sync(~0u, v & 4)); put(__any_sync(~0u, i == 7)); put(__all_sync(~0u, i < 31));
        put(__match_any_sync(~0u, i / 3)); put(__reduce_add_sync(~0u, i));
        put(__reduce_max_sync(~0u, i)); put(__syncthreads_count(i > 9)); put(__syncthreads_and(i));
        put(__syncthreads_or(i)); put(__activemask());
        if (i < apart) put(__shfl_xor_sync(~0u, v, 1));
      })"));
  std::vector<uint32_t> out(32 * 16);
  launch(module, "f", {}, {32}, 0, out.data(), 32);
  for (uint32_t i = 0; i < 32; ++i) {
    const auto square = [](uint32_t n) { return n * n; };
    uint32_t ballot = 0;
    for (uint32_t l = 0; l < 32; ++l) ballot |= static_cast<uint32_t>((square(l) & 4) != 0) << l;
    const std::vector<uint32_t> wanted{square(i ^ 5),
                                       square(i < 3 ? i : i - 3),
                                       square(i > 28 ? i : i + 3),
                                       square(i / 8 * 8 + (i + 9) % 8),
                                       ballot,
                                       1,
                                       0,
                                       (i / 3 == 10 ? 3u : 7u) << (i / 3 * 3),
                                       496,
                                       31,
                                       22,
                                       0,
                                       1,
                                       kFull,
                                       square(i ^ 1)};
    for (size_t k = 0; k < wanted.size(); ++k)
      EXPECT_EQ(out[32 * k + i], wanted[k]) << k << " " << i;
  }
  expect_part(failure(module, "f", {32}, 0, out.data(), 20), "divergent collective");
}

TEST_P(Compiled, CopiesAppearAtTheirWait) {
  Module module(compile(R"(
      extern "C" __global__ void f(const float4* x, float4* o, int waits) {
        __shared__ float4 s[2][32];
        int i = threadIdx.x;
        for (int k = 0; k < 2; ++k) {
          unsigned to = __cvta_generic_to_shared(&s[k][i]), n = i < 30 ? 16 : 4;
          asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                       :: "r"(to), "l"(x + 32 * k + i), "r"(n));
          asm volatile("cp.async.commit_group;" ::: "memory");
        }
        if (waits) asm volatile("cp.async.wait_group 1;" ::: "memory");
        o[i] = s[0][i]; o[32 + i] = s[1][i];
      })"));
  std::vector<float> x(256), out(256);
  std::iota(x.begin(), x.end(), 1.0f);
  launch(module, "f", {}, {32}, 0, x.data(), out.data(), 1);
  for (size_t i = 0; i < 128; ++i) EXPECT_EQ(out[i], i < 120 || i % 4 == 0 ? x[i] : 0);
  for (size_t i = 128; i < 256; ++i) EXPECT_TRUE(std::isnan(out[i]));
  launch(module, "f", {}, {32}, 0, x.data(), out.data(), 0);
  for (const float e : out) EXPECT_TRUE(std::isnan(e));
}

TEST_P(Compiled, MatricesMultiply) {
  for (const std::string type : {"bf16", "f16"}) {
    Module module(compile("#define TYPE \"" + type + "\"" + R"(
      extern "C" __global__ void f(const float* a, const float* b, float* o, int pitch) {
        extern __shared__ __align__(16) unsigned short s[];
        int l = threadIdx.x;
        for (int i = l; i < 16 * 16; i += 32)
          asm("cvt.rn." TYPE ".f32 %0, %1;" : "=h"(s[i / 16 * pitch + i % 16]) : "f"(a[i]));
        unsigned short* t = s + 16 * pitch;
        for (int i = l; i < 16 * 8; i += 32)
          asm("cvt.rn." TYPE ".f32 %0, %1;" : "=h"(t[i / 8 * pitch + i % 8]) : "f"(b[i]));
        __syncwarp();
        unsigned x[4], y[2];
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
          : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
          : "r"((unsigned)__cvta_generic_to_shared(s + l % 16 * pitch + l / 16 * 8)) : "memory");
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
          : "=r"(y[0]), "=r"(y[1])
          : "r"((unsigned)__cvta_generic_to_shared(t + l % 16 * pitch)) : "memory");
        float d[4] = {1, 2, 3, 4};
        asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3},"
          "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
        for (int i = 0; i < 4; ++i) o[(l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2] = d[i] - (i + 1);
      })"));
    std::vector<float> a(256), b(128), out(128);
    for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 7 % 31) - 15;
    for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i * 5 % 23) - 11;
    for (const int pitch : {24, 64}) {
      const Statistics s = launch(module, "f", {}, {32}, 64u * static_cast<size_t>(pitch), a.data(),
                                  b.data(), out.data(), pitch);
      EXPECT_EQ(s.matrices.ratio(), pitch == 24 ? 1 : 8);
      EXPECT_EQ(s.count("mma"), 1u);
    }
    for (size_t i = 0; i < out.size(); ++i) {
      float wanted = 0;
      for (size_t k = 0; k < 16; ++k) wanted += a[i / 8 * 16 + k] * b[k * 8 + i % 8];
      EXPECT_EQ(out[i], wanted);
    }
  }
}

}  // namespace
}  // namespace attzoo::ptx
