#pragma once
/// \file
/// A norm whose kind is an option: LayerNorm (Ba et al., 2016, arXiv:1607.06450) or RMSNorm (Zhang
/// and Sennrich, 2019, arXiv:1910.07467).

#include <attzoo/config.hpp>
#include <attzoo/module/rms_norm.hpp>

#include <torch/nn/modules/normalization.h>

#include <memory>

namespace attzoo {

/// Which norm.
enum class NormKind {
  kLayerNorm,  ///< (x - mean(x)) / sqrt(var(x) + eps) * weight + bias
  kRMSNorm,    ///< x / sqrt(mean(x^2) + eps) * weight
};

/// Holds a torch::nn::LayerNorm, an RMSNorm, or nothing, as LibTorch's holders do. The state has
/// `name.weight`, and of LayerNorm `name.bias`, where `name` is what ptr() is registered by.
class Norm {
 public:
  /// Holds nothing.
  Norm(std::nullptr_t) {}  // NOLINT: as LibTorch's holders
  /// A new module. Throws c10::ValueError unless features > 0 and eps >= 0 and finite.
  ATTZOO_API Norm(NormKind kind, int64_t features, double eps);

  bool is_empty() const { return layer.is_empty() && rms.is_empty(); }
  /// To register: `register_module("norm", norm.ptr())`.
  ATTZOO_API std::shared_ptr<torch::nn::Module> ptr() const;
  /// [features]. Throws c10::Error if it holds nothing.
  ATTZOO_API const torch::Tensor& weight() const;

  /// Initialises weight and bias anew, in place.
  ATTZOO_API void reset_parameters();

  /// x [..., features] -> the same shape; throws what the module's forward does.
  ATTZOO_API torch::Tensor operator()(const torch::Tensor& x);

  torch::nn::LayerNorm layer{nullptr};  ///< for NormKind::kLayerNorm
  RMSNorm rms{nullptr};                 ///< for NormKind::kRMSNorm
};

}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/module/norm.ipp>
#endif
