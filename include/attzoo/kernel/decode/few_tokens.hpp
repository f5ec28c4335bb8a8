#pragma once
/// \file
/// The product of few tokens with a layer, as the kernels see it.

#include <attzoo/kernel/compiler.hpp>

#include <cstdint>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

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

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
