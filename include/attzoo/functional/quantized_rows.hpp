#pragma once
/// \file
/// Keys and values of 8 bits: rows of integers or short floats, each with a scale of its own.

#include <attzoo/config.hpp>

#include <torch/types.h>

namespace attzoo {

/// Rows of 8 bits, which attention() reads in the place of k and v, in a quarter of the memory of
/// float32: a row x [D] becomes D numbers x / s, rounded to the nearest, and behind them the four
/// bytes of its float32 scale s = max |x| / 127 (float8: / 448). Caches make them of their tokens:
/// `make_cache(batch, capacity, {.dtype = torch::kInt8})`.
///
/// \param x [..., D], D > 0, float64, float32, bfloat16 or float16
/// \param dtype torch::kInt8, or torch::kFloat8_e4m3fn, whose errors are larger but for numbers far
///   below their row's largest
/// \return [..., D + 4], contiguous: int8, or of float8 the bits, as uint8. A number that is not
///   finite makes its whole row NaN. No gradient flows.
///
/// Throws c10::Error for another rank, size or dtype. Example:
/// `auto o = attention(q, quantize_rows(k, torch::kInt8), quantize_rows(v, torch::kInt8)).output;`
ATTZOO_API torch::Tensor quantize_rows(const torch::Tensor& x, torch::ScalarType dtype);

/// The numbers again, in any dtype: rows [..., D + 4] of quantize_rows() -> [..., D]. Throws
/// c10::Error for what cannot be such rows.
ATTZOO_API torch::Tensor dequantize_rows(const torch::Tensor& rows,
                                         torch::ScalarType dtype = torch::kFloat32);

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/core/checks.hpp>
#include <attzoo/core/quantized_rows.hpp>

namespace attzoo {

ATTZOO_API torch::Tensor quantize_rows(const torch::Tensor& x, torch::ScalarType dtype) {
  core::check_floating(x, "quantize_rows", "x");
  TORCH_CHECK_VALUE(x.dim() > 0 && x.size(-1) > 0,
                    "quantize_rows: x must have shape [..., D > 0], got ", x.sizes());
  TORCH_CHECK_TYPE(core::is_eight_bits(dtype),
                   "quantize_rows: dtype must be int8 or float8_e4m3fn, got ", dtype);
  return core::quantized(x, dtype);
}

ATTZOO_API torch::Tensor dequantize_rows(const torch::Tensor& rows, torch::ScalarType dtype) {
  core::check_dense(rows, "dequantize_rows", "rows");
  TORCH_CHECK_TYPE(core::is_quantized(rows),
                   "dequantize_rows: rows must be int8, or uint8 of float8, got ",
                   rows.scalar_type());
  TORCH_CHECK_VALUE(rows.dim() > 0 && core::features_of(rows) > 0,
                    "dequantize_rows: rows must have shape [..., D + 4], got ", rows.sizes());
  return core::dequantized(rows, dtype);
}

}  // namespace attzoo

#endif
