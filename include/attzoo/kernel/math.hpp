#pragma once
/// \file
/// Branch-free exponentials on scalars, in a form that compilers vectorise in a loop of fixed
/// length at plain -O2: no calls, no branches, no tables. 2^x is split into 2^n 2^f with f in
/// [-1/2, 1/2]; 2^f is a minimax polynomial.

#include <attzoo/kernel/compiler.hpp>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// What the exponential needs to know of a floating type. The limits are variables on purpose: of a
/// constant the optimiser would make a second path with a result of its own, and duplicate the
/// polynomial for it in every vectorised loop.
template <class T>
struct Exp2;

template <>
struct Exp2<float> {
  using Bits = int32_t;
  static constexpr int kMantissa = 23;
  // 1.5 * 2^23 + 127: adding it rounds to an integer and leaves that, biased, in the lowest bits.
  static constexpr float kRound = 12583039.0f;
  static inline float smallest = -127.0f;   // from here on down the result is exactly 0
  static inline float negligible = -80.0f;  // of a weight next to the largest, in any sum
  static inline float largest = 127.0f;     // beyond, only the power of two grows
  static inline float tanh_is_one = 7.9f;
  // (2^f - 1) / f, highest power first; relative error of 2^f: 2e-9
  static constexpr float kCoefficients[] = {0.000154614447f, 0.00134004282f, 0.00961805668f,
                                            0.0555032723f,   0.240226509f,   0.693147207f};
  // The same to 3e-6, for what is rounded to bfloat16.
  static constexpr float kFewCoefficients[] = {0.00958285357f, 0.0559064279f, 0.240240986f,
                                               0.693124193f};
};

template <>
struct Exp2<double> {
  using Bits = int64_t;
  static constexpr int kMantissa = 52;
  static constexpr double kRound = 6755399441056767.0;  // 1.5 * 2^52 + 1023
  static inline double smallest = -1023.0;
  static inline double negligible = -900.0;
  static inline double largest = 1023.0;
  static inline double tanh_is_one = 19.1;
  // relative error of 2^f: 4e-20, below rounding
  static constexpr double kCoefficients[] = {
      2.57335683087568912e-11, 4.45667534104920588e-10, 7.05489438634834804e-9,
      1.0178051192960649e-7,   1.3215486815999977e-6,   0.0000152527338562934664,
      0.000154035303933627553, 0.00133335581463903528,  0.00961812910762848305,
      0.055504108664821699,    0.240226506959100712,    0.693147180559945308};
};

/// log2(1 + x) / x for x in [0, 1], highest power first.
template <class T>
struct Log2OfOneAnd;

template <>
struct Log2OfOneAnd<float> {  // relative error 3e-8
  static constexpr float kCoefficients[] = {0.00754918278f, -0.0425670646f, 0.112856198f,
                                            -0.197118974f,  0.275641414f,   -0.358408473f,
                                            0.480692957f,   -0.721340208f,  1.442695f};
};

template <>
struct Log2OfOneAnd<double> {  // relative error 9e-18
  static constexpr double kCoefficients[] = {
      0.0000361276410884712921, -0.000416662109681738532, 0.00228193657420484773,
      -0.007937938593754891,    0.0198461576753938206,    -0.0384093567867019622,
      0.0608335907035605736,    -0.0827937092018001675,   0.101392363587417570,
      -0.116530492236539486,    0.130009194136729613,     -0.143988260963428140,
      0.160245637106798408,     -0.180329036985183478,    0.206098446039474720,
      -0.240449108727906068,    0.288539004851854483,     -0.360673760117246636,
      0.480898346961226610,     -0.721347520444469934,    1.44269504088896339};
};

inline constexpr double kLog2e = 1.4426950408889634;
inline constexpr double kLn2 = 0.6931471805599453;

/// 2^n and 2^f - 1 of x = n + f, for x within the limits.
template <class T>
struct SplitExp2 {
  T power, fraction;
};
template <class T>
ATTZOO_ALWAYS_INLINE SplitExp2<T> split_exp2(T x) {
  using E = Exp2<T>;
  const T rounded = x + E::kRound;
  const auto bits = __builtin_bit_cast(typename E::Bits, rounded);
#if !defined(__clang__) && (defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__))
  // In a callable of a program that is compiled with -ffast-math, GCC would cancel the sum below.
  const auto whole = static_cast<int>(bits - __builtin_bit_cast(typename E::Bits, E::kRound));
  const T f = x - static_cast<T>(whole);
#else
  const T f = x - (rounded - E::kRound);
#endif
  const auto power = bits << E::kMantissa;
  T p = E::kCoefficients[0];
  for (std::size_t i = 1; i < sizeof(E::kCoefficients) / sizeof(T); ++i)
    p = p * f + E::kCoefficients[i];
  return {__builtin_bit_cast(T, power), p * f};
}

/// 2^x; 0 below the smallest normal number, a NaN stays one.
template <class T>
ATTZOO_ALWAYS_INLINE T exp2(T x) {
  using E = Exp2<T>;
  const T raised = x < E::smallest ? E::smallest : x;
  const T clamped = raised > E::largest ? E::largest : raised;
  const auto [power, fraction] = split_exp2(clamped);
  // What is left above the largest exponent overflows by itself: 2^127 * 2 * 2 ...
  const T above = x - clamped > 0 ? x - clamped : 0;
  return (1 + fraction) * power * (1 + above);  // nothing subnormal before the result
}

template <class T>
ATTZOO_ALWAYS_INLINE T exp(T x) {
  return kernel::exp2(x * static_cast<T>(kLog2e));
}

/// 1 / x for x in [1, 2^100], in float by Newton's iteration from a guess on the bits: a vector
/// division takes as long as thirty other operations.
ATTZOO_ALWAYS_INLINE float reciprocal(float x) {
  float y = __builtin_bit_cast(float, 0x7ef311c3 - __builtin_bit_cast(int32_t, x));
  y = y * (2 - x * y);
  y = y * (2 - x * y);
  return y * (2 - x * y);
}

/// tanh(x) = (e^2x - 1) / (e^2x + 1), from e^2x - 1 without cancellation.
ATTZOO_ALWAYS_INLINE double tanh(double x) {
  const double magnitude = x < 0 ? -x : x;
  const double limit = Exp2<double>::tanh_is_one;
  const auto [power, fraction] = split_exp2((magnitude > limit ? limit : magnitude) * 2 * kLog2e);
  const double e = fraction * power + (power - 1);
  const double t = e / (e + 2);
  return x < 0 ? -t : t;
}

/// x P(x^2) / Q(x^2), a minimax quotient with the relative error 6e-9: fewer operations than by an
/// exponential.
ATTZOO_ALWAYS_INLINE float tanh(float x) {
  const float limit = Exp2<float>::tanh_is_one;
  const float raised = x < -limit ? -limit : x;
  const float a = raised > limit ? limit : raised, y = a * a;
  const float p =
      (((1.54279626e-8f * y + 2.20232385e-5f) * y + 0.00357899166f) * y + 0.134506203f) * y + 1;
  const float q =
      (((8.59877615e-7f * y + 0.000342364993f) * y + 0.0261922366f) * y + 0.467839483f) * y + 1;
  return a * p * reciprocal(q);
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
