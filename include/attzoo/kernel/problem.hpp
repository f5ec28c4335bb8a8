#pragma once
/// \file
/// One problem as the kernel sees it: pointers, strides and sizes.

#include <attzoo/kernel/modifier.hpp>
#include <attzoo/kernel/runtime.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

enum class DType { kFloat64, kFloat32, kBFloat16, kFloat16 };

/// In bytes.
constexpr int size_of(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

/// A tensor [B, H, N, features] with any strides, in elements.
struct View {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t b = 0, h = 0, n = 0, d = 0;

  /// Where the rows of one head begin.
  int64_t head(int64_t ib, int64_t ih) const { return ib * b + ih * h; }
};

/// Whether a tensor has the type to compute in, so that its rows can be used where they are.
template <class T>
bool is_native(const View& x) {
  return x.dtype == (sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32);
}

/// T is what is computed in: float, or double for float64 tensors.
template <class T>
struct Problem {
  View q, k, v, output;
  T* lse = nullptr;  // [B, H, L], contiguous; natural log, -inf for a row without keys
  // The two parts of lse, likewise, for the backward pass: of large scores the sum has no digits
  // left for the second. Null where no backward pass follows.
  T *max = nullptr, *log_sum = nullptr;
  int B = 0, H = 0, Hkv = 0, L = 0, S = 0, D = 0, Dv = 0;
  T scale = 1;
  double dropout = 0;
  uint64_t seed = 0;

  int group() const { return H / Hkv; }  // heads that share keys
  int64_t lse_row(int b, int h) const { return (int64_t{b} * H + h) * L; }
  /// A row's largest score, and the sum of exponentials of all below it.
  void set_softmax(int64_t row, T largest, T sum) const {
    const T log = std::log(sum);
    lse[row] = largest + log;
    if (!max) return;
    max[row] = largest;
    log_sum[row] = log;
  }
};

/// What the backward pass reads and writes beyond the problem.
template <class T>
struct Gradients {
  View grad_output, grad_q;
  const T* grad_lse = nullptr;  // [B, H, L], contiguous, or null
  // Accumulators [B, Hkv, S, padded(D or Dv)] of type T, zero on entry, last stride 1.
  View grad_k, grad_v;
};

/// Gradients of the tensors that the score modifier holds. The queries are split into `slots`, each
/// with one thread at a time; a tensor that has no query dimension has a gradient for each slot,
/// `slot_stride` apart.
template <class T>
struct TensorGradients {
  static constexpr int kMostSlots = 16;
  int slots = kMostSlots;
  std::vector<TensorGradient<T>> tensors;
  std::vector<int64_t> slot_stride;
};

/// out [B, H, n, E] = causal sums of (q . k) v: q and k [B, H, n, F], v [B, H, n, E].
struct ScanProblem {
  View q, k, v, out;
  int B = 0, H = 0, n = 0, F = 0, E = 0;
  bool reverse = false;  // sums over later tokens instead of earlier ones
};

/// Few tokens times the rows of a layer's weights, or some of them. T is float or double.
template <class T>
struct FewTokens {
  static constexpr int64_t kMost = 4;

  const T* tokens;  // [L, from]
  const T* weight;  // [rows, from]
  const T* bias;    // [rows], or null
  T* out;           // [L, rows], `step` apart
  int64_t L;        // 1 ... kMost
  int64_t from, rows, step;

  /// Some of the rows.
  FewTokens part(int64_t begin, int64_t end) const {
    auto p = *this;
    p.weight += begin * from;
    if (bias) p.bias += begin;
    p.out += begin;
    p.rows = end - begin;
    return p;
  }
};

/// Features are padded to a multiple of this in the accumulators and in scratch memory.
inline constexpr int kPad = 16;
constexpr int padded(int n) { return (n + kPad - 1) / kPad * kPad; }

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
