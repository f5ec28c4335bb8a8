#pragma once
/// \file
/// What a form is: a mask or a change of scores as a class that answers for one pair, from which
/// make_modifier.hpp makes the loops over tiles.

#include <attzoo/kernel/modifier/modifier.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// How many tensors a form of a score holds.
template <class S>
constexpr int kTensors = 0;

/// Whether a form of a score adds to it what does not depend on it (-inf, too).
template <class S>
constexpr bool kAdditive = false;

/// Whether a form calls into the user's program.
template <class Form>
constexpr bool kIsCallable = false;

/// The form of a mask, a copyable class with
/// ```
///   bool operator()(int b, int h, int q, int kv) const   branch-free if it is to be fast
///   void reach(const Rows&, Segments&) const             what queries reach, into empty segments
///   int stride() const                                   perhaps: the step at which all allowed
///                                                        keys of a query lie
/// ```
template <class M>
Mask make_mask(M form);

/// All keys, for want of a better account.
inline Mask anywhere() {
  struct Anywhere {
    void reach(const Rows& r, Segments& out) const { append(out, 0, r.S, Cover::kPartial, r.S); }
  };
  return reach_of(Anywhere());
}

/// The form of a change of scores, for scores of type T, a copyable class with
/// ```
///   R operator()(R s, I b, I h, I q, I kv) const         R is Real<T> or Dual<T>, I is Index
///   T gradient(T s, T g, I b, I h, I q, I kv, const TensorGradient<T>* to) const
/// ```
/// where only one that holds tensors needs the second: it takes the gradient g of the score after
/// modification, adds to the tensors' gradients at `to`, and returns that of the score before.
template <class T, class S>
Score<T> make_score(S form);

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
