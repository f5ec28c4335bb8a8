#pragma once
/// \file
/// Several attentions of the same queries as one: rounds of hashing, families of blocks.

#include <attzoo/config.hpp>
#include <attzoo/functional/result.hpp>

namespace attzoo::core {

/// The softmax over all parts' keys together: what each part has of it, exp(lse) over their sum
/// [parts, B, H, L], and its lse [B, H, L]. Where no part has a key these are 0 and -inf, with
/// gradients of 0.
struct JointSoftmax {
  torch::Tensor shares, lse;
};
ATTZOO_API JointSoftmax join_softmaxes(const std::vector<AttentionResult>& parts);

/// The sum of the parts' outputs and weights, each times its share: `shares` [parts, ..., L]
/// broadcasts to [parts, B, H, L]. Dtypes are those of the parts; `lse` is passed on.
ATTZOO_API AttentionResult blend(const std::vector<AttentionResult>& parts,
                                 const torch::Tensor& shares, const torch::Tensor& lse);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/module/blend.ipp>
#endif
