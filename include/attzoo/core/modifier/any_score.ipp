#pragma once
// Definitions of any_score.hpp.

#include <attzoo/core/modifier/any_score.hpp>

namespace attzoo::core {

ATTZOO_API AnyScore chain(AnyScore a, AnyScore b) {
  if (a.is_identity()) return b;
  if (b.is_identity()) return a;
  return ChainScore{std::move(a), std::move(b)};
}

ATTZOO_API void ChainScore::check(const Shape& n, const torch::Device& device) const {
  a.check(n, device);
  b.check(n, device);
  TORCH_CHECK_VALUE(!a.sink().defined() || !b.sink().defined(), "sink: given twice");
}
ATTZOO_API void ChainScore::tensors(Captured& out) const {
  a.tensors(out);
  b.tensors(out);
}
ATTZOO_API void ChainScore::learnable(std::vector<Learnable>& out) const {
  a.learnable(out);
  b.learnable(out);
}
ATTZOO_API AnyScore ChainScore::resolve(const Shape& n) const {
  return chain(a.resolve(n), b.resolve(n));
}
ATTZOO_API AnyScore ChainScore::placed(const torch::Tensor& places) const {
  return chain(a.placed(places), b.placed(places));
}
ATTZOO_API torch::Tensor ChainScore::sink() const {
  const auto first = a.sink();
  return first.defined() ? first : b.sink();
}

ATTZOO_API MaskAndBias mask_and_bias(const torch::Tensor& rank4) {
  if (!rank4.defined()) return {};
  if (rank4.scalar_type() == torch::kBool) return {TensorMask{rank4}, {}};
  return {{}, TensorBias{rank4}};
}

}  // namespace attzoo::core
