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

#ifdef ATTZOO_DEFINE_CORE

namespace attzoo::core {

ATTZOO_API bool is_supported_float(torch::ScalarType t) {
  return t == torch::kFloat64 || t == torch::kFloat32 || t == torch::kBFloat16 || t == torch::kHalf;
}

ATTZOO_API std::string storage_problem(const torch::Tensor& t) {
  if (!t.defined()) return "an undefined tensor";
  if (t.is_nested()) return "a nested tensor";  // has no sizes()
  if (t.layout() != torch::kStrided) return c10::str("a tensor of the layout ", t.layout());
  if (t.is_meta()) return "a tensor on the meta device, which holds no numbers";
  if (!t.has_storage()) return c10::str("a tensor without a storage on ", t.device());
  if (t.numel() == 0 || t._is_zerotensor()) return {};
  int64_t last = t.storage_offset();  // the element that lies furthest in the storage
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  const auto needed = static_cast<uint64_t>(last + 1) * t.dtype().itemsize();
  if (t.storage().nbytes() < needed) {
    return c10::str("a tensor ", t.sizes(), " whose storage has ", t.storage().nbytes(),
                    " bytes of the ", needed, " that it needs");
  }
  return {};
}

ATTZOO_API void check_dense(const torch::Tensor& t, std::string_view who, std::string_view name) {
  const auto problem = storage_problem(t);
  TORCH_CHECK_VALUE(problem.empty(), who, ": ", name, " must be a dense tensor, got ", problem);
}

ATTZOO_API torch::Tensor plain(const torch::Tensor& t) {
  if (t.layout() != torch::kStrided) return t.to_dense();
  if (t._is_zerotensor()) return torch::zeros(t.sizes(), t.options());
  return t.is_neg() ? t.resolve_neg() : t;
}

ATTZOO_API bool product_at_most(torch::IntArrayRef sizes, int64_t most) {
  int64_t product = 1;
  for (const int64_t n : sizes) {
    if (n == 0) return true;
    if (product <= most) product = n > most / product ? most + 1 : product * n;
  }
  return product <= most;
}

ATTZOO_API void check_floating(const torch::Tensor& t, std::string_view who,
                               std::string_view name) {
  check_dense(t, who, name);
  TORCH_CHECK_TYPE(is_supported_float(t.scalar_type()), who, ": ", name,
                   " must be float64, float32, bfloat16 or float16, got ", t.scalar_type());
}

ATTZOO_API torch::Tensor mask_rank4(const torch::Tensor& mask) {
  return mask.dim() == 2   ? mask.unsqueeze(0).unsqueeze(0)
         : mask.dim() == 3 ? mask.unsqueeze(1)
                           : mask;
}

ATTZOO_API void check_mask(const torch::Tensor& mask, const Shape& n, const torch::Device& device,
                           std::string_view who) {
  check_dense(mask, who, "mask");
  TORCH_CHECK_TYPE(mask.scalar_type() == torch::kBool || is_supported_float(mask.scalar_type()),
                   who,
                   ": mask must be bool (true = attend) or floating (added to the scores), got ",
                   mask.scalar_type(), "; for a 0/1 mask pass mask.to(torch::kBool)");
  const auto fits = [&] {
    if (mask.dim() < 2 || mask.dim() > 4) return false;
    const auto m = mask_rank4(mask);
    const int64_t sizes[] = {n.B, n.H, n.L, n.S};
    for (int d = 0; d < 4; ++d) {
      if (m.size(d) != sizes[d] && m.size(d) != 1) return false;
    }
    return true;
  };
  TORCH_CHECK_VALUE(fits(), who,
                    ": mask must have shape [L, S], [B, L, S] or [B, H, L, S] with B=", n.B,
                    " H=", n.H, " L=", n.L, " S=", n.S, " (or 1 to broadcast), got ", mask.sizes(),
                    "; a mask over keys alone is passed as key_padding_mask, shape [B, S]");
  TORCH_CHECK_VALUE(mask.device() == device, who, ": mask must be on ", device, ", got ",
                    mask.device());
}

ATTZOO_API void check_key_padding(const torch::Tensor& mask, const Shape& n,
                                  const torch::Device& device, std::string_view who) {
  check_dense(mask, who, "key_padding_mask");
  TORCH_CHECK_TYPE(mask.scalar_type() == torch::kBool, who,
                   ": key_padding_mask must be bool (true = real token), got ", mask.scalar_type(),
                   "; where 1 is a real token pass key_padding_mask.to(torch::kBool), of 0 and "
                   "-inf key_padding_mask == 0");
  TORCH_CHECK_VALUE(mask.dim() == 2 && mask.size(0) == n.B && mask.size(1) == n.S, who,
                    ": key_padding_mask must have shape [B, S] = [", n.B, ", ", n.S, "], got ",
                    mask.sizes());
  TORCH_CHECK_VALUE(mask.device() == device, who, ": key_padding_mask must be on ", device,
                    ", got ", mask.device());
}

}  // namespace attzoo::core

#endif
