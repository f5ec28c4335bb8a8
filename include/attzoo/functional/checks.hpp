#pragma once
/// \file
/// What all functional forms of attention ask of their arguments.

#include <attzoo/config.hpp>
#include <attzoo/core/checks.hpp>

namespace attzoo::core {

/// Tensors of fewer elements have sizes in bytes that 64 bits hold.
inline constexpr int64_t kMostElements = int64_t{1} << 59;

/// What else than [B, H, ., .] of one floating dtype check_qkv() takes.
enum class QkvForm { kHeads, kAnyRank, kMaybeQuantized };

/// Throws c10::Error unless q [..., L, D], k [..., S, D] and v [..., S, Dv] are floating tensors of
/// one dtype on one device, D > 0; with kAnyRank of two sizes or more, with kMaybeQuantized k and v
/// of quantize_rows(), too.
ATTZOO_API void check_qkv(const char* who, const torch::Tensor& q, const torch::Tensor& k,
                          const torch::Tensor& v, QkvForm form = QkvForm::kHeads);

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

/// Throws c10::Error unless rows of 8 bits are as quantize_rows() makes them.
inline void check_quantized(const char* who, const char* name, const torch::Tensor& q,
                            const torch::Tensor& k, const torch::Tensor& t) {
  TORCH_CHECK_TYPE(t.scalar_type() == k.scalar_type() && q.scalar_type() != torch::kFloat64, who,
                   ": ", name,
                   " of quantize_rows() needs k and v of one dtype, and a q of float32, ",
                   "bfloat16 or float16, got q ", q.scalar_type(), ", k ", k.scalar_type(), ", ",
                   name, " ", t.scalar_type());
  TORCH_CHECK_VALUE(t.dim() == 0 || (features_of(t) > 0 && t.stride(-1) == 1), who, ": ", name,
                    " of quantize_rows() must have rows [D + 4] without gaps, got ", t.sizes(),
                    " of strides ", t.strides());
}

ATTZOO_API void check_qkv(const char* who, const torch::Tensor& q, const torch::Tensor& k,
                          const torch::Tensor& v, QkvForm form) {
  const bool any_rank = form == QkvForm::kAnyRank;
  const std::pair<const char*, const torch::Tensor&> tensors[] = {{"q", q}, {"k", k}, {"v", v}};
  check_dense(k, who, "k");
  const bool quantized = form == QkvForm::kMaybeQuantized && is_quantized(k);
  for (const auto& [name, t] : tensors) {
    if (quantized && *name != 'q') {
      check_dense(t, who, name);
      check_quantized(who, name, q, k, t);
    } else {
      check_floating(t, who, name);
      TORCH_CHECK_TYPE(t.scalar_type() == q.scalar_type(), who, ": ", name, " must have q's dtype ",
                       q.scalar_type(), ", got ", t.scalar_type());
    }
    TORCH_CHECK_VALUE(t.device() == q.device(), who, ": ", name, " must be on q's device ",
                      q.device(), ", got ", t.device());
    TORCH_CHECK_VALUE(any_rank ? t.dim() >= 2 : t.dim() == 4, who, ": ", name,
                      any_rank ? " must have rank 2 or more" : " must have shape [B, H, L or S, D]",
                      ", got ", t.sizes());
  }
  TORCH_CHECK_VALUE(q.size(-1) == (quantized ? features_of(k) : k.size(-1)) && q.size(-1) > 0, who,
                    ": q and k must have the same last size > 0",
                    quantized ? ", k and its scales" : "", ", got q ", q.sizes(), ", k ",
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
