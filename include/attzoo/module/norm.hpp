#pragma once
/// \file
/// A norm whose kind is an option: LayerNorm (Ba et al., 2016, arXiv:1607.06450) or RMSNorm (Zhang
/// and Sennrich, 2019, arXiv:1910.07467).

#include <attzoo/module/rms_norm.hpp>

#include <torch/nn/modules/normalization.h>

#include <cmath>
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
  Norm(NormKind kind, int64_t features, double eps) {
    TORCH_CHECK_VALUE(features > 0, "Norm: features must be > 0, got ", features);
    TORCH_CHECK_VALUE(eps >= 0 && std::isfinite(eps), "Norm: eps must be >= 0 and finite, got ",
                      eps);
    if (kind == NormKind::kRMSNorm) {
      rms = RMSNorm({.features = features, .eps = eps});
    } else {
      layer = torch::nn::LayerNorm(torch::nn::LayerNormOptions({features}).eps(eps));
    }
  }

  bool is_empty() const { return layer.is_empty() && rms.is_empty(); }
  /// To register: `register_module("norm", norm.ptr())`.
  std::shared_ptr<torch::nn::Module> ptr() const {
    if (!rms.is_empty()) return rms.ptr();
    return layer.ptr();
  }
  /// [features]. Throws c10::Error if it holds nothing.
  const torch::Tensor& weight() const { return rms.is_empty() ? layer->weight : rms->weight; }

  /// Initialises weight and bias anew, in place.
  void reset_parameters() {
    if (!rms.is_empty()) return rms->reset_parameters();
    layer->reset_parameters();
  }

  /// x [..., features] -> the same shape; throws what the module's forward does.
  torch::Tensor operator()(const torch::Tensor& x) {
    return rms.is_empty() ? layer->forward(x) : rms->forward(x);
  }

  torch::nn::LayerNorm layer{nullptr};  ///< for NormKind::kLayerNorm
  RMSNorm rms{nullptr};                 ///< for NormKind::kRMSNorm
};

}  // namespace attzoo
