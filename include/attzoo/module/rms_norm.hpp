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

#ifndef ATTZOO_COMPILED
#include <attzoo/module/rms_norm.ipp>
#endif
