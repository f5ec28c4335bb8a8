#pragma once
// Definitions of recurrence.hpp.

#include <attzoo/kernel/bodies.hpp>
#include <attzoo/kernel/recurrence/recurrence.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class T>
void recur(const RecurrenceProblem& p, Runtime& runtime) {
  ATTZOO_ON_THIS_CPU(run_recurrence<T>(p, runtime));
}

template <class T>
void recur_backward(const RecurrenceProblem& p, const RecurrenceGradients& d, Runtime& runtime) {
  ATTZOO_ON_THIS_CPU(run_recurrence_backward<T>(p, d, runtime));
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
