#pragma once
/// \file
/// What few tokens need besides attention. A layer's outputs take the time of reading the weights
/// once, so all that matters is that vectors read them, from several places in turn.

#include <attzoo/kernel/decode/few_tokens.hpp>

#include <cstdint>
#include <cstring>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// out[l][i] = tokens[l] . weight[i] + bias[i]; an output's bits do not depend on the other rows
/// and tokens.
template <class T>
void multiply(const FewTokens<T>& p);

/// out = a + b, each of n numbers.
template <class T>
void add(const T* a, const T* b, T* out, int64_t n);

/// out = gate * sigmoid(gate) * in, each of n numbers.
template <class T>
void swiglu(const T* gate, const T* in, T* out, int64_t n);

/// a . b of n numbers, summed in four vectors of 16 bytes.
template <class T>
T inner_product(const T* a, const T* b, int64_t n) {
  typedef T Vector __attribute__((vector_size(16)));
  constexpr int kNumbers = 16 / sizeof(T), kVectors = 4;
  Vector parts[kVectors] = {};
  int64_t i = 0;
  for (; i + kVectors * kNumbers <= n; i += kVectors * kNumbers) {
    ATTZOO_UNROLL
    for (int j = 0; j < kVectors; ++j) {
      Vector x, y;
      std::memcpy(&x, a + i + j * kNumbers, sizeof x);
      std::memcpy(&y, b + i + j * kNumbers, sizeof y);
      parts[j] += x * y;
    }
  }
  T sum = 0;
  for (; i < n; ++i) sum += a[i] * b[i];
  const Vector all = parts[0] + parts[1] + (parts[2] + parts[3]);
  for (int j = 0; j < kNumbers; ++j) sum += all[j];
  return sum;
}

/// y = x * factor * weight, each of n numbers.
template <class T>
void scale_by(const T* x, T factor, const T* weight, T* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * factor * weight[i];
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/decode/layers.ipp>
#endif
