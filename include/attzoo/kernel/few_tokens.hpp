#pragma once
/// \file
/// What few tokens need besides attention. A layer's outputs take the time of reading the weights
/// once, so all that matters is that vectors read them, from several places in turn.

#include <attzoo/kernel/problem.hpp>

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

#ifdef ATTZOO_COMPILED
extern template void multiply(const FewTokens<float>&);
extern template void multiply(const FewTokens<double>&);
extern template void add(const float*, const float*, float*, int64_t);
extern template void add(const double*, const double*, double*, int64_t);
extern template void swiglu(const float*, const float*, float*, int64_t);
extern template void swiglu(const double*, const double*, double*, int64_t);
#endif

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/few_tokens.ipp>
#endif
