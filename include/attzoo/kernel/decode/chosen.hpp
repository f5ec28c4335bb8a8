#pragma once
/// \file
/// Attention of each query to keys that it chose, forward and backward. T is float or double.

#include <attzoo/kernel/decode/chosen_problem.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Writes p.output and p.lse.
template <class T>
void attend_chosen(const ChosenProblem<T>& p, Runtime& runtime);

/// Writes g.grad_q and adds to g.grad_k and g.grad_v; reads nothing that attend_chosen() wrote.
template <class T>
void attend_chosen_backward(const ChosenProblem<T>& p, const Gradients<T>& g, Runtime& runtime);

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/decode/chosen.ipp>
#endif
