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
/// - Whole numbers with floating ones, and entries, are computed in double.
/// - A score keeps its own precision, whatever it meets: `20.0 * s` stays in float.
///
/// All operations vectorise but pow, log, log2, sin, cos, erf and division by what is not constant.
/// The last form, whole tensors, is core/tensor_lane.hpp.

#include <attzoo/kernel/compiler.hpp>
#include <attzoo/kernel/math.hpp>

#include <cmath>
#include <concepts>
#include <cstdint>
#include <limits>
#include <type_traits>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class T>
concept Number = std::is_arithmetic_v<T>;

// ---- whole numbers ------------------------------------------------------------------------------

/// Nobody asks which entries of tables a callable reads.
struct Untraced {};

/// One of the entries that a callable reads has the derivative 1: the one after `wanted` others.
struct Lookup {
  int wanted;
  int seen = 0;        // entries read so far of tables that learn
  int64_t place = -1;  // of the wanted one in their gradients
};
struct Traced {
  Lookup* lookup = nullptr;
};

inline constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
inline constexpr int64_t kMostInt = int64_t{1} << 31;  // the magnitude of the lowest int

constexpr int64_t saturating_add(int64_t a, int64_t b) { return a > kAny - b ? kAny : a + b; }
constexpr int64_t saturating_multiply(int64_t a, int64_t b) {
  return b != 0 && a > kAny / b ? kAny : a * b;
}

/// A whole number of magnitude kMost or less; kAny: any, and sums wrap around.
template <int64_t kMost, class Trace = Untraced>
struct Integer {
  using Value = std::conditional_t<(kMost <= kMostInt), int32_t, int64_t>;
  Value v;
  [[no_unique_address]] Trace trace{};

  ATTZOO_ALWAYS_INLINE explicit operator bool() const { return v != 0; }
};

/// b, h, q and kv: differences of two still fit in 32 bits.
inline constexpr int64_t kMostIndex = (int64_t{1} << 30) - 1;
using Index = Integer<kMostIndex>;
using Truth = Integer<1>;
using TracedIndex = Integer<kMostIndex, Traced>;

/// An entry of a table, and in a trace its derivative.
template <class Trace = Untraced>
struct Entry {
  double v;
  bool whole;
  double d = 0;
  [[no_unique_address]] Trace trace{};

  ATTZOO_ALWAYS_INLINE explicit operator bool() const { return v != 0; }
};

/// Whole to floating. Up to 2^51 by way of the mantissa, which vectorises where conversions of
/// 64-bit numbers do not.
template <class T, int64_t kMost, class Trace>
ATTZOO_ALWAYS_INLINE T to_floating(Integer<kMost, Trace> i) {
  if constexpr (kMost > kMostInt && kMost <= (int64_t{1} << 51)) {
    constexpr int64_t kBits = 0x4338000000000000;  // of 1.5 * 2^52
    return static_cast<T>(__builtin_bit_cast(double, i.v + kBits) - 6755399441055744.0);
  } else {
    return static_cast<T>(i.v);
  }
}

// ---- floating numbers ---------------------------------------------------------------------------

/// One score, or any number computed from it.
template <class T>
struct Real {
  T v;
  template <Number N>
  ATTZOO_ALWAYS_INLINE Real(N n) : v(static_cast<T>(n)) {}  // NOLINT: literals mix with scores
  template <int64_t M, class Tr>
  ATTZOO_ALWAYS_INLINE Real(Integer<M, Tr> i) : v(to_floating<T>(i)) {}     // NOLINT: so do indices
  ATTZOO_ALWAYS_INLINE Real(Entry<Untraced> e) : v(static_cast<T>(e.v)) {}  // NOLINT: and entries
  template <class U>
  requires(!std::is_same_v<U, T>) ATTZOO_ALWAYS_INLINE Real(Real<U> r)  // NOLINT
      : v(static_cast<T>(r.v)) {}
};

/// A score and its derivative with respect to the score before modification, or in a trace to the
/// wanted entry of a table.
template <class T>
struct Dual {
  T v, d;
  ATTZOO_ALWAYS_INLINE Dual(T value, T derivative) : v(value), d(derivative) {}
  template <Number N>
  ATTZOO_ALWAYS_INLINE Dual(N n) : v(static_cast<T>(n)), d(0) {}  // NOLINT: a constant
  template <int64_t M, class Tr>
  ATTZOO_ALWAYS_INLINE Dual(Integer<M, Tr> i) : v(to_floating<T>(i)), d(0) {}     // NOLINT
  ATTZOO_ALWAYS_INLINE Dual(Entry<Untraced> e) : v(static_cast<T>(e.v)), d(0) {}  // NOLINT
  ATTZOO_ALWAYS_INLINE Dual(Entry<Traced> e)                                      // NOLINT
      : v(static_cast<T>(e.v)), d(static_cast<T>(e.d)) {}
  template <class U>
  ATTZOO_ALWAYS_INLINE Dual(Real<U> r) : v(static_cast<T>(r.v)), d(0) {}  // NOLINT
};

// ---- which type two of them meet in -------------------------------------------------------------

template <class T>
struct LaneTraits {
  static constexpr bool kIs = false;
};
template <int64_t M, class Tr>
struct LaneTraits<Integer<M, Tr>> {
  static constexpr bool kIs = true, kInteger = true, kEntry = false, kDual = false, kNarrow = false;
  static constexpr int64_t kMost = M;
  using Trace = Tr;
};
template <class Tr>
struct LaneTraits<Entry<Tr>> {
  static constexpr bool kIs = true, kInteger = false, kEntry = true, kDual = false, kNarrow = false;
  using Trace = Tr;
};
template <class T>
struct LaneTraits<Real<T>> {
  static constexpr bool kIs = true, kInteger = false, kEntry = false, kDual = false,
                        kNarrow = sizeof(T) == 4;
  using Trace = Untraced;
};
template <class T>
struct LaneTraits<Dual<T>> {
  static constexpr bool kIs = true, kInteger = false, kEntry = false, kDual = true,
                        kNarrow = sizeof(T) == 4;
  using Trace = Untraced;
};

template <class T>
concept Lane = LaneTraits<T>::kIs;
/// At least one lane, the other one too or a plain number.
template <class A, class B>
concept LanePair = (Lane<A> && (Lane<B> || Number<B>)) || (Number<A> && Lane<B>);

template <class A, class B, class C>
concept LaneTriple = (Lane<A> || Lane<B> ||
                      Lane<C>)&&(Lane<A> || Number<A>)&&(Lane<B> || Number<B>)&&(Lane<C> ||
                                                                                 Number<C>);

/// Plain numbers as lanes.
template <Lane A>
ATTZOO_ALWAYS_INLINE A lift(A a) {
  return a;
}
template <std::floating_point F>
ATTZOO_ALWAYS_INLINE Real<double> lift(F x) {
  return static_cast<double>(x);
}
template <std::integral I>
ATTZOO_ALWAYS_INLINE auto lift(I i) {
  constexpr auto kMost = static_cast<uint64_t>(std::numeric_limits<I>::max());
  using Wide = Integer<kMost >= static_cast<uint64_t>(kMostInt) ? kAny : kMostInt>;
  return Wide{static_cast<typename Wide::Value>(i)};
}
template <class T>
using Lifted = decltype(lift(std::declval<T>()));

template <class A, class B>
using TraceOf = std::conditional_t<std::is_same_v<typename LaneTraits<A>::Trace, Traced> ||
                                       std::is_same_v<typename LaneTraits<B>::Trace, Traced>,
                                   Traced, Untraced>;

template <class A, class B>
constexpr auto meet() {
  using X = LaneTraits<A>;
  using Y = LaneTraits<B>;
  constexpr bool whole = (X::kInteger || X::kEntry) && (Y::kInteger || Y::kEntry);
  constexpr bool traced_entry = (X::kEntry && std::is_same_v<typename X::Trace, Traced>) ||
                                (Y::kEntry && std::is_same_v<typename Y::Trace, Traced>);
  using T = std::conditional_t<X::kNarrow || Y::kNarrow, float, double>;
  if constexpr (whole) {
    return std::type_identity<Entry<TraceOf<A, B>>>();
  } else if constexpr (X::kDual || Y::kDual || traced_entry) {
    return std::type_identity<Dual<T>>();
  } else {
    return std::type_identity<Real<T>>();
  }
}
/// Of anything but two Integers.
template <class A, class B>
using Meet = typename decltype(meet<Lifted<A>, Lifted<B>>())::type;
template <class A, class B>
concept Integers = LaneTraits<Lifted<A>>::kInteger && LaneTraits<Lifted<B>>::kInteger;
/// A lane as a floating number.
template <class A>
using Floating = Meet<A, Real<double>>;

// ---- arithmetic of whole numbers ----------------------------------------------------------------

ATTZOO_ALWAYS_INLINE Untraced either(Untraced, Untraced) { return {}; }
ATTZOO_ALWAYS_INLINE Traced either(Traced a, Untraced) { return a; }
ATTZOO_ALWAYS_INLINE Traced either(Untraced, Traced b) { return b; }
ATTZOO_ALWAYS_INLINE Traced either(Traced a, Traced b) { return a.lookup ? a : b; }

/// f(a, b) on two Integers, computed in a type that holds a result of magnitude kMost; unsigned
/// where it may wrap around.
template <int64_t kMost, class A, class B, class F>
ATTZOO_ALWAYS_INLINE auto on_integers(A a, B b, F f) {
  using Result = Integer<kMost, TraceOf<A, B>>;
  using V = typename Result::Value;
  using U = std::conditional_t<kMost == kAny, uint64_t, V>;
  return Result{
      static_cast<V>(f(static_cast<U>(static_cast<V>(a.v)), static_cast<U>(static_cast<V>(b.v)))),
      either(a.trace, b.trace)};
}
template <class A>
inline constexpr int64_t kMostOf = LaneTraits<A>::kMost;
template <class A, class B>
inline constexpr int64_t kLarger = kMostOf<A> > kMostOf<B> ? kMostOf<A> : kMostOf<B>;

struct Add {
  template <class U>
  ATTZOO_ALWAYS_INLINE U operator()(U a, U b) const {
    return a + b;
  }
};
struct Subtract {
  template <class U>
  ATTZOO_ALWAYS_INLINE U operator()(U a, U b) const {
    return a - b;
  }
};
struct Multiply {
  template <class U>
  ATTZOO_ALWAYS_INLINE U operator()(U a, U b) const {
    return a * b;
  }
};

/// The quotient truncates, as C++'s; divided by 0 it is 0 and the remainder is a.
template <class A, class B>
struct Division {
  static constexpr bool kWide = kLarger<A, B> > kMostInt || kMostOf<A> == kMostInt;
  using V = std::conditional_t<kWide, int64_t, int32_t>;
  V a, b, divisor;
  ATTZOO_ALWAYS_INLINE Division(A x, B y) : a(x.v), b(y.v), divisor(b) {
    // No division by 0, and none of the lowest number by -1, not even in a lane that is not used.
    if (kMostOf<A> >= kMostInt) {
      divisor = ((b == 0) | (b == -1)) ? V{1} : b;
    } else {
      divisor = b == 0 ? V{1} : b;
    }
  }
  ATTZOO_ALWAYS_INLINE V quotient() const {
    V q = a / divisor;
    if (kMostOf<A> >= kMostInt) q = b == -1 ? static_cast<V>(0 - static_cast<uint64_t>(a)) : q;
    return b == 0 ? V{0} : q;
  }
  ATTZOO_ALWAYS_INLINE V remainder() const { return b == 0 ? a : a % divisor; }
};

template <class A>
ATTZOO_ALWAYS_INLINE auto negative(A a) {
  constexpr int64_t kMost = kMostOf<A> == kMostInt ? kMostInt + 1 : kMostOf<A>;
  return on_integers<kMost>(Integer<0>{0}, a, Subtract());
}

template <class M, class A>
ATTZOO_ALWAYS_INLINE M as(A a) {
  if constexpr (std::is_same_v<M, A>) {
    return a;
  } else if constexpr (LaneTraits<M>::kEntry) {
    if constexpr (LaneTraits<A>::kInteger) {
      return {to_floating<double>(a), true, 0, either(a.trace, typename LaneTraits<M>::Trace())};
    } else {
      return {a.v, a.whole, a.d, either(a.trace, typename LaneTraits<M>::Trace())};
    }
  } else {
    return M(a);
  }
}

// ---- operators ----------------------------------------------------------------------------------

template <class T>
ATTZOO_ALWAYS_INLINE Real<T> add(Real<T> a, Real<T> b) {
  return a.v + b.v;
}
template <class T>
ATTZOO_ALWAYS_INLINE Dual<T> add(Dual<T> a, Dual<T> b) {
  return {a.v + b.v, a.d + b.d};
}
template <class Tr>
ATTZOO_ALWAYS_INLINE Entry<Tr> add(Entry<Tr> a, Entry<Tr> b) {
  return {a.v + b.v, a.whole && b.whole, a.d + b.d, either(a.trace, b.trace)};
}
template <class T>
ATTZOO_ALWAYS_INLINE Real<T> subtract(Real<T> a, Real<T> b) {
  return a.v - b.v;
}
template <class T>
ATTZOO_ALWAYS_INLINE Dual<T> subtract(Dual<T> a, Dual<T> b) {
  return {a.v - b.v, a.d - b.d};
}
template <class Tr>
ATTZOO_ALWAYS_INLINE Entry<Tr> subtract(Entry<Tr> a, Entry<Tr> b) {
  return {a.v - b.v, a.whole && b.whole, a.d - b.d, either(a.trace, b.trace)};
}
template <class T>
ATTZOO_ALWAYS_INLINE Real<T> multiply(Real<T> a, Real<T> b) {
  return a.v * b.v;
}
template <class T>
ATTZOO_ALWAYS_INLINE Dual<T> multiply(Dual<T> a, Dual<T> b) {
  return {a.v * b.v, a.d * b.v + a.v * b.d};
}
template <class Tr>
ATTZOO_ALWAYS_INLINE Entry<Tr> multiply(Entry<Tr> a, Entry<Tr> b) {
  return {a.v * b.v, a.whole && b.whole, a.d * b.v + a.v * b.d, either(a.trace, b.trace)};
}
template <class T>
ATTZOO_ALWAYS_INLINE Real<T> divide(Real<T> a, Real<T> b) {
  return a.v / b.v;
}
template <class T>
ATTZOO_ALWAYS_INLINE Dual<T> divide(Dual<T> a, Dual<T> b) {
  const T quotient = a.v / b.v;
  return {quotient, (a.d - quotient * b.d) / b.v};
}
template <class Tr>
ATTZOO_ALWAYS_INLINE Entry<Tr> divide(Entry<Tr> a, Entry<Tr> b) {
  const double q = a.v / b.v, whole = b.v == 0 ? 0 : std::trunc(q);
  const bool both = a.whole && b.whole;
  return {both ? whole : q, both, both ? 0 : (a.d - q * b.d) / b.v, either(a.trace, b.trace)};
}
/// Of entries: like that of whole numbers, also of those that are not.
template <class Tr>
ATTZOO_ALWAYS_INLINE Entry<Tr> remainder(Entry<Tr> a, Entry<Tr> b) {
  const double times = b.v == 0 ? 0 : std::trunc(a.v / b.v);
  return {a.v - times * b.v, a.whole && b.whole, a.d - times * b.d, either(a.trace, b.trace)};
}

#define ATTZOO_LANE_OPERATOR(op, function, Function, most)                    \
  template <class A, class B>                                                 \
  requires LanePair<A, B> ATTZOO_ALWAYS_INLINE auto operator op(A a, B b) {   \
    if constexpr (Integers<A, B>) {                                           \
      constexpr int64_t kMost = most(kMostOf<Lifted<A>>, kMostOf<Lifted<B>>); \
      return on_integers<kMost>(lift(a), lift(b), Function());                \
    } else {                                                                  \
      using M = Meet<A, B>;                                                   \
      return function(as<M>(lift(a)), as<M>(lift(b)));                        \
    }                                                                         \
  }
ATTZOO_LANE_OPERATOR(+, add, Add, saturating_add)
ATTZOO_LANE_OPERATOR(-, subtract, Subtract, saturating_add)
ATTZOO_LANE_OPERATOR(*, multiply, Multiply, saturating_multiply)
#undef ATTZOO_LANE_OPERATOR

template <class A, class B>
requires LanePair<A, B> ATTZOO_ALWAYS_INLINE auto operator/(A a, B b) {
  if constexpr (Integers<A, B>) {
    using X = Lifted<A>;
    using Y = Lifted<B>;
    // The lowest number divided by -1 is larger by one than any.
    constexpr int64_t kMost = kMostOf<X> == kMostInt ? kMostInt + 1 : kMostOf<X>;
    using Result = Integer<kMost, TraceOf<X, Y>>;
    return Result{static_cast<typename Result::Value>(Division<X, Y>(lift(a), lift(b)).quotient()),
                  either(lift(a).trace, lift(b).trace)};
  } else {
    using M = Meet<A, B>;
    if constexpr (Number<B> && LaneTraits<M>::kNarrow) {
      // The reciprocal is computed once for a whole tile; a score may be off by a rounding.
      const float reciprocal = 1 / static_cast<float>(b);
      return multiply(as<M>(a), M(reciprocal));
    } else {
      return divide(as<M>(lift(a)), as<M>(lift(b)));
    }
  }
}
template <class A, class B>
requires LanePair<A, B> ATTZOO_ALWAYS_INLINE auto operator%(A a, B b) {
  using X = Lifted<A>;
  using Y = Lifted<B>;
  if constexpr (Integers<A, B>) {
    constexpr int64_t kMost = kMostOf<X>;
    using Result = Integer<kMost, TraceOf<X, Y>>;
    return Result{static_cast<typename Result::Value>(Division<X, Y>(lift(a), lift(b)).remainder()),
                  either(lift(a).trace, lift(b).trace)};
  } else {
    static_assert(LaneTraits<Meet<A, B>>::kEntry,
                  "attzoo: % is for whole numbers; write x - floor(x / y) * y");
    using M = Meet<A, B>;
    return remainder(as<M>(lift(a)), as<M>(lift(b)));
  }
}

#define ATTZOO_LANE_BITS(op)                                                                  \
  template <class A, class B>                                                                 \
  requires LanePair<A, B> && Integers<A, B> ATTZOO_ALWAYS_INLINE auto operator op(A a, B b) { \
    using X = Lifted<A>;                                                                      \
    using Y = Lifted<B>;                                                                      \
    constexpr bool narrow = kLarger<X, Y> <= kMostInt;                                        \
    return on_integers < narrow                                                               \
               ? kMostInt                                                                     \
               : kAny > (lift(a), lift(b),                                                    \
                         [](auto x, auto y) ATTZOO_INLINE_LAMBDA { return x op y; });         \
  }
ATTZOO_LANE_BITS(&)
ATTZOO_LANE_BITS(|)
ATTZOO_LANE_BITS(^)
#undef ATTZOO_LANE_BITS
/// By a count outside of [0, 63]: 0, or the sign.
template <class A, class B>
requires LanePair<A, B> && Integers<A, B> ATTZOO_ALWAYS_INLINE auto operator<<(A a, B b) {
  return on_integers<kAny>(lift(a), lift(b), [](uint64_t x, uint64_t n) ATTZOO_INLINE_LAMBDA {
    return n < 64 ? x << (n & 63) : 0;
  });
}
template <class A, class B>
requires LanePair<A, B> && Integers<A, B> ATTZOO_ALWAYS_INLINE auto operator>>(A a, B b) {
  const auto wide =
      on_integers<kAny>(lift(a), lift(b), [](uint64_t x, uint64_t n) ATTZOO_INLINE_LAMBDA {
        return static_cast<uint64_t>(static_cast<int64_t>(x) >> (n < 64 ? n : 63));
      });
  using Result = Integer<kMostOf<Lifted<A>>, TraceOf<Lifted<A>, Lifted<B>>>;
  return Result{static_cast<typename Result::Value>(wide.v), wide.trace};
}

#define ATTZOO_LANE_COMPARISON(op)                                                                 \
  template <class A, class B>                                                                      \
  requires LanePair<A, B> ATTZOO_ALWAYS_INLINE Truth operator op(A a, B b) {                       \
    if constexpr (Integers<A, B>) {                                                                \
      using V = std::conditional_t<(kLarger<Lifted<A>, Lifted<B>> <= kMostInt), int32_t, int64_t>; \
      return {static_cast<V>(lift(a).v) op static_cast<V>(lift(b).v)};                             \
    } else {                                                                                       \
      using M = Meet<A, B>;                                                                        \
      return {as<M>(lift(a)).v op as<M>(lift(b)).v};                                               \
    }                                                                                              \
  }
ATTZOO_LANE_COMPARISON(<)
ATTZOO_LANE_COMPARISON(<=)
ATTZOO_LANE_COMPARISON(>)
ATTZOO_LANE_COMPARISON(>=)
ATTZOO_LANE_COMPARISON(==)
ATTZOO_LANE_COMPARISON(!=)
#undef ATTZOO_LANE_COMPARISON

// Both sides are computed, as of tensors; a branch would keep the loop from vectorising.
template <class A>
ATTZOO_ALWAYS_INLINE int holds(A a) {
  return lift(a).v != 0;
}
template <class A, class B>
requires LanePair<A, B> ATTZOO_ALWAYS_INLINE Truth operator&&(A a, B b) {
  return {holds(a) & holds(b)};
}
template <class A, class B>
requires LanePair<A, B> ATTZOO_ALWAYS_INLINE Truth operator||(A a, B b) {
  return {holds(a) | holds(b)};
}
template <Lane A>
ATTZOO_ALWAYS_INLINE Truth operator!(A a) {
  return {!holds(a)};
}

template <Lane A>
ATTZOO_ALWAYS_INLINE auto operator-(A a) {
  if constexpr (LaneTraits<A>::kInteger) {
    return negative(a);
  } else if constexpr (LaneTraits<A>::kEntry) {
    return A{-a.v, a.whole, -a.d, a.trace};
  } else if constexpr (LaneTraits<A>::kDual) {
    return A{-a.v, -a.d};
  } else {
    return A{-a.v};
  }
}
template <Lane A>
ATTZOO_ALWAYS_INLINE A operator+(A a) {
  return a;
}

// ---- functions ----------------------------------------------------------------------------------
// min, max, abs, clamp, where, floor and relu of whole numbers are whole; all others are floating.

/// condition ? x : y by bits: the compiler makes a branch of the other form where one side is cheap
/// to leave out, and the loop is scalar then.
template <class T>
ATTZOO_ALWAYS_INLINE T select(bool condition, T x, T y) {
  using U = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  const U mask = U{0} - static_cast<U>(condition);
  return __builtin_bit_cast(T,
                            (__builtin_bit_cast(U, x) & mask) | (__builtin_bit_cast(U, y) & ~mask));
}

/// `condition ? a : b`, which C++ cannot overload.
template <class C, class A, class B>
requires LaneTriple<C, A, B> ATTZOO_ALWAYS_INLINE auto where(C truth, A a, B b) {
  const bool condition = holds(truth);
  if constexpr (Integers<A, B>) {
    using X = Lifted<A>;
    using Y = Lifted<B>;
    return on_integers<kLarger<X, Y>>(lift(a), lift(b),
                                      [condition](auto x, auto y)
                                          ATTZOO_INLINE_LAMBDA { return select(condition, x, y); });
  } else {
    using M = Meet<A, B>;
    const M x = as<M>(lift(a)), y = as<M>(lift(b));
    if constexpr (LaneTraits<M>::kEntry) {
      return M{select(condition, x.v, y.v), x.whole && y.whole, select(condition, x.d, y.d),
               either(x.trace, y.trace)};
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
    return kernel::where(kLess ? b < a : b > a, b, a);
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
ATTZOO_ALWAYS_INLINE A relu(A a) {
  if constexpr (requires { a.d; }) a.d = a.v > 0 ? a.d : 0;
  a.v = a.v > 0 ? a.v : 0;
  return a;
}
template <Lane A>
ATTZOO_ALWAYS_INLINE A floor(A a) {
  if constexpr (!LaneTraits<A>::kInteger) a.v = std::floor(a.v);
  if constexpr (requires { a.d; }) a.d = 0;
  return a;
}
/// x between low and high, both included; high where they are the wrong way round.
template <class A, class Low, class High>
requires LaneTriple<A, Low, High> ATTZOO_ALWAYS_INLINE auto clamp(A x, Low low, High high) {
  const auto raised = kernel::where(lift(x) < low, low, x);
  return kernel::where(raised > high, high, raised);
}

#define ATTZOO_LANE_FUNCTION(name, value, derivative)                                              \
  template <class T>                                                                               \
  ATTZOO_ALWAYS_INLINE Real<T> name(Real<T> a) {                                                   \
    const T x = a.v;                                                                               \
    return value;                                                                                  \
  }                                                                                                \
  template <class T>                                                                               \
  ATTZOO_ALWAYS_INLINE Dual<T> name(Dual<T> a) {                                                   \
    const T x = a.v, y = value;                                                                    \
    return {y, a.d * static_cast<T>(derivative)};                                                  \
  }                                                                                                \
  template <Lane A>                                                                                \
  requires(LaneTraits<A>::kInteger || LaneTraits<A>::kEntry) ATTZOO_ALWAYS_INLINE auto name(A a) { \
    return name(as<Floating<A>>(a));                                                               \
  }
ATTZOO_LANE_FUNCTION(exp, kernel::exp(x), y)
ATTZOO_LANE_FUNCTION(exp2, kernel::exp2(x), y* kLn2)
ATTZOO_LANE_FUNCTION(tanh, kernel::tanh(x), 1 - y * y)
ATTZOO_LANE_FUNCTION(sigmoid, (1 + kernel::tanh(x / 2)) / 2, y*(1 - y))
ATTZOO_LANE_FUNCTION(log, std::log(x), 1 / x)
ATTZOO_LANE_FUNCTION(log2, std::log2(x), 1 / (x * kLn2))
ATTZOO_LANE_FUNCTION(sqrt, std::sqrt(x), 1 / (2 * y))
ATTZOO_LANE_FUNCTION(sin, std::sin(x), std::cos(x))
ATTZOO_LANE_FUNCTION(cos, std::cos(x), -std::sin(x))
ATTZOO_LANE_FUNCTION(erf, std::erf(x), 1.1283791670955126 * std::exp(-x * x))  // 2 / sqrt(pi)
#undef ATTZOO_LANE_FUNCTION

template <class T>
ATTZOO_ALWAYS_INLINE Real<T> power(Real<T> a, Real<T> b) {
  return std::pow(a.v, b.v);
}
/// Derivatives at the borders as ATen's: x^0 has none by x, 0^y none by y >= 0.
template <class T>
ATTZOO_ALWAYS_INLINE Dual<T> power(Dual<T> a, Dual<T> b) {
  const T y = std::pow(a.v, b.v);
  const T by_base = b.v == 0 ? 0 : b.v * std::pow(a.v, b.v - 1);
  const T by_exponent = b.d == 0 || (a.v == 0 && b.v >= 0) ? 0 : y * std::log(a.v);
  return {y, a.d * by_base + b.d * by_exponent};
}
template <class A, class B>
requires LanePair<A, B> ATTZOO_ALWAYS_INLINE auto pow(A a, B b) {
  if constexpr (Integers<A, B>) {
    return power(Real<double>(lift(a)), Real<double>(lift(b)));
  } else {
    using M = Floating<Meet<A, B>>;
    return power(as<M>(lift(a)), as<M>(lift(b)));
  }
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
    using Trace =
        std::conditional_t<(std::is_same_v<typename LaneTraits<Lifted<I>>::Trace, Traced> || ...),
                           Traced, Untraced>;
    int d = 0;
    int32_t place = 0;
    ((place += clamped(lift(index), size[d]) * stride[d], ++d), ...);
    Entry<Trace> e{data[place], whole};
    if constexpr (std::is_same_v<Trace, Traced>) {
      Lookup* const lookup = lookup_of(lift(index)...);
      if (gradient >= 0 && lookup->seen++ == lookup->wanted) {
        e.d = 1;
        lookup->place = gradient + place;
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
  template <class A, class... More>
  static ATTZOO_ALWAYS_INLINE Lookup* lookup_of(const A& a, const More&... more) {
    if constexpr (std::is_same_v<typename LaneTraits<A>::Trace, Traced>) {
      return a.trace.lookup;
    } else {
      return lookup_of(more...);
    }
  }
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
