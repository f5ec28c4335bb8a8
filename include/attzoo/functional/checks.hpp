#pragma once
/// \file
/// What all functional forms of attention ask of their arguments.

#include <attzoo/config.hpp>
#include <attzoo/core/checks.hpp>

namespace attzoo::core {

/// Tensors of fewer elements have sizes in bytes that 64 bits hold.
inline constexpr int64_t kMostElements = int64_t{1} << 59;

/// Floating tensors of one dtype on one device, and a probability. Throws c10::Error.
ATTZOO_API void check_arguments(const char* who, const torch::Tensor& q, const torch::Tensor& k,
                                const torch::Tensor& v, double dropout);

/// Whether numbers of q's compute dtype hold a scale and, with room to spare, scores.
ATTZOO_API bool is_valid_scale(double scale, const torch::Tensor& q);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/functional/checks.ipp>
#endif
