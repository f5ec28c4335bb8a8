#pragma once
/// \file
/// What all functional forms of attention ask of their arguments.

#include <attzoo/config.hpp>
#include <attzoo/core/checks.hpp>

namespace attzoo::core {

/// Tensors of fewer elements have sizes in bytes that 64 bits hold.
inline constexpr int64_t kMostElements = int64_t{1} << 59;

/// Throws c10::Error unless q [..., L, D], k [..., S, D] and v [..., S, Dv] are floating tensors of
/// one dtype on one device, D > 0. They are [B, H, ., .], with `any_rank` of two sizes or more.
ATTZOO_API void check_qkv(const char* who, const torch::Tensor& q, const torch::Tensor& k,
                          const torch::Tensor& v, bool any_rank = false);

/// Throws c10::ValueError unless 0 <= dropout <= 1.
ATTZOO_API void check_dropout(std::string_view who, double dropout);

/// Whether numbers of q's compute dtype hold a scale and, with room to spare, scores.
ATTZOO_API bool is_valid_scale(double scale, const torch::Tensor& q);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/core/attention/reference.hpp>

#include <cmath>
#include <utility>

namespace attzoo::core {

ATTZOO_API void check_qkv(const char* who, const torch::Tensor& q, const torch::Tensor& k,
                          const torch::Tensor& v, bool any_rank) {
  const std::pair<const char*, const torch::Tensor&> tensors[] = {{"q", q}, {"k", k}, {"v", v}};
  for (const auto& [name, t] : tensors) {
    check_floating(t, who, name);
    TORCH_CHECK_TYPE(t.scalar_type() == q.scalar_type(), who, ": ", name, " must have q's dtype ",
                     q.scalar_type(), ", got ", t.scalar_type());
    TORCH_CHECK_VALUE(t.device() == q.device(), who, ": ", name, " must be on q's device ",
                      q.device(), ", got ", t.device());
    TORCH_CHECK_VALUE(any_rank ? t.dim() >= 2 : t.dim() == 4, who, ": ", name,
                      any_rank ? " must have rank 2 or more" : " must have shape [B, H, L or S, D]",
                      ", got ", t.sizes());
  }
  TORCH_CHECK_VALUE(q.size(-1) == k.size(-1) && q.size(-1) > 0, who,
                    ": q and k must have the same last size > 0, got q ", q.sizes(), ", k ",
                    k.sizes());
  TORCH_CHECK_VALUE(v.size(-2) == k.size(-2), who, ": v must have the length of k, got v ",
                    v.sizes(), ", k ", k.sizes());
  TORCH_CHECK_VALUE(
      any_rank || product_at_most({q.size(0), q.size(1), q.size(2), v.size(3)}, kMostElements), who,
      ": the output [B, H, L, Dv] has too many elements for 64-bit numbers, from q ", q.sizes(),
      ", v ", v.sizes());
}

ATTZOO_API void check_dropout(std::string_view who, double dropout) {
  TORCH_CHECK_VALUE(dropout >= 0 && dropout <= 1, who, ": dropout must be in [0, 1], got ",
                    dropout);
}

ATTZOO_API bool is_valid_scale(double scale, const torch::Tensor& q) {
  return std::abs(scale) <= (compute_dtype(q) == torch::kFloat64 ? 1e300 : 1e30);
}

}  // namespace attzoo::core

#endif
