#pragma once
/// \file
/// Keys and values of 8 bits: rows of integers or short floats, each with a scale of its own.

#include <attzoo/config.hpp>

#include <torch/types.h>

#include <cstdint>

namespace attzoo::core {

inline constexpr int64_t kScaleBytes = 4;

/// What quantize_rows() (functional/quantized_rows.hpp) makes numbers of.
inline bool is_eight_bits(torch::ScalarType dtype) {
  return dtype == torch::kInt8 || dtype == torch::kFloat8_e4m3fn;
}
/// Whether t has its rows.
inline bool is_quantized(const torch::Tensor& t) {
  return t.scalar_type() == torch::kInt8 || t.scalar_type() == torch::kUInt8;
}
/// Features of a row.
inline int64_t features_of(const torch::Tensor& t) {
  return t.size(-1) - (is_quantized(t) ? kScaleBytes : 0);
}

/// quantize_rows() of a floating x [..., D > 0].
ATTZOO_API torch::Tensor quantized(const torch::Tensor& x, torch::ScalarType dtype);
/// The same by ATen's operators, of a float32 x on any device, with `most` as the largest number.
ATTZOO_API torch::Tensor quantize_by_tensors(const torch::Tensor& x, torch::ScalarType dtype,
                                             float most);
/// dequantize_rows() of t if it is quantized, else t as it is.
ATTZOO_API torch::Tensor dequantized(const torch::Tensor& t, torch::ScalarType dtype);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/checks.hpp>

#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace attzoo::core {

/// Rows whose largest number is smaller are 0: their scale would have no inverse.
inline constexpr float kLeastLargest = 1e-30f;

/// One row on the CPU, where calls of ATen's operators would take longer than the work.
template <class Number>
void quantize_row(const float* x, int64_t D, float most, char* to) {
  // As bits, whose order is that of sizes, also of what is not finite, also with -ffast-math.
  constexpr uint32_t kInfinite = 0x7f800000, kNaN = 0x7fc00000;
  uint32_t bits = 0;
  for (int64_t d = 0; d < D; ++d)
    bits = std::max(bits, std::bit_cast<uint32_t>(x[d]) & ~(1u << 31));
  const bool finite = bits < kInfinite;
  const float largest = finite ? std::bit_cast<float>(bits) : 0.0f;
  const float scale = largest >= kLeastLargest ? largest / most : 0.0f;
  const float inverse = scale > 0 ? 1 / scale : 0.0f;
  for (int64_t d = 0; d < D; ++d) {
    const float y = finite ? std::clamp(x[d] * inverse, -most, most) : 0.0f;
    if constexpr (std::is_same_v<Number, int8_t>) {
      to[d] = static_cast<char>(std::nearbyint(y));
    } else {
      to[d] = static_cast<char>(Number(y).x);
    }
  }
  bits = finite ? std::bit_cast<uint32_t>(scale) : kNaN;
  std::memcpy(to + D, &bits, sizeof bits);
}

ATTZOO_API torch::Tensor quantize_by_tensors(const torch::Tensor& x, torch::ScalarType dtype,
                                             float most) {
  const auto largest = x.abs().amax(-1, /*keepdim=*/true);
  const auto finite = largest.isfinite();
  const auto scale =
      torch::where(largest >= kLeastLargest, largest / most, 0.0f)
          .masked_fill(finite.logical_not(), std::numeric_limits<float>::quiet_NaN());
  const auto inverse = torch::where(scale > 0, 1 / scale, 0.0f);
  const auto y = torch::where(finite, (x * inverse).clamp(-most, most), 0.0f);
  const auto stored = dtype == torch::kInt8 ? torch::kInt8 : torch::kUInt8;
  const auto numbers = dtype == torch::kInt8 ? y.round().to(dtype) : y.to(dtype).view(stored);
  return torch::cat({numbers, scale.contiguous().view(stored)}, -1);
}

ATTZOO_API torch::Tensor quantized(const torch::Tensor& x, torch::ScalarType dtype) {
  const bool integers = dtype == torch::kInt8;
  const float most = integers ? 127 : 448;
  const auto from = plain(x.detach()).to(torch::kFloat32).contiguous();
  if (!from.device().is_cpu()) return quantize_by_tensors(from, dtype, most);
  const int64_t D = x.size(-1), row = D + kScaleBytes;
  auto sizes = x.sizes().vec();
  sizes.back() = row;
  auto rows = torch::empty(sizes, integers ? torch::kInt8 : torch::kUInt8);
  const float* numbers = from.const_data_ptr<float>();
  char* to = static_cast<char*>(rows.mutable_data_ptr());
  at::parallel_for(0, from.numel() / D, 1 + (1 << 15) / D, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (integers) {
        quantize_row<int8_t>(numbers + i * D, D, most, to + i * row);
      } else {
        quantize_row<c10::Float8_e4m3fn>(numbers + i * D, D, most, to + i * row);
      }
    }
  });
  return rows;
}

ATTZOO_API torch::Tensor dequantized(const torch::Tensor& t, torch::ScalarType dtype) {
  if (!is_quantized(t)) return t;
  const int64_t D = features_of(t);
  auto numbers = t.narrow(-1, 0, D);
  if (t.scalar_type() == torch::kUInt8) {
    numbers = numbers.contiguous().view(torch::kFloat8_e4m3fn);
  }
  const auto scale = t.narrow(-1, D, kScaleBytes).contiguous().view(torch::kFloat32);
  return (numbers.to(torch::kFloat32) * scale).to(dtype);
}

}  // namespace attzoo::core

#endif
