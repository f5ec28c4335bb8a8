#pragma once
/// \file
/// Products over the pairs that attend, for whole tensors. What a hidden pair holds has no effect,
/// not even an infinity or what is not a number, although 0 times these is not 0. Differentiable
/// any number of times: each derivative is one of these two again.

#include <attzoo/config.hpp>

#include <torch/types.h>

namespace attzoo::core {

/// q_i . k_j where `visible`, a bool tensor that broadcasts to [B, H, L, S], says so, else 0.
/// q [B, H, L, D], k [B, Hkv, S, D] -> [B, H, L, S].
ATTZOO_API torch::Tensor pair_products(const torch::Tensor& q, const torch::Tensor& k,
                                       const torch::Tensor& visible);

/// The sum of w_ij v_j over the visible j. w [B, H, L, S] is 0 elsewhere, but where all of a row is
/// not a number; v [B, Hkv, S, E] -> [B, H, L, E].
ATTZOO_API torch::Tensor sum_over_pairs(const torch::Tensor& w, const torch::Tensor& v,
                                        const torch::Tensor& visible);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/pair_products.ipp>
#endif
