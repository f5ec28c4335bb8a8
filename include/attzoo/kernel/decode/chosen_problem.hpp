#pragma once
/// \file
/// Attention of each query to keys that it chose, by their numbers, as the kernels see it.

#include <attzoo/kernel/attention/problem.hpp>

#include <algorithm>
#include <cstdint>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// T is float, or double for float64 tensors. Of the problem `p` the softmax's parts, dropout and
/// seed are not looked at.
template <class T>
struct ChosenProblem {
  static constexpr int kMostRows = 64;  // of a task

  Problem<T> p;
  /// [B, units, L, M], the last stride 1: which keys, in any order; -1 for none. A unit is heads
  /// that share their keys and what they choose; there are Hkv of them, or a multiple.
  const int64_t* chosen = nullptr;
  int64_t chosen_b = 0, chosen_u = 0, chosen_n = 0;
  int units = 1, M = 0;

  int heads() const { return p.H / units; }  // of a unit
  int hkv(int unit) const { return unit / (units / p.Hkv); }
  int rows() const { return std::min(heads(), kMostRows); }  // heads that meet keys together
  int parts() const { return (heads() - 1) / rows() + 1; }
  /// Ranges of keys are the tasks of the backward pass's second half; a key's is key >> shift(). By
  /// the shapes alone, so that sums do not depend on the number of threads.
  int shift() const {
    const int most = std::max(1, 16 / (p.B * p.Hkv));
    int shift = 0;
    while ((p.S - 1) >> shift >= most) ++shift;
    return shift;
  }
  int ranges() const { return ((p.S - 1) >> shift()) + 1; }
  const int64_t* row(int b, int unit, int i) const {
    return chosen + b * chosen_b + unit * chosen_u + i * chosen_n;
  }
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
