#pragma once
// Definitions of attention.hpp.

#include <attzoo/kernel/attention/attention.hpp>
#include <attzoo/kernel/bodies.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class T>
void attend(const Problem<T>& p, const Modifiers<T>& m, Runtime& runtime) {
  ATTZOO_ON_THIS_CPU(run_forward(p, m, runtime));
}

template <class T>
void attend_backward(const Problem<T>& p, const Modifiers<T>& m, const Gradients<T>& g,
                     Runtime& runtime) {
  ATTZOO_ON_THIS_CPU(run_backward(p, m, g, runtime));
}

template <class T>
void attend_backward_tensors(const Problem<T>& p, const Modifiers<T>& m, const Gradients<T>& g,
                             const TensorGradients<T>& to, Runtime& runtime) {
  if (!m.score.collect) return;
  ATTZOO_ON_THIS_CPU(run_collect(p, m, g, to, runtime));
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
