#pragma once
/// \file
/// When a result in dtype T is right: compared with the same formula in float64, its error may be a
/// small multiple of the error that ATen's plain composition makes in T, plus the rounding that no
/// implementation can avoid.

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <string>

namespace attzoo::testing {

inline double epsilon(torch::ScalarType t) {
  switch (t) {
    case torch::kFloat64:
      return 0x1p-52;
    case torch::kFloat32:
      return 0x1p-23;
    case torch::kHalf:
      return 0x1p-10;
    default:
      return 0x1p-7;  // bfloat16
  }
}

/// `gold`: plain attention in float64. `reference`: the plain composition in the dtype of `got`.
/// `factor`: 2 for outputs, 3 for gradients. `length`: terms of the longest sum.
inline void expect_within_rule(const torch::Tensor& got, const torch::Tensor& gold,
                               const torch::Tensor& reference, double factor, int64_t length,
                               const std::string& what) {
  ASSERT_EQ(got.sizes(), gold.sizes()) << what;
  ASSERT_EQ(got.scalar_type(), reference.scalar_type()) << what;
  if (got.numel() == 0) return;
  const auto a = got.detach().to(torch::kFloat64);
  const auto b = gold.detach().to(torch::kFloat64);
  const auto r = reference.detach().to(torch::kFloat64);
  const auto finite = torch::isfinite(b);
  ASSERT_TRUE(torch::equal(torch::isfinite(a), finite)) << what << ": other entries are finite";
  ASSERT_TRUE(torch::equal(a.masked_select(finite.logical_not()).nan_to_num(7),
                           b.masked_select(finite.logical_not()).nan_to_num(7)))
      << what << ": the infinities differ";
  const auto take = [&](const torch::Tensor& t) { return t.masked_select(finite); };
  const auto error = take(a - b).abs(), own = take(r - b).abs().nan_to_num(0.0, 0.0, 0.0);
  if (error.numel() == 0) return;
  const bool half = got.scalar_type() == torch::kHalf || got.scalar_type() == torch::kBFloat16;
  const auto accumulate = got.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const double floor =
      epsilon(got.scalar_type()) + 4 * epsilon(accumulate) * std::sqrt(static_cast<double>(length));
  const auto at = [](const torch::Tensor& t) { return t.item<double>(); };
  EXPECT_LE(at(error.max()), factor * at(own.max()) + floor * at(take(b).abs().max())) << what;
  EXPECT_LE(at(error.mean()),
            (half ? 1.1 : 10.0) * at(own.mean()) + floor * at(take(b).abs().mean()))
      << what;
  // A result of zeros must not pass because everything is small.
  EXPECT_LE(at((take(a) == 0).to(torch::kFloat64).mean()),
            0.5 + at((take(b) == 0).to(torch::kFloat64).mean()))
      << what << ": zeros";
}

}  // namespace attzoo::testing
