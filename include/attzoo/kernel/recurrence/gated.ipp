#pragma once
// Definitions of gated.hpp.

#include <attzoo/kernel/bodies.hpp>
#include <attzoo/kernel/recurrence/gated.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class T>
void recur(const GatedProblem& p, Runtime& runtime) {
  ATTZOO_ON_THIS_CPU(run_gated<T>(p, runtime));
}

template <class T>
void recur_backward(const GatedProblem& p, const GatedGradients& d, Runtime& runtime) {
  ATTZOO_ON_THIS_CPU(run_gated_backward<T>(p, d, runtime));
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
