#pragma once
/// \file
/// The operators of lane.hpp.

#include <attzoo/kernel/modifier/lane_list.hpp>
#include <attzoo/kernel/modifier/lane_types.hpp>

#include <cmath>
#include <cstdint>
#include <type_traits>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// condition ? x : y by bits: the compiler makes a branch of the other form where one side is cheap
/// to leave out, and the loop is scalar then.
template <class T>
ATTZOO_ALWAYS_INLINE T select(bool condition, T x, T y) {
  using U = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  const U mask = U{0} - static_cast<U>(condition);
  return __builtin_bit_cast(T,
                            (__builtin_bit_cast(U, x) & mask) | (__builtin_bit_cast(U, y) & ~mask));
}

/// All bits set, which the optimiser does not know.
inline uint64_t all_bits = ~uint64_t{0};

/// A double as an operand whose own bits count, so that comparisons fall the same way everywhere: a
/// product before a sum would be contracted with it, rounded once instead of twice, where the CPU
/// has such an instruction. Scores in float may be.
ATTZOO_ALWAYS_INLINE float settled(float x) { return x; }
ATTZOO_ALWAYS_INLINE double settled(double x) {
  return __builtin_bit_cast(double, __builtin_bit_cast(uint64_t, x) & all_bits);
}

// ---- arithmetic of whole numbers ----------------------------------------------------------------

/// f(a, b) on two Integers, computed in a type that holds a result of magnitude kMost; unsigned
/// where it may wrap around.
template <int64_t kMost, class A, class B, class F>
ATTZOO_ALWAYS_INLINE auto on_integers(A a, B b, F f) {
  using Result = Integer<kMost, TraceOf<A, B>>;
  using V = typename Result::Value;
  using U = std::conditional_t<kMost == kAny, uint64_t, V>;
  return Result{
      static_cast<V>(f(static_cast<U>(static_cast<V>(a.v)), static_cast<U>(static_cast<V>(b.v))))};
}
template <class A>
inline constexpr int64_t kMostOf = LaneTraits<A>::kMost;
template <class A, class B>
inline constexpr int64_t kLarger = kMostOf<A> > kMostOf<B> ? kMostOf<A> : kMostOf<B>;
/// Of a number: at least an index's, which is what an assignment keeps to (assign()).
constexpr int64_t as_number(int64_t most) { return most > kMostIndex ? most : kMostIndex; }
template <int64_t M, class Tr>
ATTZOO_ALWAYS_INLINE auto number(Integer<M, Tr> i) {
  return Integer<as_number(M), Tr>{i.v};
}
template <Lane A>
ATTZOO_ALWAYS_INLINE A number(A a) {
  return a;
}

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
  constexpr int64_t kMost = kMostOf<A> == kMostInt ? kMostInt + 1 : as_number(kMostOf<A>);
  return on_integers<kMost>(Integer<0>{0}, a, Subtract());
}

template <class M, class A>
ATTZOO_ALWAYS_INLINE M as(A a) {
  if constexpr (std::is_same_v<M, A>) {
    return a;
  } else if constexpr (LaneTraits<M>::kEntry) {
    if constexpr (LaneTraits<A>::kInteger) {
      return {to_floating<double>(a), true};
    } else {
      return {a.v, a.whole, a.d};
    }
  } else {
    return M(a);
  }
}

// ---- operators ----------------------------------------------------------------------------------

/// What a change d becomes in a function of slope `by`: nothing remains nothing, also where the
/// slope is infinite or NaN. So a constant has no part in a derivative, and what where() left out
/// none either.
template <class T>
ATTZOO_ALWAYS_INLINE T change(T d, T by) {
  return select(d == 0, T{0}, d * by);
}

template <class T>
ATTZOO_ALWAYS_INLINE Real<T> add(Real<T> a, Real<T> b) {
  return settled(a.v) + settled(b.v);
}
template <class T, class Tr>
ATTZOO_ALWAYS_INLINE Dual<T, Tr> add(Dual<T, Tr> a, Dual<T, Tr> b) {
  return {settled(a.v) + settled(b.v), a.d + b.d};
}
template <class Tr>
ATTZOO_ALWAYS_INLINE Entry<Tr> add(Entry<Tr> a, Entry<Tr> b) {
  return {settled(a.v) + settled(b.v), a.whole && b.whole, a.d + b.d};
}
template <class T>
ATTZOO_ALWAYS_INLINE Real<T> subtract(Real<T> a, Real<T> b) {
  return settled(a.v) - settled(b.v);
}
template <class T, class Tr>
ATTZOO_ALWAYS_INLINE Dual<T, Tr> subtract(Dual<T, Tr> a, Dual<T, Tr> b) {
  return {settled(a.v) - settled(b.v), a.d - b.d};
}
template <class Tr>
ATTZOO_ALWAYS_INLINE Entry<Tr> subtract(Entry<Tr> a, Entry<Tr> b) {
  return {settled(a.v) - settled(b.v), a.whole && b.whole, a.d - b.d};
}
template <class T>
ATTZOO_ALWAYS_INLINE Real<T> multiply(Real<T> a, Real<T> b) {
  return a.v * b.v;
}
template <class T, class Tr>
ATTZOO_ALWAYS_INLINE Dual<T, Tr> multiply(Dual<T, Tr> a, Dual<T, Tr> b) {
  return {a.v * b.v, change(a.d, b.v) + change(b.d, a.v)};
}
template <class Tr>
ATTZOO_ALWAYS_INLINE Entry<Tr> multiply(Entry<Tr> a, Entry<Tr> b) {
  return {a.v * b.v, a.whole && b.whole, change(a.d, b.v) + change(b.d, a.v)};
}
/// The derivative of a / b, their quotient.
template <class T>
ATTZOO_ALWAYS_INLINE T change_of_quotient(T quotient, T da, T b, T db) {
  const T d = da - change(db, quotient);
  return select(d == 0, T{0}, d / b);
}
template <class T>
ATTZOO_ALWAYS_INLINE Real<T> divide(Real<T> a, Real<T> b) {
  return a.v / b.v;
}
template <class T, class Tr>
ATTZOO_ALWAYS_INLINE Dual<T, Tr> divide(Dual<T, Tr> a, Dual<T, Tr> b) {
  const T quotient = a.v / b.v;
  return {quotient, change_of_quotient(quotient, a.d, b.v, b.d)};
}
template <class Tr>
ATTZOO_ALWAYS_INLINE Entry<Tr> divide(Entry<Tr> a, Entry<Tr> b) {
  const double q = a.v / b.v, whole = b.v == 0 ? 0 : std::trunc(q);
  const bool both = a.whole && b.whole;
  return {both ? whole : q, both, both ? 0 : change_of_quotient(q, a.d, b.v, b.d)};
}
/// Of entries: like that of whole numbers, also of those that are not.
template <class Tr>
ATTZOO_ALWAYS_INLINE Entry<Tr> remainder(Entry<Tr> a, Entry<Tr> b) {
  const double times = b.v == 0 ? 0 : std::trunc(a.v / b.v);
  return {a.v - settled(times * b.v), a.whole && b.whole, a.d - change(b.d, times)};
}

#define ATTZOO_LANE_OPERATOR(op, function, Function, most)                    \
  template <class A, class B>                                                 \
  requires LanePair<A, B> ATTZOO_ALWAYS_INLINE auto operator op(A a, B b) {   \
    if constexpr (Integers<A, B>) {                                           \
      constexpr int64_t kMost = most(kMostOf<Lifted<A>>, kMostOf<Lifted<B>>); \
      return on_integers<as_number(kMost)>(lift(a), lift(b), Function());     \
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
    constexpr int64_t kMost = kMostOf<X> == kMostInt ? kMostInt + 1 : as_number(kMostOf<X>);
    using Result = Integer<kMost, TraceOf<X, Y>>;
    return Result{static_cast<typename Result::Value>(Division<X, Y>(lift(a), lift(b)).quotient())};
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
    using Result = Integer<as_number(kMostOf<X>), TraceOf<X, Y>>;
    return Result{
        static_cast<typename Result::Value>(Division<X, Y>(lift(a), lift(b)).remainder())};
  } else {
    static_assert(LaneTraits<Meet<A, B>>::kEntry,
                  "attzoo: % is for whole numbers; write x - floor(x / y) * y");
    using M = Meet<A, B>;
    return remainder(as<M>(lift(a)), as<M>(lift(b)));
  }
}

/// Of truth values a truth value.
#define ATTZOO_LANE_BIT(op, _)                                                                \
  template <class A, class B>                                                                 \
  requires LanePair<A, B> && Integers<A, B> ATTZOO_ALWAYS_INLINE auto operator op(A a, B b) { \
    using X = Lifted<A>;                                                                      \
    using Y = Lifted<B>;                                                                      \
    constexpr int64_t kMost = kIsTruth<X> && kIsTruth<Y>  ? 1                                 \
                              : kLarger<X, Y> <= kMostInt ? kMostInt                          \
                                                          : kAny;                             \
    return on_integers<kMost>(lift(a), lift(b),                                               \
                              [](auto x, auto y) ATTZOO_INLINE_LAMBDA { return x op y; });    \
  }
ATTZOO_LANE_BITS(ATTZOO_LANE_BIT)
#undef ATTZOO_LANE_BIT
/// Of a truth value its opposite, as of bool tensors; of a number that of its bits.
template <Lane A>
ATTZOO_ALWAYS_INLINE auto operator~(A a) {
  static_assert(LaneTraits<A>::kInteger,
                "attzoo: ~ is for truth values and whole numbers of b, h, q and kv: write !x");
  if constexpr (kIsTruth<A>) {
    return A{a.v ^ 1};
  } else {
    constexpr int64_t kMost =
        kMostOf<A> == kMostInt ? kMostInt : as_number(saturating_add(kMostOf<A>, 1));
    return on_integers<kMost>(a, a, [](auto x, auto) ATTZOO_INLINE_LAMBDA { return ~x; });
  }
}
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
  using Result = Integer<as_number(kMostOf<Lifted<A>>), TraceOf<Lifted<A>, Lifted<B>>>;
  return Result{static_cast<typename Result::Value>(wide.v)};
}

#define ATTZOO_LANE_COMPARISON(op, _)                                                              \
  template <class A, class B>                                                                      \
  requires LanePair<A, B> ATTZOO_ALWAYS_INLINE TruthOf<Lifted<A>, Lifted<B>>                       \
  operator op(A a, B b) {                                                                          \
    if constexpr (Integers<A, B>) {                                                                \
      using V = std::conditional_t<(kLarger<Lifted<A>, Lifted<B>> <= kMostInt), int32_t, int64_t>; \
      return {static_cast<V>(lift(a).v) op static_cast<V>(lift(b).v)};                             \
    } else {                                                                                       \
      using M = Meet<A, B>;                                                                        \
      return {as<M>(lift(a)).v op as<M>(lift(b)).v};                                               \
    }                                                                                              \
  }
ATTZOO_LANE_COMPARISONS(ATTZOO_LANE_COMPARISON)
#undef ATTZOO_LANE_COMPARISON

// Both sides are computed, as of tensors; a branch would keep the loop from vectorising.
template <class A>
ATTZOO_ALWAYS_INLINE int holds(A a) {
  return lift(a).v != 0;
}
template <class A, class B>
requires LanePair<A, B> ATTZOO_ALWAYS_INLINE TruthOf<Lifted<A>, Lifted<B>>
operator&&(A a, B b) { return {holds(a) & holds(b)}; }
template <class A, class B>
requires LanePair<A, B> ATTZOO_ALWAYS_INLINE TruthOf<Lifted<A>, Lifted<B>>
operator||(A a, B b) { return {holds(a) | holds(b)}; }
template <Lane A>
ATTZOO_ALWAYS_INLINE TruthOf<A> operator!(A a) {
  return {!holds(a)};
}

template <Lane A>
ATTZOO_ALWAYS_INLINE auto operator-(A a) {
  if constexpr (LaneTraits<A>::kInteger) {
    return negative(a);
  } else if constexpr (LaneTraits<A>::kEntry) {
    return A{-a.v, a.whole, -a.d};
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

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
