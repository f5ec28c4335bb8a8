#pragma once
/// \file
/// Recurrences that forget and rewrite on CPU, chunk by chunk. T is float or double.

#include <attzoo/kernel/recurrence/problem.hpp>
#include <attzoo/kernel/runtime.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Writes p.out, and p.last.
template <class T>
void recur(const RecurrenceProblem& p, Runtime& runtime);
/// Writes all gradients of d that have memory, which are T.
template <class T>
void recur_backward(const RecurrenceProblem& p, const RecurrenceGradients& d, Runtime& runtime);

#ifdef ATTZOO_COMPILED
extern template void recur<float>(const RecurrenceProblem&, Runtime&);
extern template void recur<double>(const RecurrenceProblem&, Runtime&);
extern template void recur_backward<float>(const RecurrenceProblem&, const RecurrenceGradients&,
                                           Runtime&);
extern template void recur_backward<double>(const RecurrenceProblem&, const RecurrenceGradients&,
                                            Runtime&);
#endif

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/recurrence/recurrence.ipp>
#endif
