#pragma once
/// \file
/// One problem as the kernel sees it: pointers, strides and sizes.

#include <attzoo/kernel/modifier/modifier.hpp>
#include <attzoo/kernel/runtime.hpp>
#include <attzoo/kernel/view.hpp>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// T is what is computed in: float, or double for float64 tensors.
template <class T>
struct Problem {
  View q, k, v, output;
  T* lse = nullptr;  // [B, H, L], contiguous; natural log, -inf for a row without keys
  // The two parts of lse, likewise, for the backward pass: of large scores the sum has no digits
  // left for the second. Null where no backward pass follows. With stick_breaking set_stick()'s.
  T *max = nullptr, *log_sum = nullptr;
  int B = 0, H = 0, Hkv = 0, L = 0, S = 0, D = 0, Dv = 0;
  T scale = 1;
  double dropout = 0;
  uint64_t seed = 0;
  bool stick_breaking = false;  // weights and lse as stick.inc has them

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
  /// The log of what a row's keys leave of a stick, to base e, and `kept`, a double in two parts,
  /// what the backward pass begins with.
  void set_stick(int64_t row, double left, double kept) const {
    lse[row] = static_cast<T>(left);
    if (!max) return;
    max[row] = static_cast<T>(kept);
    log_sum[row] = static_cast<T>(kept - static_cast<double>(max[row]));
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

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
