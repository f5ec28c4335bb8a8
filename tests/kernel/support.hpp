#pragma once
// What the kernel tests share. They are also compiled with -ffast-math, under which std::isnan is
// always false, and so is a comparison with infinity: numbers are then compared by their bits.

#include <gtest/gtest.h>
#include <attzoo/kernel/attention/problem.hpp>
#include <attzoo/kernel/isa/isa.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

namespace attzoo::kernel {

class Threads final : public Runtime {
 public:
  explicit Threads(int count) : count_(count) {}
  int threads() const override { return count_; }
  void run(const std::function<void(int)>& worker) override {
    std::vector<std::thread> threads;
    for (int i = 1; i < count_; ++i) threads.emplace_back(worker, i);
    worker(0);
    for (auto& t : threads) t.join();
  }
  /// Exactly so many bytes, so that a sanitizer sees the first one behind them.
  std::shared_ptr<void> allocate(size_t bytes) override {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, bytes) != 0) throw std::bad_alloc();
    std::memset(memory, 0xff, bytes);  // NaNs: whoever reads what nobody wrote is found out
    return {memory, std::free};
  }

 private:
  int count_;
};

/// Numbers at an address that is a multiple of their size and of nothing more; a sanitizer sees who
/// reads behind the last one.
template <class T>
class Buffer {
 public:
  /// n of them, all `value`; what was there is gone.
  void resize(size_t n, T value = T()) { numbers_ = std::vector<T>(n + 1, value); }
  size_t size() const { return numbers_.size() - 1; }
  T* data() { return numbers_.data() + 1; }
  T* begin() { return data(); }
  T* end() { return data() + size(); }
  T& operator[](size_t i) { return numbers_[i + 1]; }
  const T& operator[](size_t i) const { return numbers_[i + 1]; }
  /// Of the bits.
  friend bool operator==(const Buffer& a, const Buffer& b) {
    return a.size() == b.size() &&
           std::memcmp(&a.numbers_[0] + 1, &b.numbers_[0] + 1, a.size() * sizeof(T)) == 0;
  }

 private:
  std::vector<T> numbers_{T()};
};

template <class T>
Buffer<T> random_numbers(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Buffer<T> out;
  out.resize(n);
  for (auto& x : out) x = static_cast<T>(normal(random));
  return out;
}

/// A buffer [B, heads, length, features], contiguous.
template <class T>
View view(Buffer<T>& x, int heads, int length, int features, DType half = DType::kBFloat16) {
  return {.data = x.data(),
          .dtype = sizeof(T) == 8   ? DType::kFloat64
                   : sizeof(T) == 4 ? DType::kFloat32
                                    : half,
          .b = int64_t{heads} * length * features,
          .h = int64_t{length} * features,
          .n = features,
          .d = 1};
}

struct Sizes {
  int B, H, Hkv, L, S, D, Dv;
  size_t count(int heads, int length, int features) const {
    return static_cast<size_t>(B * heads) * static_cast<size_t>(length * features);
  }
};

/// A problem of these sizes, with a scale of 1.
template <class T>
Problem<T> problem_of(const Sizes& n, const View& q, const View& k, const View& v,
                      const View& output, T* lse) {
  return {.q = q,
          .k = k,
          .v = v,
          .output = output,
          .lse = lse,
          .B = n.B,
          .H = n.H,
          .Hkv = n.Hkv,
          .L = n.L,
          .S = n.S,
          .D = n.D,
          .Dv = n.Dv,
          .scale = 1};
}

/// The tensors of one attention problem and its gradients; queries, keys and values are of type In.
template <class T, class In = T>
struct Tensors {
  Sizes n;
  double dropout;
  Buffer<In> q, k, v;
  Buffer<T> grad, grad_lse, output, lse, max, log_sum, gq, gk, gv;

  explicit Tensors(const Sizes& sizes, double p = 0) : n(sizes), dropout(p) {
    q.resize(n.count(n.H, n.L, n.D));
    k.resize(n.count(n.Hkv, n.S, n.D));
    v.resize(n.count(n.Hkv, n.S, n.Dv));
    output.resize(n.count(n.H, n.L, n.Dv));
    for (auto* x : {&lse, &max, &log_sum}) x->resize(n.count(n.H, n.L, 1));
    grad.resize(output.size());
    grad_lse.resize(lse.size());
    gq.resize(q.size());
    gk.resize(n.count(n.Hkv, n.S, padded(n.D)));
    gv.resize(n.count(n.Hkv, n.S, padded(n.Dv)));
  }

  Problem<T> problem(T scale) {
    auto p = problem_of<T>(n, view(q, n.H, n.L, n.D), view(k, n.Hkv, n.S, n.D),
                           view(v, n.Hkv, n.S, n.Dv), view(output, n.H, n.L, n.Dv), lse.data());
    p.max = max.data();
    p.log_sum = log_sum.data();
    p.scale = scale;
    p.dropout = dropout;
    p.seed = 99;
    return p;
  }
  Gradients<T> gradients() {
    std::fill(gk.begin(), gk.end(), T(0));
    std::fill(gv.begin(), gv.end(), T(0));
    return {.grad_output = view(grad, n.H, n.L, n.Dv),
            .grad_q = view(gq, n.H, n.L, n.D),
            .grad_lse = grad_lse.data(),
            .grad_k = view(gk, n.Hkv, n.S, padded(n.D)),
            .grad_v = view(gv, n.Hkv, n.S, padded(n.Dv))};
  }
};

template <class T, class In>
void expect_same_bits(const Tensors<T, In>& a, const Tensors<T, In>& b) {
  EXPECT_TRUE(a.output == b.output);
  EXPECT_TRUE(a.lse == b.lse);
  EXPECT_TRUE(a.gq == b.gq);
  EXPECT_TRUE(a.gk == b.gk);
  EXPECT_TRUE(a.gv == b.gv);
}

/// Whether the kernels that run multiply bfloat16 as it is, and whether by tile registers.
#if defined(__x86_64__)
inline bool multiply_bfloat16() { return isa() > Isa::kAvx512; }
inline bool use_tile_registers() { return isa() == Isa::kAmx; }
#else
inline bool multiply_bfloat16() { return false; }
inline bool use_tile_registers() { return false; }
#endif

inline uint32_t bits(float x) { return __builtin_bit_cast(uint32_t, x); }
inline uint64_t bits(double x) { return __builtin_bit_cast(uint64_t, x); }
inline bool is_nan(float x) { return (bits(x) & 0x7fffffff) > 0x7f800000; }
inline bool is_nan(double x) { return (bits(x) & ~(1ull << 63)) > 0x7ffull << 52; }
template <class T>
bool is_minus_infinity(T x) {
  return bits(x) == bits(-std::numeric_limits<T>::infinity());
}

}  // namespace attzoo::kernel
