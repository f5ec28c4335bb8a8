#pragma once
/// \file
/// A tensor as the kernels see it: a pointer and strides.

#include <attzoo/kernel/compiler.hpp>

#include <cstdint>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

enum class DType { kFloat64, kFloat32, kBFloat16, kFloat16, kInt8, kFloat8 };

/// In bytes.
constexpr int size_of(DType dtype) {
  return dtype == DType::kFloat64                           ? 8
         : dtype == DType::kFloat32                         ? 4
         : dtype == DType::kInt8 || dtype == DType::kFloat8 ? 1
                                                            : 2;
}

/// A tensor [B, H, N, features] with any strides, in elements. Rows of 8-bit numbers (e4m3fn of
/// floats) lie without gaps, and behind each, at any address, the float32 that multiplies them.
struct View {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t b = 0, h = 0, n = 0, d = 0;

  bool operator==(const View&) const = default;
  /// Where the rows of one head begin.
  int64_t head(int64_t ib, int64_t ih) const { return ib * b + ih * h; }
};

/// Whether a tensor has the type to compute in, so that its rows can be used where they are.
template <class T>
bool is_native(const View& x) {
  return x.dtype == (sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32);
}

/// Features are padded to a multiple of this in the accumulators and in scratch memory.
inline constexpr int kPad = 16;
constexpr int padded(int n) { return (n + kPad - 1) / kPad * kPad; }

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
