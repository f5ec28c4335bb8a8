#pragma once
/// \file
/// The lengths of an attention problem, and what is asked of tensors before they are used. `who` is
/// the mechanism or function that an error names, `name` the argument.

#include <attzoo/config.hpp>

#include <torch/types.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace attzoo::core {

/// The four lengths of one attention problem.
struct Shape {
  int64_t B = 0, H = 0, L = 0, S = 0;
};

/// float64, float32, bfloat16 or float16: what attention computes with.
ATTZOO_API bool is_supported_float(torch::ScalarType t);

/// Half types are computed in float32, as ATen does, and rounded once at the end.
inline torch::ScalarType compute_dtype(const torch::Tensor& t) {
  return t.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
}

/// Why t is not a strided tensor whose numbers can be read, for an error; empty if it is one.
/// Named are undefined, nested, sparse and meta tensors, and those whose storage is missing or too
/// small for their sizes and strides.
ATTZOO_API std::string storage_problem(const torch::Tensor& t);

/// Throws c10::ValueError for what has no numbers at strides: storage_problem() says why.
ATTZOO_API void check_dense(const torch::Tensor& t, std::string_view who, std::string_view name);

/// The same, and c10::TypeError for another dtype than is_supported_float().
ATTZOO_API void check_floating(const torch::Tensor& t, std::string_view who, std::string_view name);

/// The numbers of a tensor as they lie at its strides: for whoever reads them through a pointer.
/// A real tensor may be a view of others with its sign pending (the imaginary part of a conjugate),
/// or a gradient that is known to be zero or sparse.
ATTZOO_API torch::Tensor plain(const torch::Tensor& t);

/// Whether the product of sizes >= 0 is at most `most`, without an overflow on the way.
ATTZOO_API bool product_at_most(torch::IntArrayRef sizes, int64_t most);

/// A mask [L, S], [B, L, S] or [B, H, L, S] as a view of rank 4.
ATTZOO_API torch::Tensor mask_rank4(const torch::Tensor& mask);

/// The one rule for masks: bool or floating, rank 2, 3 or 4, broadcastable to [B, H, L, S], on
/// `device`. Throws c10::TypeError for another dtype, else c10::ValueError.
ATTZOO_API void check_mask(const torch::Tensor& mask, const Shape& n, const torch::Device& device,
                           std::string_view who);

/// The one rule for masks over keys: bool [B, S], on `device`. Throws as check_mask() does.
ATTZOO_API void check_key_padding(const torch::Tensor& mask, const Shape& n,
                                  const torch::Device& device, std::string_view who);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/checks.ipp>
#endif
