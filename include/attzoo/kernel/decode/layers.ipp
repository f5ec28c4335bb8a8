#pragma once
// Definitions of layers.hpp.

#include <attzoo/kernel/bodies.hpp>
#include <attzoo/kernel/decode/layers.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class T>
void multiply(const FewTokens<T>& p) {
  ATTZOO_ON_THIS_CPU(run_multiply(p));
}

template <class T>
void add(const T* a, const T* b, T* out, int64_t n) {
  ATTZOO_ON_THIS_CPU(run_add(a, b, out, n));
}

template <class T>
void swiglu(const T* gate, const T* in, T* out, int64_t n) {
  ATTZOO_ON_THIS_CPU(run_swiglu(gate, in, out, n));
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
