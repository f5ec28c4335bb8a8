#pragma once
// Definitions of rms_norm.hpp.

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/module/checks.hpp>
#include <attzoo/module/rms_norm.hpp>

#include <ATen/ops/rms_norm.h>
#include <torch/nn/init.h>

#include <cmath>
#include <ostream>

namespace attzoo {

ATTZOO_API RMSNormImpl::RMSNormImpl(const RMSNormOptions& o) : options(o) {
  TORCH_CHECK_VALUE(o.features > 0, "RMSNorm: features must be > 0, got ", o.features);
  TORCH_CHECK_VALUE(o.eps >= 0 && std::isfinite(o.eps),
                    "RMSNorm: eps must be >= 0 and finite, got ", o.eps);
  reset();
}

ATTZOO_API void RMSNormImpl::reset() {
  weight = register_parameter("weight", torch::ones({options.features}));
}

ATTZOO_API void RMSNormImpl::reset_parameters() { torch::nn::init::ones_(weight); }

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
  if (core::plain_numbers(x, weight)) return core::rms_norm(x, weight, options.eps);
  // Under autocast x may have another dtype.
  return at::rms_norm(x.to(weight.scalar_type()), {options.features}, weight, options.eps);
}

}  // namespace attzoo
