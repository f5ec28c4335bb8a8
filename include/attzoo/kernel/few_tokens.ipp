#pragma once
// Definitions of few_tokens.hpp.

#include <attzoo/kernel/bodies.hpp>
#include <attzoo/kernel/few_tokens.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class T>
void multiply(const FewTokens<T>& p) {
  ATTZOO_ON_THIS_CPU(run_multiply(p));
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
