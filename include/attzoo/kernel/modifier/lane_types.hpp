#pragma once
/// \file
/// The types of lane.hpp, and which of them two meet in.

#include <attzoo/kernel/compiler.hpp>

#include <concepts>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class T>
concept Number = std::is_arithmetic_v<T>;

// ---- whole numbers ------------------------------------------------------------------------------

/// Whether the entries of tables that a callable reads are noted: in a trace all that is computed
/// of its arguments is Traced, truth values too, so that every index of a table is.
struct Untraced {};
struct Traced {};

/// One of the entries that a callable reads has the derivative 1: the one after `wanted` others.
struct Lookup {
  int wanted = 0;
  int seen = 0;        // entries read so far of tables that learn
  int64_t place = -1;  // of the wanted one in their gradients

  /// That of the trace which runs on this thread.
  static ATTZOO_ALWAYS_INLINE Lookup& current() {
    static thread_local Lookup lookup;
    return lookup;
  }
};

inline constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
inline constexpr int64_t kMostInt = int64_t{1} << 31;  // the magnitude of the lowest int

constexpr int64_t saturating_add(int64_t a, int64_t b) { return a > kAny - b ? kAny : a + b; }
constexpr int64_t saturating_multiply(int64_t a, int64_t b) {
  return b != 0 && a > kAny / b ? kAny : a * b;
}

template <class T>
struct LaneTraits;

// Lanes of other types are assigned by assign(), as by +=.

/// A whole number of magnitude kMost or less; kAny: any, and sums wrap around.
template <int64_t kMost, class Trace = Untraced>
struct Integer {
  using Value = std::conditional_t<(kMost <= kMostInt), int32_t, int64_t>;
  Value v;

  ATTZOO_ALWAYS_INLINE explicit operator bool() const { return v != 0; }
  template <class B>
  ATTZOO_ALWAYS_INLINE Integer& operator=(const B& b);
};

/// b, h, q and kv: differences of two still fit in 32 bits.
inline constexpr int64_t kMostIndex = (int64_t{1} << 30) - 1;
using Index = Integer<kMostIndex>;
using TracedIndex = Integer<kMostIndex, Traced>;

/// An entry of a table, and in a trace its derivative.
template <class Trace = Untraced>
struct Entry {
  double v;
  bool whole;
  double d = 0;

  ATTZOO_ALWAYS_INLINE explicit operator bool() const { return v != 0; }
  template <class B>
  ATTZOO_ALWAYS_INLINE Entry& operator=(const B& b);
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
  template <class B>
  requires(LaneTraits<B>::kDual) ATTZOO_ALWAYS_INLINE Real& operator=(const B& b);
};

/// A score and its derivative with respect to the score before modification, or in a trace to the
/// wanted entry of a table.
template <class T, class Trace = Untraced>
struct Dual {
  T v, d;
  ATTZOO_ALWAYS_INLINE Dual(T value, T derivative) : v(value), d(derivative) {}
  template <Number N>
  ATTZOO_ALWAYS_INLINE Dual(N n) : v(static_cast<T>(n)), d(0) {}  // NOLINT: a constant
  template <int64_t M, class Tr>
  ATTZOO_ALWAYS_INLINE Dual(Integer<M, Tr> i) : v(to_floating<T>(i)), d(0) {}  // NOLINT
  template <class Tr>
  ATTZOO_ALWAYS_INLINE Dual(Entry<Tr> e)  // NOLINT
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
template <class T, class Tr>
struct LaneTraits<Dual<T, Tr>> {
  static constexpr bool kIs = true, kInteger = false, kEntry = false, kDual = true,
                        kNarrow = sizeof(T) == 4;
  using Trace = Tr;
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

/// Of what is computed of these lanes.
template <class... A>
using TraceOf = std::conditional_t<(std::is_same_v<typename LaneTraits<A>::Trace, Traced> || ...),
                                   Traced, Untraced>;

/// A truth value that comes of these: 0 or 1. Numbers that are computed of it are none.
template <class... A>
using TruthOf = Integer<1, TraceOf<A...>>;
template <class A>
inline constexpr bool kIsTruth = false;
template <class Trace>
inline constexpr bool kIsTruth<Integer<1, Trace>> = true;

template <class A, class B, class Trace>
constexpr auto meet() {
  using X = LaneTraits<A>;
  using Y = LaneTraits<B>;
  using T = std::conditional_t<X::kNarrow || Y::kNarrow, float, double>;
  if constexpr ((X::kInteger || X::kEntry) && (Y::kInteger || Y::kEntry)) {
    return std::type_identity<Entry<Trace>>();
  } else if constexpr (X::kDual || Y::kDual || std::is_same_v<Trace, Traced>) {
    return std::type_identity<Dual<T, Trace>>();
  } else {
    return std::type_identity<Real<T>>();
  }
}
/// Of anything but two Integers; C decides which one is taken, or nothing.
template <class A, class B, class... C>
using Meet = typename decltype(meet<Lifted<A>, Lifted<B>,
                                    TraceOf<Lifted<A>, Lifted<B>, Lifted<C>...>>())::type;
template <class A, class B>
concept Integers = LaneTraits<Lifted<A>>::kInteger && LaneTraits<Lifted<B>>::kInteger;
/// A lane as a floating number.
template <class A>
using Floating = Meet<A, Real<double>>;

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
