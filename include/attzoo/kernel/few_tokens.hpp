#pragma once
/// \file
/// A layer's outputs for few tokens: the time is that of reading the weights once, so all that
/// matters is that vectors read them, one row after the other.

#include <attzoo/kernel/problem.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

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
