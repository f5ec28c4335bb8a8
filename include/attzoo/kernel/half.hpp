#pragma once
/// \file
/// 16-bit and 8-bit floats as bits.

#include <attzoo/kernel/compiler.hpp>

#include <cstdint>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Never by arithmetic on subnormal floats: programs compiled with -ffast-math flush them to zero.
ATTZOO_ALWAYS_INLINE float half_to_float(uint32_t h) {
  const uint32_t magnitude = h & 0x7fff;
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  const uint32_t normal = (magnitude << 13) + (magnitude < 0x7c00 ? 112u << 23 : 224u << 23);
  const uint32_t bits = magnitude < 0x400 ? __builtin_bit_cast(uint32_t, subnormal) : normal;
  return __builtin_bit_cast(float, bits | (h & 0x8000) << 16);
}

/// Rounds to the nearest, ties to even; a NaN stays one.
ATTZOO_ALWAYS_INLINE uint16_t float_to_half(float f) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, f);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x47800000) {  // 65536 and above: infinity, or NaN
    return static_cast<uint16_t>(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00));
  }
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 lines the bits up
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

ATTZOO_ALWAYS_INLINE uint16_t float_to_bfloat16(float f) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, f);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/// e4m3fn: four bits of exponent, three of mantissa, no infinity. NaN becomes 480.
ATTZOO_ALWAYS_INLINE float float8_to_float(uint32_t f) {
  const uint32_t magnitude = f & 0x7f;
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f;
  const uint32_t normal = (magnitude << 20) + (120u << 23);
  const uint32_t bits = magnitude < 8 ? __builtin_bit_cast(uint32_t, subnormal) : normal;
  return __builtin_bit_cast(float, bits | (f & 0x80) << 24);
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
