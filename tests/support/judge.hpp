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

/// What the rule asks of a result, or of several together.
struct Errors {
  /// The largest of some numbers, and their sum.
  struct Numbers {
    double largest = 0, sum = 0;
    void add(const torch::Tensor& t, double unit) {
      largest = std::max(largest, t.max().item<double>() / unit);
      sum += t.sum().item<double>() / unit;
    }
  };
  Numbers error, own, gold;  // of the result, of the reference, and what they are errors of
  double count = 0, zeros = 0, gold_zeros = 0;
  std::string broken;

  /// Another result, its gold and its reference, of the same sizes, in units of `unit`.
  void add(const torch::Tensor& got, const torch::Tensor& exact, const torch::Tensor& reference,
           double unit = 1) {
    const auto widened = [](const torch::Tensor& t) { return t.detach().to(torch::kFloat64); };
    const auto a = widened(got), b = widened(exact), r = widened(reference);
    const auto finite = torch::isfinite(b);
    if (!torch::equal(torch::isfinite(a), finite)) {
      broken = "other entries are finite";
    } else if (!torch::equal(a.masked_select(finite.logical_not()).nan_to_num(7),
                             b.masked_select(finite.logical_not()).nan_to_num(7))) {
      broken = "the infinities differ";
    }
    const auto take = [&](const torch::Tensor& t) { return t.masked_select(finite); };
    const auto numbers = take(b);
    if (numbers.numel() == 0) return;
    error.add(take(a - b).abs(), unit);
    own.add(take(r - b).abs().nan_to_num(0.0, 0.0, 0.0), unit);
    gold.add(numbers.abs(), unit);
    const auto of_zeros = [](const torch::Tensor& t) { return (t == 0).sum().item<double>(); };
    zeros += of_zeros(take(a));
    gold_zeros += of_zeros(numbers);
    count += static_cast<double>(numbers.numel());
  }

  /// Of results in this dtype. `factor`: 2 for outputs, 3 for gradients. `length`: terms of the
  /// longest sum.
  Verdict judge(torch::ScalarType dtype, double factor, int64_t length) const {
    Verdict verdict{broken, 0};
    if (!broken.empty() || count == 0) return verdict;
    const bool half = dtype == torch::kHalf || dtype == torch::kBFloat16;
    const auto accumulate = dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
    const double floor =
        epsilon(dtype) + 4 * epsilon(accumulate) * std::sqrt(static_cast<double>(length));
    const auto at_most = [&](const char* what, double value, double allowed) {
      constexpr double kLots = std::numeric_limits<double>::max();
      verdict.used = std::max(verdict.used, value <= 0 ? 0 : allowed > 0 ? value / allowed : kLots);
      if (!(value <= allowed)) {
        verdict.broken +=
            c10::str(verdict.broken.empty() ? "" : ", ", what, " ", value, ", allowed ", allowed);
      }
    };
    at_most("largest error", error.largest, factor * own.largest + floor * gold.largest);
    at_most("mean error", error.sum / count,
            ((half ? 1.1 : 10.0) * own.sum + floor * gold.sum) / count);
    // A result of zeros must not pass because everything is small.
    if (zeros > 0.5 * count + gold_zeros) verdict.broken += c10::str(" zeros ", zeros / count);
    return verdict;
  }
};

/// `gold`: plain attention in float64. `reference`: the plain composition in the dtype of `got`.
/// `factor` and `length` as in Errors::judge().
inline Verdict judge(const torch::Tensor& got, const torch::Tensor& gold,
                     const torch::Tensor& reference, double factor, int64_t length) {
  if (got.sizes() != gold.sizes()) return {c10::str("sizes ", got.sizes(), ", not ", gold.sizes())};
  if (got.scalar_type() != reference.scalar_type()) {
    return {c10::str("dtype ", got.scalar_type(), ", not ", reference.scalar_type())};
  }
  Errors errors;
  errors.add(got, gold, reference);
  return errors.judge(got.scalar_type(), factor, length);
}

}  // namespace attzoo::testing
