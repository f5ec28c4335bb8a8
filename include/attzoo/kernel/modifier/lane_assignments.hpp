#pragma once
/// \file
/// The assignments of lane.hpp: =, += and so on.

#include <attzoo/kernel/modifier/lane_operators.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// `a = a op b` where a's type can hold that. It was chosen before: a whole number remains one, and
/// keeps to an index's magnitude, which is seen to before a kernel runs
/// (core/modifier/interval.hpp).
template <Lane A, Lane R>
ATTZOO_ALWAYS_INLINE A& assign(A& a, R r) {
  using To = LaneTraits<A>;
  using From = LaneTraits<R>;
  if constexpr (To::kInteger) {
    static_assert(From::kInteger,
                  "attzoo: a whole number remains one: write auto x = d + 0.5 for d += 0.5");
    static_assert(!kIsTruth<A> || kIsTruth<R>,
                  "attzoo: a truth value takes &=, |= and ^= of others: write auto n = t + 1 for "
                  "t += 1");
    a.v = static_cast<typename A::Value>(r.v);
  } else if constexpr (To::kEntry) {
    static_assert(!From::kDual || std::is_same_v<typename From::Trace, Traced>,
                  "attzoo: what takes up a score begins with one: write auto x = t + s for t += s");
    if constexpr (From::kEntry || From::kInteger) {
      a = as<A>(r);
    } else if constexpr (From::kDual) {
      a = A{r.v, false, r.d};
    } else {
      a = A{static_cast<double>(r.v), false};
    }
  } else {
    static_assert(To::kDual || !From::kDual,
                  "attzoo: what takes up a score begins with one: write auto x = t + s for t += s");
    a = as<A>(r);
  }
  return a;
}
template <int64_t kMost, class Trace>
template <class B>
ATTZOO_ALWAYS_INLINE Integer<kMost, Trace>& Integer<kMost, Trace>::operator=(const B& b) {
  return assign(*this, lift(b));
}
template <class Trace>
template <class B>
ATTZOO_ALWAYS_INLINE Entry<Trace>& Entry<Trace>::operator=(const B& b) {
  return assign(*this, lift(b));
}
template <class T>
template <class B>
requires(LaneTraits<B>::kDual) ATTZOO_ALWAYS_INLINE Real<T>
&Real<T>::operator=(const B& b) { return assign(*this, b); }

#define ATTZOO_LANE_ASSIGNMENT(op, _)                                                \
  template <Lane A, class B>                                                         \
  requires(Lane<B> || Number<B>) ATTZOO_ALWAYS_INLINE A& operator op##=(A& a, B b) { \
    return assign(a, a op b);                                                        \
  }
ATTZOO_LANE_ASSIGNMENTS(ATTZOO_LANE_ASSIGNMENT)
#undef ATTZOO_LANE_ASSIGNMENT

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
