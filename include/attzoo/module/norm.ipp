#pragma once
// Definitions of norm.hpp.

#include <attzoo/core/checks.hpp>
#include <attzoo/module/norm.hpp>

#include <cmath>

namespace attzoo {

ATTZOO_API Norm::Norm(NormKind kind, int64_t features, double eps) {
  TORCH_CHECK_VALUE(features > 0, "Norm: features must be > 0, got ", features);
  TORCH_CHECK_VALUE(eps >= 0 && std::isfinite(eps), "Norm: eps must be >= 0 and finite, got ", eps);
  if (kind == NormKind::kRMSNorm) {
    rms = RMSNorm({.features = features, .eps = eps});
  } else {
    layer = torch::nn::LayerNorm(torch::nn::LayerNormOptions({features}).eps(eps));
  }
}

ATTZOO_API std::shared_ptr<torch::nn::Module> Norm::ptr() const {
  if (!rms.is_empty()) return rms.ptr();
  return layer.ptr();
}

ATTZOO_API const torch::Tensor& Norm::weight() const {
  return rms.is_empty() ? layer->weight : rms->weight;
}

ATTZOO_API void Norm::reset_parameters() {
  if (!rms.is_empty()) return rms->reset_parameters();
  layer->reset_parameters();
}

ATTZOO_API torch::Tensor Norm::operator()(const torch::Tensor& x) {
  return rms.is_empty() ? layer->forward(x) : rms->forward(x);
}

}  // namespace attzoo
