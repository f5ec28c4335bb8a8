#pragma once
/// \file
/// Recurrences that forget and rewrite on CPU, chunk by chunk. T is float or double.

#include <attzoo/kernel/recurrence/gated_problem.hpp>
#include <attzoo/kernel/runtime.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Writes p.out, and p.last.
template <class T>
void recur(const GatedProblem& p, Runtime& runtime);
/// Writes all gradients of d that have memory, which are T.
template <class T>
void recur_backward(const GatedProblem& p, const GatedGradients& d, Runtime& runtime);

#ifdef ATTZOO_COMPILED
extern template void recur<float>(const GatedProblem&, Runtime&);
extern template void recur<double>(const GatedProblem&, Runtime&);
extern template void recur_backward<float>(const GatedProblem&, const GatedGradients&, Runtime&);
extern template void recur_backward<double>(const GatedProblem&, const GatedGradients&, Runtime&);
#endif

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/recurrence/gated.ipp>
#endif
