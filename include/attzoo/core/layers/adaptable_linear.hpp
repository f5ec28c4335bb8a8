#pragma once
/// \file
/// The linear layers of attzoo's modules: LibTorch's, with a place for low-rank adaptation.
///
/// Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv:2106.09685:
/// ```
/// y = x W^T + b + alpha / rank * (dropout(x) A^T) B^T
/// ```
/// with A [rank, from] and B [to, rank]. module/lora.hpp adds and removes it.

#include <attzoo/config.hpp>

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

namespace attzoo::core {

/// What a layer's LoRA has beside its matrices; registered with the layer as `lora`.
class LoraImpl final : public torch::nn::Cloneable<LoraImpl> {
 public:
  LoraImpl(double alpha_, double dropout_) : alpha(alpha_), dropout(dropout_) {}
  void reset() override {}
  ATTZOO_API void pretty_print(std::ostream& stream) const override;

  double scale(int64_t rank) const { return alpha / static_cast<double>(rank); }

  double alpha;    ///< of the scale
  double dropout;  ///< of the LoRA's input, while training
};

/// A torch::nn::Linear that may have LoRA: then its parameters are `lora_A` and `lora_B`, too. It
/// has no member of its own. Where LibTorch clones a module that contains it, it copies what a
/// LinearImpl has, parameters and children, and no more. forward() is LinearImpl's, which knows no
/// LoRA: core::linear() does.
class AdaptableLinearImpl final : public torch::nn::LinearImpl {
 public:
  using LinearImpl::LinearImpl;

  /// A copy of weight, bias and LoRA that shares nothing with them, and learns where they do.
  ATTZOO_API std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;

  /// LinearImpl always has two parameters, weight and bias, so that most are told by a count.
  bool has_lora() const { return parameters_.size() > 2 && parameters_.contains("lora_A"); }
  // All below: only where there is LoRA.
  const torch::Tensor& lora_A() const { return parameters_["lora_A"]; }  ///< [rank, from]
  const torch::Tensor& lora_B() const { return parameters_["lora_B"]; }  ///< [to, rank]
  int64_t rank() const { return lora_A().size(0); }
  ATTZOO_API LoraImpl& lora() const;

  /// Registers the matrices, which learn. Only where there is no LoRA.
  ATTZOO_API void add_lora(const torch::Tensor& A, const torch::Tensor& B, double alpha,
                           double dropout);
  ATTZOO_API void remove_lora();
};

/// A new layer x [..., from] -> [..., to], initialised as LibTorch's.
inline torch::nn::Linear make_linear(int64_t from, int64_t to, bool bias = true) {
  return torch::nn::Linear(std::shared_ptr<torch::nn::LinearImpl>(
      std::make_shared<AdaptableLinearImpl>(torch::nn::LinearOptions(from, to).bias(bias))));
}

/// The layer, if it can have LoRA; null for a torch::nn::Linear that somebody else made.
inline const AdaptableLinearImpl* adaptable(const torch::nn::Module& layer) {
  return typeid(layer) == typeid(AdaptableLinearImpl)
             ? static_cast<const AdaptableLinearImpl*>(&layer)
             : nullptr;
}
inline AdaptableLinearImpl* adaptable(torch::nn::Module& layer) {
  return const_cast<AdaptableLinearImpl*>(adaptable(std::as_const(layer)));
}

/// A layer within a module.
struct NamedLayer {
  std::string name;
  std::shared_ptr<AdaptableLinearImpl> layer;
};

/// All within a module that can have LoRA; one that is shared, under each of its names.
ATTZOO_API std::vector<NamedLayer> adaptable_layers(const torch::nn::Module& module);
/// Those that have it.
ATTZOO_API std::vector<NamedLayer> adapted_layers(const torch::nn::Module& module);

/// All parameters but those of LoRA stop learning.
ATTZOO_API void freeze_all_but_lora(const torch::nn::Module& module);

/// Ends a parameter's learning: a gradient that it has would still move it in an optimizer's step.
inline void freeze_parameter(torch::Tensor& parameter) {
  parameter.set_requires_grad(false);
  parameter.mutable_grad().reset();
}

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <ostream>
#include <set>

namespace attzoo::core {

ATTZOO_API void LoraImpl::pretty_print(std::ostream& stream) const {
  stream << "attzoo::Lora(alpha=" << alpha << ", dropout=" << dropout << ")";
}

ATTZOO_API std::shared_ptr<torch::nn::Module> AdaptableLinearImpl::clone(
    const std::optional<torch::Device>& device) const {
  const torch::NoGradGuard no_grad;
  auto copy = std::make_shared<AdaptableLinearImpl>(*this);
  for (auto& item : copy->parameters_) {
    auto& t = item.value();
    if (!t.defined()) continue;
    const bool learns = t.requires_grad();
    t = device && t.device() != *device ? t.to(*device) : t.clone();
    t.set_requires_grad(learns);
  }
  copy->weight = copy->parameters_["weight"];
  copy->bias = copy->parameters_["bias"];
  if (has_lora()) copy->replace_module("lora", lora().clone());
  return copy;
}

ATTZOO_API LoraImpl& AdaptableLinearImpl::lora() const {
  LoraImpl* found = nullptr;
  for (const auto& child : children()) {
    if (auto* lora = child->as<LoraImpl>()) found = lora;
  }
  TORCH_INTERNAL_ASSERT(found);
  return *found;
}

ATTZOO_API void AdaptableLinearImpl::add_lora(const torch::Tensor& A, const torch::Tensor& B,
                                              double alpha, double dropout) {
  register_parameter("lora_A", A);
  register_parameter("lora_B", B);
  auto lora = std::make_shared<LoraImpl>(alpha, dropout);
  lora->train(is_training());
  register_module("lora", std::move(lora));
}

ATTZOO_API void AdaptableLinearImpl::remove_lora() {
  parameters_.erase("lora_A");
  parameters_.erase("lora_B");
  unregister_module("lora");
}

ATTZOO_API std::vector<NamedLayer> adaptable_layers(const torch::nn::Module& module) {
  std::vector<NamedLayer> found;
  for (const auto& item : module.named_modules("", /*include_self=*/false)) {
    if (!adaptable(*item.value())) continue;
    found.push_back({item.key(), std::static_pointer_cast<AdaptableLinearImpl>(item.value())});
  }
  return found;
}

ATTZOO_API std::vector<NamedLayer> adapted_layers(const torch::nn::Module& module) {
  auto found = adaptable_layers(module);
  std::erase_if(found, [](const auto& named) { return !named.layer->has_lora(); });
  return found;
}

ATTZOO_API void freeze_all_but_lora(const torch::nn::Module& module) {
  std::set<const void*> lora;
  for (const auto& [name, layer] : adapted_layers(module)) {
    lora.insert({layer->lora_A().unsafeGetTensorImpl(), layer->lora_B().unsafeGetTensorImpl()});
  }
  for (auto& parameter : module.parameters()) {
    if (lora.count(parameter.unsafeGetTensorImpl()) == 0) freeze_parameter(parameter);
  }
}

}  // namespace attzoo::core

#endif
