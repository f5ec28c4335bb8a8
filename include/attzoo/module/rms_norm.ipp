#pragma once
// Definitions of rms_norm.hpp.

#include <attzoo/module/checks.hpp>
#include <attzoo/module/few_tokens.hpp>
#include <attzoo/module/rms_norm.hpp>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rms_norm.h>

#include <array>
#include <cmath>
#include <ostream>

namespace attzoo {

namespace core {

/// One row of n numbers; the mean square is summed in 16 parts, which a compiler can do at once.
template <class T>
void rms_norm_row(const T* x, const T* weight, T* y, int64_t n, double eps) {
  std::array<T, 16> parts{};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int64_t j = 0; j < 16; ++j) parts[static_cast<size_t>(j)] += x[i + j] * x[i + j];
  }
  double sum = 0;
  for (const T part : parts) sum += static_cast<double>(part);
  for (; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const T scale = static_cast<T>(1 / std::sqrt(sum / static_cast<double>(n) + eps));
  for (i = 0; i < n; ++i) y[i] = x[i] * scale * weight[i];
}

/// The norm of rows without a gradient on the CPU, float32 or float64. ATen has it as ten small
/// operators, whose calls take longer than the work where there is one token.
ATTZOO_API torch::Tensor rms_norm_rows(const torch::Tensor& x, const torch::Tensor& weight,
                                       double eps) {
  const auto rows = plain(x).contiguous(), scale = plain(weight).contiguous();
  auto y = at::empty_like(rows);
  const int64_t n = rows.size(-1);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "RMSNorm", [&] {
    const auto *from = rows.const_data_ptr<scalar_t>(), *by = scale.const_data_ptr<scalar_t>();
    auto* to = y.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, rows.numel() / n, at::internal::GRAIN_SIZE / n + 1,
                     [&](int64_t begin, int64_t end) {
                       for (int64_t i = begin; i < end; ++i) {
                         rms_norm_row(from + i * n, by, to + i * n, n, eps);
                       }
                     });
  });
  return y;
}

}  // namespace core

ATTZOO_API RMSNormImpl::RMSNormImpl(const RMSNormOptions& o) : options(o) {
  TORCH_CHECK_VALUE(o.features > 0, "RMSNorm: features must be > 0, got ", o.features);
  TORCH_CHECK_VALUE(o.eps >= 0 && std::isfinite(o.eps),
                    "RMSNorm: eps must be >= 0 and finite, got ", o.eps);
  reset();
}

ATTZOO_API void RMSNormImpl::reset() {
  weight = register_parameter("weight", torch::ones({options.features}));
}

ATTZOO_API void RMSNormImpl::pretty_print(std::ostream& stream) const {
  stream << "attzoo::RMSNorm(features=" << options.features << ", eps=" << options.eps << ")";
}

ATTZOO_API torch::Tensor RMSNormImpl::forward(const torch::Tensor& x) {
  core::check_floating(x, "RMSNorm", "x");
  TORCH_CHECK_VALUE(x.dim() > 0 && x.size(-1) == options.features,
                    "RMSNorm: x must have shape [..., ", options.features, "], got ", x.sizes());
  TORCH_CHECK_VALUE(x.device() == weight.device(), "RMSNorm: x must be on the weight's device ",
                    weight.device(), ", got ", x.device());
  TORCH_CHECK_TYPE(core::dtypes_fit(x, weight), "RMSNorm: x must have the weight's dtype ",
                   weight.scalar_type(), ", got ", x.scalar_type());
  if (core::plain_numbers(x, weight)) return core::rms_norm_rows(x, weight, options.eps);
  // Under autocast x may have another dtype.
  return at::rms_norm(x.to(weight.scalar_type()), {options.features}, weight, options.eps);
}

}  // namespace attzoo
