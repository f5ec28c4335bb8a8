#pragma once
/// \file
/// When a result in dtype T is right: compared with the same formula in float64, its error may be a
/// small multiple of the error that ATen's plain composition makes in T, plus the rounding that no
/// implementation can avoid. For programs without GoogleTest; with it, see error_rule.hpp.

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <limits>
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

struct Verdict {
  std::string broken;  // what the result breaks; empty: it is right
  double used = 0;     // of the error that is allowed; at most 1 if it is right
};

/// `gold`: plain attention in float64. `reference`: the plain composition in the dtype of `got`.
/// `factor`: 2 for outputs, 3 for gradients. `length`: terms of the longest sum.
inline Verdict judge(const torch::Tensor& got, const torch::Tensor& gold,
                     const torch::Tensor& reference, double factor, int64_t length) {
  if (got.sizes() != gold.sizes()) return {c10::str("sizes ", got.sizes(), ", not ", gold.sizes())};
  if (got.scalar_type() != reference.scalar_type()) {
    return {c10::str("dtype ", got.scalar_type(), ", not ", reference.scalar_type())};
  }
  if (got.numel() == 0) return {};
  const auto a = got.detach().to(torch::kFloat64);
  const auto b = gold.detach().to(torch::kFloat64);
  const auto r = reference.detach().to(torch::kFloat64);
  const auto finite = torch::isfinite(b);
  if (!torch::equal(torch::isfinite(a), finite)) return {"other entries are finite"};
  if (!torch::equal(a.masked_select(finite.logical_not()).nan_to_num(7),
                    b.masked_select(finite.logical_not()).nan_to_num(7))) {
    return {"the infinities differ"};
  }
  const auto take = [&](const torch::Tensor& t) { return t.masked_select(finite); };
  const auto error = take(a - b).abs(), own = take(r - b).abs().nan_to_num(0.0, 0.0, 0.0);
  if (error.numel() == 0) return {};
  const bool half = got.scalar_type() == torch::kHalf || got.scalar_type() == torch::kBFloat16;
  const auto accumulate = got.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const double floor =
      epsilon(got.scalar_type()) + 4 * epsilon(accumulate) * std::sqrt(static_cast<double>(length));
  const auto at = [](const torch::Tensor& t) { return t.item<double>(); };

  Verdict verdict;
  const auto at_most = [&](const char* what, double value, double allowed) {
    constexpr double kLots = std::numeric_limits<double>::max();
    verdict.used = std::max(verdict.used, value <= 0 ? 0 : allowed > 0 ? value / allowed : kLots);
    if (!(value <= allowed)) {
      verdict.broken +=
          c10::str(verdict.broken.empty() ? "" : ", ", what, " ", value, ", allowed ", allowed);
    }
  };
  at_most("largest error", at(error.max()),
          factor * at(own.max()) + floor * at(take(b).abs().max()));
  at_most("mean error", at(error.mean()),
          (half ? 1.1 : 10.0) * at(own.mean()) + floor * at(take(b).abs().mean()));
  // A result of zeros must not pass because everything is small.
  const auto zeros = [&](const torch::Tensor& t) {
    return at((take(t) == 0).to(torch::kFloat64).mean());
  };
  if (zeros(a) > 0.5 + zeros(b)) verdict.broken += c10::str(" zeros ", zeros(a));
  return verdict;
}

}  // namespace attzoo::testing
