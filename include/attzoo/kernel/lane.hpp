#pragma once
/// \file
/// What a modifier's callable is handed in the fused kernels, in the place of numbers: `Real` (one
/// score), `Dual` (a score and its derivative, by which a callable differentiates itself) and
/// `Index` (b, h, q or kv). Literals of any arithmetic type take the score's precision, so that
/// `20.0 * s` stays in float32, and all operations vectorise. The third form, whole tensors, is
/// core/tensor_lane.hpp.

#include <attzoo/kernel/math.hpp>

#include <cmath>
#include <concepts>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class T>
concept Number = std::is_arithmetic_v<T>;

template <class T>
struct Real;

/// An index; with integers it stays one, with floating numbers it becomes a Real.
template <class T>
struct Index {
  int v;
  operator int() const { return v; }  // NOLINT: an index is an int

#define ATTZOO_INDEX_OPERATOR(op)                                     \
  friend Index operator op(Index a, Index b) { return {a.v op b.v}; } \
  template <std::integral I>                                          \
  friend Index operator op(Index a, I b) {                            \
    return {a.v op static_cast<int>(b)};                              \
  }                                                                   \
  template <std::integral I>                                          \
  friend Index operator op(I a, Index b) {                            \
    return {static_cast<int>(a) op b.v};                              \
  }
  ATTZOO_INDEX_OPERATOR(+)
  ATTZOO_INDEX_OPERATOR(-)
  ATTZOO_INDEX_OPERATOR(*)
  ATTZOO_INDEX_OPERATOR(/)
  ATTZOO_INDEX_OPERATOR(%)
  ATTZOO_INDEX_OPERATOR(&)
  ATTZOO_INDEX_OPERATOR(|)
  ATTZOO_INDEX_OPERATOR(^)
  ATTZOO_INDEX_OPERATOR(>>)
  ATTZOO_INDEX_OPERATOR(<<)
#undef ATTZOO_INDEX_OPERATOR
#define ATTZOO_INDEX_COMPARISON(op)                                \
  friend bool operator op(Index a, Index b) { return a.v op b.v; } \
  template <Number N>                                              \
  friend bool operator op(Index a, N b) {                          \
    return a.v op b;                                               \
  }                                                                \
  template <Number N>                                              \
  friend bool operator op(N a, Index b) {                          \
    return a op b.v;                                               \
  }
  ATTZOO_INDEX_COMPARISON(<)
  ATTZOO_INDEX_COMPARISON(<=)
  ATTZOO_INDEX_COMPARISON(>)
  ATTZOO_INDEX_COMPARISON(>=)
  ATTZOO_INDEX_COMPARISON(==)
  ATTZOO_INDEX_COMPARISON(!=)
#undef ATTZOO_INDEX_COMPARISON
#define ATTZOO_INDEX_WITH_REAL(op)           \
  template <std::floating_point F>           \
  friend Real<T> operator op(Index a, F b) { \
    return Real<T>(a) op Real<T>(b);         \
  }                                          \
  template <std::floating_point F>           \
  friend Real<T> operator op(F a, Index b) { \
    return Real<T>(a) op Real<T>(b);         \
  }
  ATTZOO_INDEX_WITH_REAL(+)
  ATTZOO_INDEX_WITH_REAL(-)
  ATTZOO_INDEX_WITH_REAL(*)
  ATTZOO_INDEX_WITH_REAL(/)
#undef ATTZOO_INDEX_WITH_REAL
  friend Index operator-(Index a) { return {-a.v}; }
  friend Index abs(Index a) { return {a.v < 0 ? -a.v : a.v}; }
  friend Index min(Index a, Index b) { return a.v < b.v ? a : b; }
  friend Index max(Index a, Index b) { return a.v > b.v ? a : b; }
  friend Index where(bool condition, Index a, Index b) { return condition ? a : b; }
};

/// One score, or any number computed from it.
template <class T>
struct Real {
  T v;
  template <Number N>
  Real(N n) : v(static_cast<T>(n)) {}           // NOLINT: literals mix with scores
  Real(Index<T> i) : v(static_cast<T>(i.v)) {}  // NOLINT: so do indices

  friend Real operator+(Real a, Real b) { return a.v + b.v; }
  friend Real operator-(Real a, Real b) { return a.v - b.v; }
  friend Real operator*(Real a, Real b) { return a.v * b.v; }
  friend Real operator/(Real a, Real b) { return a.v / b.v; }
  template <Number N>
  friend Real operator/(Real a, N n) {  // the reciprocal is computed once for a whole tile
    return a.v * (1 / static_cast<T>(n));
  }
  friend Real operator-(Real a) { return -a.v; }
  friend bool operator<(Real a, Real b) { return a.v < b.v; }
  friend bool operator<=(Real a, Real b) { return a.v <= b.v; }
  friend bool operator>(Real a, Real b) { return a.v > b.v; }
  friend bool operator>=(Real a, Real b) { return a.v >= b.v; }
  friend bool operator==(Real a, Real b) { return a.v == b.v; }
  friend bool operator!=(Real a, Real b) { return a.v != b.v; }
  friend Real abs(Real a) { return a.v < 0 ? -a.v : a.v; }
  friend Real exp(Real a) { return kernel::exp(a.v); }
  friend Real tanh(Real a) { return kernel::tanh(a.v); }
  friend Real sigmoid(Real a) { return (1 + kernel::tanh(a.v / 2)) / 2; }
  friend Real log(Real a) { return std::log(a.v); }
  friend Real sqrt(Real a) { return std::sqrt(a.v); }
  friend Real min(Real a, Real b) { return b.v < a.v ? b : a; }
  friend Real max(Real a, Real b) { return b.v > a.v ? b : a; }
  friend Real where(bool condition, Real a, Real b) { return condition ? a : b; }
};

/// A score and its derivative with respect to the score before modification.
template <class T>
struct Dual {
  T v, d;
  Dual(T value, T derivative) : v(value), d(derivative) {}
  template <Number N>
  Dual(N n) : v(static_cast<T>(n)), d(0) {}           // NOLINT: a constant
  Dual(Index<T> i) : v(static_cast<T>(i.v)), d(0) {}  // NOLINT
  Dual(Real<T> r) : v(r.v), d(0) {}                   // NOLINT

  friend Dual operator+(Dual a, Dual b) { return {a.v + b.v, a.d + b.d}; }
  friend Dual operator-(Dual a, Dual b) { return {a.v - b.v, a.d - b.d}; }
  friend Dual operator*(Dual a, Dual b) { return {a.v * b.v, a.d * b.v + a.v * b.d}; }
  friend Dual operator/(Dual a, Dual b) {
    const T quotient = a.v / b.v;
    return {quotient, (a.d - quotient * b.d) / b.v};
  }
  template <Number N>
  friend Dual operator/(Dual a, N n) {
    const T reciprocal = 1 / static_cast<T>(n);
    return {a.v * reciprocal, a.d * reciprocal};
  }
  friend Dual operator-(Dual a) { return {-a.v, -a.d}; }
  friend bool operator<(Dual a, Dual b) { return a.v < b.v; }
  friend bool operator<=(Dual a, Dual b) { return a.v <= b.v; }
  friend bool operator>(Dual a, Dual b) { return a.v > b.v; }
  friend bool operator>=(Dual a, Dual b) { return a.v >= b.v; }
  friend bool operator==(Dual a, Dual b) { return a.v == b.v; }
  friend bool operator!=(Dual a, Dual b) { return a.v != b.v; }
  friend Dual abs(Dual a) {
    const T sign = a.v < 0 ? T(-1) : (a.v > 0 ? T(1) : T(0));  // the subgradient 0 at 0, as ATen
    return {a.v < 0 ? -a.v : a.v, sign * a.d};
  }
  friend Dual exp(Dual a) {
    const T e = kernel::exp(a.v);
    return {e, e * a.d};
  }
  friend Dual tanh(Dual a) {
    const T t = kernel::tanh(a.v);
    return {t, (1 - t * t) * a.d};
  }
  friend Dual sigmoid(Dual a) {
    const T s = (1 + kernel::tanh(a.v / 2)) / 2;
    return {s, s * (1 - s) * a.d};
  }
  friend Dual log(Dual a) { return {std::log(a.v), a.d / a.v}; }
  friend Dual sqrt(Dual a) {
    const T r = std::sqrt(a.v);
    return {r, a.d / (2 * r)};
  }
  // Equal arguments share the derivative, as in ATen.
  friend Dual min(Dual a, Dual b) {
    return {b.v < a.v ? b.v : a.v, a.v == b.v ? (a.d + b.d) / 2 : (b.v < a.v ? b.d : a.d)};
  }
  friend Dual max(Dual a, Dual b) {
    return {b.v > a.v ? b.v : a.v, a.v == b.v ? (a.d + b.d) / 2 : (b.v > a.v ? b.d : a.d)};
  }
  friend Dual where(bool condition, Dual a, Dual b) {
    return {condition ? a.v : b.v, condition ? a.d : b.d};
  }
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
