#pragma once
// Definitions of chosen.hpp.

#include <attzoo/kernel/bodies.hpp>
#include <attzoo/kernel/decode/chosen.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class T>
void attend_chosen(const ChosenProblem<T>& p, Runtime& runtime) {
  ATTZOO_ON_THIS_CPU(run_chosen(p, runtime));
}

template <class T>
void attend_chosen_backward(const ChosenProblem<T>& p, const Gradients<T>& g, Runtime& runtime) {
  ATTZOO_ON_THIS_CPU(run_chosen_backward(p, g, runtime));
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
