#pragma once
/// \file
/// What a modifier's callable is handed in the fused kernels, in the place of numbers:
///
///   Index    b, h, q or kv, and what is computed of it by whole numbers alone (Integer)
///   Entry    what a table holds at an index: whole or not, which is known at run time
///   Real     a score, or any other floating number
///   Dual     a score and its derivative, by which a callable differentiates itself
///
/// They mix with each other and with plain numbers in all operators and functions, by one rule in
/// every form that a callable runs in:
///
/// - Whole numbers are 64 bits wide and wrap around; unsigned ones are taken by their value. An
///   Integer knows at compile time how large it can be, so what fits in 32 bits is computed in 32,
///   and vectorises better. x / 0 is 0 and x % 0 is x: nothing traps.
/// - Whole numbers with floating ones, and entries, are computed in double, and every operation is
///   rounded by itself: comparisons of what + - * /, floor and sqrt give fall the same way on every
///   CPU and in every form.
/// - A score keeps its own precision, whatever it meets: `20.0 * s` stays in float.
/// - What is assigned to (`d *= 2`) keeps its type; a whole number must remain an index in size.
///
/// All operations vectorise but pow, log, log2, sin, cos, erf and division by what is not constant.
/// The last form, whole tensors, is core/modifier/tensor_lane.hpp.

#include <attzoo/kernel/math.hpp>
#include <attzoo/kernel/modifier/lane_assignments.hpp>
#include <attzoo/kernel/modifier/lane_operators.hpp>
#include <attzoo/kernel/modifier/lane_types.hpp>

#include <cmath>
#include <cstdint>
#include <type_traits>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

// ---- functions ----------------------------------------------------------------------------------
// min, max, abs, clamp, where, floor and relu of whole numbers are whole; all others are floating.

/// `condition ? a : b`, which C++ cannot overload.
template <class C, class A, class B>
requires LaneTriple<C, A, B> ATTZOO_ALWAYS_INLINE auto where(C truth, A a, B b) {
  const bool condition = holds(truth);
  if constexpr (Integers<A, B>) {
    using X = Lifted<A>;
    using Y = Lifted<B>;
    const auto chosen = on_integers<kLarger<X, Y>>(
        lift(a), lift(b),
        [condition](auto x, auto y) ATTZOO_INLINE_LAMBDA { return select(condition, x, y); });
    return Integer<kLarger<X, Y>, TraceOf<Lifted<C>, X, Y>>{chosen.v};
  } else {
    using M = Meet<A, B, C>;
    const M x = as<M>(lift(a)), y = as<M>(lift(b));
    if constexpr (LaneTraits<M>::kEntry) {
      return M{select(condition, x.v, y.v), x.whole && y.whole, select(condition, x.d, y.d)};
    } else if constexpr (LaneTraits<M>::kDual) {
      return M{select(condition, x.v, y.v), select(condition, x.d, y.d)};
    } else {
      return M{select(condition, x.v, y.v)};
    }
  }
}

namespace detail {
/// The lesser, or the greater, of two; equal ones share the derivative, as in ATen.
template <bool kLess, class A, class B>
ATTZOO_ALWAYS_INLINE auto extreme(A a, B b) {
  if constexpr (Integers<A, B>) {
    return number(kernel::where(kLess ? b < a : b > a, b, a));
  } else {
    using M = Meet<A, B>;
    const M x = as<M>(lift(a)), y = as<M>(lift(b));
    M chosen = kernel::where(kLess ? y.v < x.v : y.v > x.v, y, x);
    if constexpr (requires { chosen.d; }) {
      chosen.d = x.v == y.v ? (x.d + y.d) / 2 : chosen.d;
    }
    return chosen;
  }
}
}  // namespace detail

// Their signatures are those of std::min and std::max, so that after `using std::min` these are
// taken, being more constrained.
template <class A, class B>
requires LanePair<A, B> ATTZOO_ALWAYS_INLINE auto min(const A& a, const B& b) {
  return detail::extreme<true>(a, b);
}
template <class A, class B>
requires LanePair<A, B> ATTZOO_ALWAYS_INLINE auto max(const A& a, const B& b) {
  return detail::extreme<false>(a, b);
}
template <Lane A>
ATTZOO_ALWAYS_INLINE auto min(const A& a, const A& b) {
  return detail::extreme<true>(a, b);
}
template <Lane A>
ATTZOO_ALWAYS_INLINE auto max(const A& a, const A& b) {
  return detail::extreme<false>(a, b);
}

template <Lane A>
ATTZOO_ALWAYS_INLINE auto abs(A a) {
  if constexpr (LaneTraits<A>::kInteger) {
    return kernel::where(a.v < 0, negative(a), a);
  } else {
    if constexpr (requires { a.d; }) {
      a.d = a.v < 0 ? -a.d : (a.v > 0 ? a.d : 0);  // the subgradient 0 at 0, as ATen
    }
    a.v = a.v < 0 ? -a.v : a.v;
    return a;
  }
}
template <Lane A>
ATTZOO_ALWAYS_INLINE auto relu(A a) {
  if constexpr (requires { a.d; }) a.d = a.v > 0 ? a.d : 0;
  a.v = a.v > 0 ? a.v : 0;
  return number(a);
}
template <Lane A>
ATTZOO_ALWAYS_INLINE auto floor(A a) {
  if constexpr (!LaneTraits<A>::kInteger) a.v = std::floor(a.v);
  if constexpr (requires { a.d; }) a.d = 0;
  return number(a);
}
/// x between low and high, both included; high where they are the wrong way round.
template <class A, class Low, class High>
requires LaneTriple<A, Low, High> ATTZOO_ALWAYS_INLINE auto clamp(A x, Low low, High high) {
  const auto raised = kernel::where(lift(x) < low, low, x);
  return number(kernel::where(raised > high, high, raised));
}

#define ATTZOO_LANE_FUNCTION(name, value, derivative)                                              \
  template <class T>                                                                               \
  ATTZOO_ALWAYS_INLINE Real<T> name(Real<T> a) {                                                   \
    const T x = a.v;                                                                               \
    return value;                                                                                  \
  }                                                                                                \
  template <class T, class Tr>                                                                     \
  ATTZOO_ALWAYS_INLINE Dual<T, Tr> name(Dual<T, Tr> a) {                                           \
    using std::cos, std::exp, std::sin;                                                            \
    const T x = a.v, y = value;                                                                    \
    return {y, change(a.d, static_cast<T>(derivative))};                                           \
  }                                                                                                \
  template <Lane A>                                                                                \
  requires(LaneTraits<A>::kInteger || LaneTraits<A>::kEntry) ATTZOO_ALWAYS_INLINE auto name(A a) { \
    return name(as<Floating<A>>(a));                                                               \
  }
ATTZOO_LANE_FUNCTIONS(ATTZOO_LANE_FUNCTION)
#undef ATTZOO_LANE_FUNCTION

template <class T>
ATTZOO_ALWAYS_INLINE Real<T> power(Real<T> a, Real<T> b) {
  return std::pow(a.v, b.v);
}
/// Derivatives at the borders as ATen's: x^0 has none by x, 0^y none by y >= 0.
template <class T, class Tr>
ATTZOO_ALWAYS_INLINE Dual<T, Tr> power(Dual<T, Tr> a, Dual<T, Tr> b) {
  const T y = std::pow(a.v, b.v);
  const T by_base = b.v == 0 ? 0 : b.v * std::pow(a.v, b.v - 1);
  const T by_exponent = b.d == 0 || (a.v == 0 && b.v >= 0) ? 0 : y * std::log(a.v);
  return {y, change(a.d, by_base) + change(b.d, by_exponent)};
}
template <class A, class B>
requires LanePair<A, B> ATTZOO_ALWAYS_INLINE auto pow(A a, B b) {
  using M = Floating<Meet<A, B>>;
  return power(as<M>(lift(a)), as<M>(lift(b)));
}

// ---- tables -------------------------------------------------------------------------------------

/// A tensor of rank 1 to 4 that a callable looks things up in, contiguous. An index beyond the ends
/// is clamped: what checks ranges has run before.
struct TableView {
  const double* data = nullptr;
  int32_t size[4] = {1, 1, 1, 1}, stride[4] = {0, 0, 0, 0};
  bool whole = true;      // integers
  int64_t gradient = -1;  // where its gradient begins among those of tables that learn

  template <class... I>
  ATTZOO_ALWAYS_INLINE auto at(I... index) const {
    using Trace = TraceOf<Lifted<I>...>;
    int d = 0;
    int32_t place = 0;
    ((place += clamped(lift(index), size[d]) * stride[d], ++d), ...);
    Entry<Trace> e{data[place], whole};
    if constexpr (std::is_same_v<Trace, Traced>) {
      Lookup& lookup = Lookup::current();
      if (gradient >= 0 && lookup.seen++ == lookup.wanted) {
        e.d = 1;
        lookup.place = gradient + place;
      }
    }
    return e;
  }

 private:
  template <int64_t M, class Tr>
  static ATTZOO_ALWAYS_INLINE int32_t clamped(Integer<M, Tr> i, int32_t n) {
    using V = typename Integer<M, Tr>::Value;
    const V low = i.v < 0 ? V{0} : i.v, last = static_cast<V>(n - 1);
    return static_cast<int32_t>(low > last ? last : low);
  }
  template <class Tr>
  static ATTZOO_ALWAYS_INLINE int32_t clamped(Entry<Tr> e, int32_t n) {
    const double low = e.v > 0 ? e.v : 0, last = n - 1;
    return static_cast<int32_t>(low > last ? last : low);
  }
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
