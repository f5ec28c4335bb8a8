#pragma once
/// \file
/// Pairs of features turned by an angle.

#include <attzoo/kernel/half.hpp>

#include <cstdint>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

ATTZOO_ALWAYS_INLINE double widened(double x) { return x; }
ATTZOO_ALWAYS_INLINE float widened(float x) { return x; }
ATTZOO_ALWAYS_INLINE float widened(Float16 x) { return half_to_float(x.bits); }
ATTZOO_ALWAYS_INLINE float widened(BFloat16 x) {
  return __builtin_bit_cast(float, uint32_t{x.bits} << 16);
}
ATTZOO_ALWAYS_INLINE void round_to(double x, double& to) { to = x; }
ATTZOO_ALWAYS_INLINE void round_to(float x, float& to) { to = x; }
ATTZOO_ALWAYS_INLINE void round_to(float x, Float16& to) { to.bits = float_to_half(x); }
ATTZOO_ALWAYS_INLINE void round_to(float x, BFloat16& to) { to.bits = float_to_bfloat16(x); }

/// Turns `pairs` pairs (a, b) of a row: (a cos - b sin, b cos + a sin). Pair i has its a at
/// i * kStep and its b `apart` behind. A is float or double, the type of T's arithmetic.
template <int64_t kStep, class T, class A>
ATTZOO_ALWAYS_INLINE void rotate_pairs(const T* x, T* y, const A* cos, const A* sin, int64_t pairs,
                                       int64_t apart) {
  const auto turn = [&](int64_t i) ATTZOO_INLINE_LAMBDA {
    const A a = widened(x[i * kStep]), b = widened(x[i * kStep + apart]);
    round_to(a * cos[i] - b * sin[i], y[i * kStep]);
    round_to(b * cos[i] + a * sin[i], y[i * kStep + apart]);
  };
  constexpr int64_t kTogether = 16;  // a length that compilers vectorise
  int64_t i = 0;
  for (; i + kTogether <= pairs; i += kTogether) {
    ATTZOO_LANES
    for (int64_t j = 0; j < kTogether; ++j) turn(i + j);
  }
  for (; i < pairs; ++i) turn(i);
}

/// Turns the first 2 * pairs features of a row of D, (2i, 2i + 1) or, by `halves`, (i, i + pairs);
/// the others pass. y is x, or does not overlap it.
template <class T, class A>
void rotate_row(const T* x, T* y, const A* cos, const A* sin, int64_t pairs, int64_t D,
                bool halves) {
  if (halves) {
    rotate_pairs<1>(x, y, cos, sin, pairs, pairs);
  } else {
    rotate_pairs<2>(x, y, cos, sin, pairs, 1);
  }
  for (int64_t i = 2 * pairs; i < D; ++i) y[i] = x[i];
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
