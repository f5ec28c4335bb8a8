#pragma once
/// \file
/// Fused attention on CPU, forward and backward, for any mask and any change of scores.

#include <attzoo/kernel/isa.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// The kernel of one instruction set.
template <class T>
struct Functions {
  void (*forward)(const Problem<T>&, const Modifiers<T>&, Runtime&);
  void (*backward)(const Problem<T>&, const Modifiers<T>&, const Gradients<T>&, Runtime&);
  void (*backward_tensors)(const Problem<T>&, const Modifiers<T>&, const Gradients<T>&,
                           const TensorGradients<T>&, Runtime&);
};

/// Calls f with the modifiers' erased form and the instruction set's functions.
template <class T, class Mask, class Score, class F>
void with_isa(const MaskAndScore<Mask, Score>& modifiers, F&& f) {
  using Pair = MaskAndScore<Mask, Score>;
  Modifiers<T> m{&modifiers,
                 [](const void* pair, const Rows& rows, Segments& out) {
                   static_cast<const Pair*>(pair)->mask.reach(rows, out);
                 },
                 std::max(1, stride_of(modifiers.mask)), changes(modifiers.score)};
#if defined(__x86_64__)
  if (isa() >= Isa::kAvx512) {
    avx512::set_functions<T, Mask, Score>(m);
    return f(m, Functions<T>{avx512::forward<T>, avx512::backward<T>, avx512::backward_tensors<T>});
  }
  if (isa() == Isa::kAvx2) {
    avx2::set_functions<T, Mask, Score>(m);
    return f(m, Functions<T>{avx2::forward<T>, avx2::backward<T>, avx2::backward_tensors<T>});
  }
#endif
  portable::set_functions<T, Mask, Score>(m);
  return f(
      m, Functions<T>{portable::forward<T>, portable::backward<T>, portable::backward_tensors<T>});
}

/// Writes p.output and p.lse.
template <class T, class Mask, class Score>
void forward(const Problem<T>& p, const MaskAndScore<Mask, Score>& modifiers, Runtime& runtime) {
  with_isa<T>(modifiers,
              [&](const Modifiers<T>& m, const Functions<T>& run) { run.forward(p, m, runtime); });
}

/// Writes g.grad_q and adds to g.grad_k and g.grad_v; reads p.output and p.lse.
template <class T, class Mask, class Score>
void backward(const Problem<T>& p, const MaskAndScore<Mask, Score>& modifiers,
              const Gradients<T>& g, Runtime& runtime) {
  with_isa<T>(modifiers, [&](const Modifiers<T>& m, const Functions<T>& run) {
    run.backward(p, m, g, runtime);
  });
}

/// Adds to the gradients of the tensors that the score modifier holds; reads as backward().
template <class T, class Mask, class Score>
void backward_tensors(const Problem<T>& p, const MaskAndScore<Mask, Score>& modifiers,
                      const Gradients<T>& g, const TensorGradients<T>& to, Runtime& runtime) {
  static_assert(kTensors<Score> > 0);
  with_isa<T>(modifiers, [&](const Modifiers<T>& m, const Functions<T>& run) {
    run.backward_tensors(p, m, g, to, runtime);
  });
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
