#pragma once
/// \file
/// Fused attention on CPU, forward and backward, for any mask and any change of scores. T is float
/// or double.

#include <attzoo/kernel/attention/problem.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Writes p.output and p.lse.
template <class T>
void attend(const Problem<T>& p, const Modifiers<T>& m, Runtime& runtime);

/// Writes g.grad_q and adds to g.grad_k and g.grad_v; reads p.output and p.lse.
template <class T>
void attend_backward(const Problem<T>& p, const Modifiers<T>& m, const Gradients<T>& g,
                     Runtime& runtime);

/// Adds to the gradients of the m.score.tensors tensors that the score modifier holds; reads as
/// attend_backward().
template <class T>
void attend_backward_tensors(const Problem<T>& p, const Modifiers<T>& m, const Gradients<T>& g,
                             const TensorGradients<T>& to, Runtime& runtime);

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/attention/attention.ipp>
#endif
