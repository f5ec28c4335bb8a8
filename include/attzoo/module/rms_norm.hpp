#pragma once
/// \file
/// Root mean square layer normalization (Zhang and Sennrich, 2019, arXiv:1910.07467):
/// ```
/// y = x / sqrt(mean(x^2) + eps) * weight
/// ```
/// the norm of Llama, Qwen, Gemma and GPT-OSS.

#include <attzoo/config.hpp>

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <iosfwd>

namespace attzoo {

/// Options of RMSNorm.
struct RMSNormOptions {
  int64_t features = 0;  ///< size of the last dimension; > 0
  double eps = 1e-6;     ///< added to the mean square; >= 0 and finite
};

/// The module; RMSNorm holds it.
class RMSNormImpl : public torch::nn::Cloneable<RMSNormImpl> {
 public:
  /// Throws c10::ValueError for options out of range.
  explicit RMSNormImpl(const RMSNormOptions& o);
  explicit RMSNormImpl(int64_t features) : RMSNormImpl(RMSNormOptions{.features = features}) {}

  /// Makes and registers the weight.
  void reset() override;
  /// Fills the weight with ones, in place.
  void reset_parameters();
  /// Prints the module with its options.
  void pretty_print(std::ostream& stream) const override;

  /// x [..., features] -> the same shape and dtype; half types are summed in float32. Throws
  /// c10::ValueError for another last dimension or device, c10::TypeError for another dtype than
  /// the weight's, unless autocast is on: then x is cast to that.
  torch::Tensor forward(const torch::Tensor& x);

  RMSNormOptions options;  ///< as they were given
  torch::Tensor weight;    ///< [features]
};

/// Example: `RMSNorm norm({.features = 512, .eps = 1e-5});`
class RMSNorm : public torch::nn::ModuleHolder<RMSNormImpl> {
 public:
  using torch::nn::ModuleHolder<RMSNormImpl>::ModuleHolder;
  explicit RMSNorm(const RMSNormOptions& options)
      : ModuleHolder(std::make_shared<RMSNormImpl>(options)) {}
};

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/module/checks.hpp>

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

#endif
