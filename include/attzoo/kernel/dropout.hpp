#pragma once
/// \file
/// Counter-based dropout: whether an attention weight is dropped depends only on
/// (seed, b, h, q, kv), so forward, backward, the weights on demand and the eager reference agree,
/// whatever the tiling and the number of threads.

#include <attzoo/kernel/compiler.hpp>

#include <cstdint>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// A 32-bit mix (multiply and xor-shift, two rounds) on any type with 64-bit integer semantics;
/// every step is wrapped to 32 bits by hand so that int64 tensors give the same bits as scalars.
template <class I>
I mix32(I x) {
  constexpr int64_t kWrap = 0xffffffff;
  x = x ^ (x >> 16);
  x = (x * int64_t{0x7feb352d}) & kWrap;
  x = x ^ (x >> 15);
  x = (x * int64_t{0x46ca68b5}) & kWrap;
  return x ^ (x >> 16);
}

/// The key of one query row, from the seed and the row's indices.
template <class I>
I dropout_row_key(uint64_t seed, I b, I h, I q) {
  constexpr int64_t kWrap = 0xffffffff;
  const int64_t low = static_cast<int64_t>(seed & 0xffffffffu);
  const int64_t high = static_cast<int64_t>(seed >> 32);
  I key = mix32((b + low) & kWrap);
  key = mix32((key + h + high) & kWrap);
  return mix32((key + q) & kWrap);
}

/// 32 uniform bits for one weight; it is kept when they are >= dropout_threshold(p).
template <class I>
I dropout_bits(I row_key, I kv) {
  return mix32((row_key ^ (kv * int64_t{0x1e3779b1})) & int64_t{0xffffffff});
}

inline int64_t dropout_threshold(double p) { return static_cast<int64_t>(p * 4294967296.0); }

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
