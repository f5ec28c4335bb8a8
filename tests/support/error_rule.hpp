#pragma once
/// \file
/// The rule of judge.hpp as an expectation.

#include <gtest/gtest.h>

#include <string>

#include "support/judge.hpp"

namespace attzoo::testing {

/// See judge().
inline void expect_within_rule(const torch::Tensor& got, const torch::Tensor& gold,
                               const torch::Tensor& reference, double factor, int64_t length,
                               const std::string& what) {
  const auto verdict = judge(got, gold, reference, factor, length);
  EXPECT_TRUE(verdict.broken.empty()) << what << ": " << verdict.broken;
}

}  // namespace attzoo::testing
