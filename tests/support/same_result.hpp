#pragma once
/// \file
/// When two ways to attend give the same.

#include <attzoo/functional/result.hpp>

#include <string>

#include "support/error_rule.hpp"

namespace attzoo::testing {

/// Output, lse and weights, those that `gold` has, by the error rule.
inline void expect_same(const AttentionResult& got, const AttentionResult& gold,
                        const std::string& what) {
  expect_within_rule(got.output, gold.output, gold.output, 2, 64, what);
  if (gold.lse.defined()) expect_within_rule(got.lse, gold.lse, gold.lse, 2, 64, what + ": lse");
  if (!gold.weights.defined()) return;
  const torch::Tensor weights = gold.weights;
  expect_within_rule(got.weights, weights, weights, 2, 64, what + ": weights");
}

}  // namespace attzoo::testing
