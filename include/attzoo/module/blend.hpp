#pragma once
/// \file
/// Several attentions of the same queries as one: rounds of hashing, families of blocks.

#include <attzoo/functional/result.hpp>
#include <attzoo/kernel/compiler.hpp>

namespace attzoo::core {

/// The lse of all parts' keys together, log(sum(exp(lse))): [B, H, L]. Where all are -inf it is
/// -inf, with gradients of 0.
ATTZOO_API torch::Tensor joint_lse(const std::vector<AttentionResult>& parts);

/// The sum of the parts' outputs and weights, each times its share: `shares` [parts, ..., L]
/// broadcasts to [parts, B, H, L]. Dtypes are those of the parts; `lse` is passed on.
ATTZOO_API AttentionResult blend(const std::vector<AttentionResult>& parts,
                                 const torch::Tensor& shares, const torch::Tensor& lse);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/module/blend.ipp>
#endif
