#pragma once
/// \file Numbers of PTX that C++ lacks: half, bfloat16, packed pairs, flushed subnormals, rounding.

#include <cmath>
#include <limits>

#include "ptx_decode.hpp"

namespace attzoo::ptx {

inline float to_float(Half h) {
  const uint32_t magnitude = (h.bits & 0x7fffu) << 13, sign = (h.bits & 0x8000u) << 16;
  uint32_t bits = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  if ((h.bits & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
  return std::bit_cast<float>(bits | sign);
}

inline float to_float(Bfloat b) {
  return std::bit_cast<float>(static_cast<uint32_t>(b.bits) << 16);
}

/// The double rounded to so many bits of mantissa and a least exponent, by the mode in force.
inline double round_to(double value, int mantissa, int least_exponent) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), least_exponent);
  return std::ldexp(std::nearbyint(std::ldexp(value, mantissa - exponent)), exponent - mantissa);
}

/// The bits of a number of so many mantissa and 5 or 8 exponent bits.
inline uint16_t small_bits(double value, int mantissa, int least_exponent) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const uint16_t infinity = static_cast<uint16_t>((3 - 2 * least_exponent) << mantissa);
  if (std::isnan(value)) return 0x7fff;
  const double r = std::fabs(round_to(value, mantissa, least_exponent));
  if (r >= std::ldexp(1, 2 - least_exponent)) {
    const bool down = std::fegetround() == FE_TOWARDZERO && std::isfinite(value);
    return static_cast<uint16_t>(sign | (infinity - down));
  }
  if (r < std::ldexp(1, least_exponent)) {
    return static_cast<uint16_t>(sign | static_cast<int>(std::ldexp(r, mantissa - least_exponent)));
  }
  const int exponent = std::ilogb(r);
  const int fraction = static_cast<int>(std::ldexp(r, mantissa - exponent)) - (1 << mantissa);
  return static_cast<uint16_t>(sign | (exponent - least_exponent + 1) << mantissa | fraction);
}

template <class T>
T to_small(double value);
template <>
inline Half to_small<Half>(double value) {
  return {small_bits(value, 10, -14)};
}
template <>
inline Bfloat to_small<Bfloat>(double value) {
  const float f = static_cast<float>(value);
  if (std::fegetround() != FE_TONEAREST || static_cast<double>(f) != value) {
    return {small_bits(value, 7, -126)};
  }
  const uint32_t u = std::bit_cast<uint32_t>(f);
  return {static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1)) >> 16)};
}

/// Zero with the sign of a subnormal number, else the number.
inline float flush(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

/// F with subnormal sources and results flushed.
template <class F>
struct Flushed {
  template <class... A>
  float operator()(A... a) const {
    return flush(F{}(flush(a)...));
  }
};

/// F of floats for numbers of 16 bits.
template <class F, class T>
struct Lifted {
  template <class... A>
  T operator()(A... a) const {
    return to_small<T>(F{}(to_float(a)...));
  }
};

/// F of T for two numbers in one register U.
template <class F, class T, class U>
struct Packed {
  template <class... A>
  U operator()(A... a) const {
    using Pair = std::array<T, 2>;
    const auto one = [](size_t i, auto... p) { return F{}(std::bit_cast<Pair>(p)[i]...); };
    return std::bit_cast<U>(Pair{one(0, a...), one(1, a...)});
  }
};

/// Executes the inner operation under its rounding mode and clamps its result to [0, 1] if wanted.
inline void adjusted(Warp& w, const Operation& o, uint32_t mask) {
  static constexpr int kModes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
  std::fesetround(kModes[o.small[0]]);
  o.inner(w, o, mask);
  std::fesetround(FE_TONEAREST);
  const auto clamp = [&](auto zero) {
    using T = decltype(zero);
    each_lane(mask, [&](int l) {
      const T v = get<T>(w.registers + o.r[0], l);
      put<T>(w.registers + o.r[0], l, v > 0 ? std::min(v, T{1}) : T{0});
    });
  };
  if (o.small[1] == 4) clamp(0.0f);
  if (o.small[1] == 8) clamp(0.0);
}

/// Lets .rz, .rm, .rp and .sat of an instruction with the operation's result in r[0] hold.
inline bool adjust(Decoding& d) {
  const int mode = d.has("rz") ? 1 : d.has("rm") ? 2 : d.has("rp") ? 3 : 0;
  const bool clamps = d.has("sat") && (d.type() == "f32" || d.type() == "f64");
  if (mode == 0 && !clamps) return true;
  d.op.small[0] = static_cast<uint8_t>(mode);
  d.op.small[1] = static_cast<uint8_t>(clamps ? type_bytes(d.type()) : 0);
  d.op.inner = d.op.execute;
  d.op.execute = &adjusted;
  return true;
}

template <int N, class F>
bool on_floats(Decoding& d, F f) {
  const std::string& t = d.type();
  const bool ftz = d.has("ftz");
  bool known = false;
  if (t == "f32") known = ftz ? same_type<N, float>(d, Flushed<F>{}) : same_type<N, float>(d, f);
  if (t == "f64") known = same_type<N, double>(d, f);
  if (t == "f16") known = same_type<N, Half>(d, Lifted<F, Half>{});
  if (t == "bf16") known = same_type<N, Bfloat>(d, Lifted<F, Bfloat>{});
  if (t == "f16x2") known = same_type<N, uint32_t>(d, Packed<Lifted<F, Half>, Half, uint32_t>{});
  if (t == "bf16x2") {
    known = same_type<N, uint32_t>(d, Packed<Lifted<F, Bfloat>, Bfloat, uint32_t>{});
  }
  if (t == "f32x2") known = same_type<N, uint64_t>(d, Packed<F, float, uint64_t>{});
  return known && adjust(d);
}

}  // namespace attzoo::ptx
