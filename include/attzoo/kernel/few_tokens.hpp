#pragma once
/// \file
/// A layer's outputs for few tokens: the time is that of reading the weights once, so all that
/// matters is that vectors read them, one row after the other.

#include <attzoo/kernel/compiler.hpp>

#include <cstdint>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Rows of a layer, or all of them, and where their outputs go. T is float or double.
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

/// out[l][i] = tokens[l] . weight[i] + bias[i]; an output's bits do not depend on the other rows
/// and tokens.
template <class T>
void multiply(const FewTokens<T>& p);

#ifdef ATTZOO_COMPILED
extern template void multiply(const FewTokens<float>&);
extern template void multiply(const FewTokens<double>&);
#endif

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/few_tokens.ipp>
#endif
