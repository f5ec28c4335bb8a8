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

#ifndef ATTZOO_COMPILED
#include <attzoo/functional/checks.ipp>
#endif
