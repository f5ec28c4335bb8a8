#pragma once
/// \file
/// What the checks of reference cases find.

#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

namespace attzoo::testing {

/// What went wrong in a case, and how near to the allowance the rest came.
struct Report {
  std::vector<std::string> failures;
  double worst = 0;  // error / allowance

  void fail(const std::string& what) { failures.push_back(what); }
  void expect(bool ok, const std::string& what) {
    if (!ok) fail(what);
  }

  /// |got - want| <= tolerance * (1 + max |want|); where `want` is NaN, `got` must be 0.
  void compare(const std::string& what, const torch::Tensor& got, const torch::Tensor& want,
               double tolerance) {
    if (!got.defined() || got.sizes() != want.sizes()) {
      return fail(what + c10::str(": expected the shape ", want.sizes(), ", got ",
                                  got.defined() ? got.sizes() : torch::IntArrayRef()));
    }
    if (want.numel() == 0) return;
    const auto a = got.detach().to(torch::kFloat64);
    const auto b = torch::nan_to_num(want.to(torch::kFloat64), 0.0, INFINITY, -INFINITY);
    const auto same = a == b;  // equal infinities
    const auto error = torch::where(same, torch::zeros_like(a), (a - b).abs());
    const auto finite = torch::where(torch::isfinite(b), b.abs(), torch::zeros_like(b));
    const double allowed = tolerance * (1 + finite.max().item<double>());
    const double ratio = error.max().item<double>() / allowed;
    worst = std::max(worst, std::isnan(ratio) ? INFINITY : ratio);
    expect(ratio <= 1, what + c10::str(": error ", ratio * allowed, " over the allowed ", allowed));
  }

  /// `f` must throw a c10::Error whose text has `part`.
  void expect_error(const char* part, const std::function<void()>& f) {
    try {
      f();
      fail(std::string("expected an error that names ") + part);
    } catch (const c10::Error& e) {
      const std::string text = e.what_without_backtrace();
      expect(text.find(part) != std::string::npos,
             std::string("expected an error that names ") + part + ", got: " + text);
    }
  }
};

/// A case that this build of the checker does not run, and why.
struct Skipped {
  std::string reason;
};

}  // namespace attzoo::testing
