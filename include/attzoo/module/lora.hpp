#pragma once
/// \file
/// Low-rank adaptation: a model learns a new task by two thin matrices beside each of a few layers,
/// while all that it has learned before stays as it is.
///
/// Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv:2106.09685:
/// ```
/// y = x W^T + b + alpha / rank * (dropout(x) A^T) B^T     A [rank, from], B [to, rank]
/// ```
/// Names and defaults are those of Hugging Face's PEFT. `io/adapter.hpp` saves and loads adapters.
///
/// Cost of a layer [to, from]: rank (from + to) more multiplications a token, and a gradient of
/// rank (from + to) numbers in the place of one of from * to. After merge_lora(): none.

#include <attzoo/config.hpp>
#include <attzoo/module/module_ref.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace attzoo {

/// Options of add_lora().
struct LoraOptions {
  int64_t rank = 8;                                ///< of the product B A; > 0
  double alpha = 8;                                ///< the product counts alpha / rank; > 0
  std::vector<std::string> targets{"w_q", "w_v"};  ///< layers, by the end of their names
  double dropout = 0.0;                            ///< of the LoRA's input, while training
};

/// Gives LoRA to layers of a mechanism, a block, a Stack, or any module that contains them: to each
/// whose dotted name is a target, or ends with one behind a dot. Their `lora_A` is random (Kaiming
/// uniform, as PEFT's), `lora_B` is 0, so that the module computes at first what it did before;
/// both have the weight's dtype and device. Every other parameter of `module` stops learning, as by
/// freeze(), but for LoRA that was there before. Gives the names of the layers.
///
/// The layers are those of attzoo's mechanisms, blocks and wrappers (not of their gates), and what
/// a mechanism of your own gets from make_projection(); their forward(), which is LibTorch's, knows
/// no LoRA: `apply_linear(x, attn->w_q)` does. A layer that is shared is adapted once. Parameters
/// are registered with the layer (`attn.w_q.lora_A`), so state dicts, to() and torch::save() have
/// them, and clone() keeps them.
///
/// Throws c10::ValueError, before anything is changed, for options out of range, for a target that
/// is no name of a layer (with a list of those there are) or names another torch::nn::Linear, and
/// for a layer that has LoRA. Example:
/// `add_lora(model, {.rank = 8, .targets = {"w_q", "w_v"}});`
ATTZOO_API std::vector<std::string> add_lora(ModuleRef module, const LoraOptions& options = {});

/// Adds all LoRA to the weights it stands beside, W + alpha / rank * B A, rounded once, and removes
/// it: the module computes the same but for rounding, at the cost of one without. What was frozen
/// stays so; unfreeze(module) ends that. Gives the names of the layers. Throws c10::ValueError,
/// before anything is changed, if there is no LoRA, and for a weight that another module has, too.
ATTZOO_API std::vector<std::string> merge_lora(ModuleRef module);

/// Removes all LoRA: the module computes what it did before add_lora(), but for rounding: frozen
/// layers may take faster loops. Gives the names of the layers. Throws c10::ValueError if there is
/// none.
ATTZOO_API std::vector<std::string> remove_lora(ModuleRef module);

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/layers/adaptable_linear.hpp>
#include <attzoo/module/checks.hpp>

#include <torch/nn/init.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

namespace attzoo::core {

/// Whether `target` means the layer, by PEFT's rule.
inline bool is_target(const std::string& name, const std::string& target) {
  return name == target || name.ends_with("." + target);
}

/// The layers that the targets mean, each layer once.
ATTZOO_API std::vector<NamedLayer> lora_targets(const torch::nn::Module& module,
                                                const std::vector<std::string>& targets) {
  std::vector<NamedLayer> found;
  std::set<const void*> seen;
  std::set<std::string> unmatched(targets.begin(), targets.end());
  std::string wrong, known;
  for (const auto& item : module.named_modules("", /*include_self=*/false)) {
    const auto& name = item.key();
    if (!item.value()->as<torch::nn::LinearImpl>()) continue;
    const bool is_ours = adaptable(*item.value());
    if (is_ours) known += "\n  " + name;
    bool is_meant = false;
    for (const auto& target : targets) {
      if (!is_target(name, target)) continue;
      is_meant = true;
      unmatched.erase(target);
    }
    if (!is_meant) continue;
    if (!is_ours) {
      wrong += "\n  " + name + ": is a torch::nn::Linear whose forward() knows no LoRA";
      continue;
    }
    auto layer = std::static_pointer_cast<AdaptableLinearImpl>(item.value());
    if (layer->has_lora()) wrong += "\n  " + name + ": has LoRA already";
    if (seen.insert(layer.get()).second) found.push_back({name, std::move(layer)});
  }
  for (const auto& target : unmatched) {
    wrong += "\n  \"" + target +
             "\": is no layer; those that can have LoRA are:" + (known.empty() ? " none" : known);
    known = " as above";
  }
  TORCH_CHECK_VALUE(wrong.empty(), "add_lora: the targets do not fit the module ", module.name(),
                    ":", wrong);
  return found;
}

/// All layers with LoRA, each once. Throws c10::ValueError if there is none.
ATTZOO_API std::vector<NamedLayer> lora_layers(const char* who, const torch::nn::Module& module) {
  auto found = adapted_layers(module);
  TORCH_CHECK_VALUE(!found.empty(), who, ": the module ", module.name(), " has no LoRA");
  std::set<const void*> seen;
  std::erase_if(found, [&](const auto& named) { return !seen.insert(named.layer.get()).second; });
  return found;
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API std::vector<std::string> add_lora(ModuleRef module, const LoraOptions& o) {
  constexpr const char* kName = "add_lora";
  TORCH_CHECK_VALUE(o.rank > 0, kName, ": rank must be > 0, got ", o.rank);
  TORCH_CHECK_VALUE(o.alpha > 0 && std::isfinite(o.alpha), kName,
                    ": alpha must be > 0 and finite, got ", o.alpha);
  TORCH_CHECK_VALUE(!o.targets.empty(), kName, ": targets must name a layer, got none");
  core::check_dropout(kName, o.dropout);
  const auto layers = core::lora_targets(*module, o.targets);
  std::vector<std::string> names;
  std::vector<torch::Tensor> A, B;
  for (const auto& [name, layer] : layers) {
    const auto& w = layer->weight;
    const auto problem = core::storage_problem(w);
    TORCH_CHECK_VALUE(problem.empty(), kName, ": the weight of ", name, " is ", problem);
    core::check_layer(kName, name, std::max(w.size(0), w.size(1)), o.rank,
                      c10::str(" rank=", o.rank));
    A.push_back(torch::empty({o.rank, w.size(1)}, w.options().requires_grad(false)));
    torch::nn::init::kaiming_uniform_(A.back(), std::sqrt(5.0));
    B.push_back(torch::zeros({w.size(0), o.rank}, A.back().options()));
    names.push_back(name);
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].layer->add_lora(A[i], B[i], o.alpha, o.dropout);
  }
  core::freeze_all_but_lora(*module);
  return names;
}

ATTZOO_API std::vector<std::string> merge_lora(ModuleRef module) {
  const auto layers = core::lora_layers("merge_lora", *module);
  std::map<const void*, std::set<const void*>> owners;  // the modules of each parameter
  const auto note = [&](const torch::nn::Module& part) {
    for (const auto& t : part.parameters(/*recurse=*/false)) {
      owners[t.unsafeGetTensorImpl()].insert(&part);
    }
    if (const auto* linear = part.as<torch::nn::LinearImpl>()) {  // which may have been set
      owners[linear->weight.unsafeGetTensorImpl()].insert(linear);
    }
  };
  note(*module);
  for (const auto& part : module->modules(/*include_self=*/false)) note(*part);
  std::vector<std::string> names;
  for (const auto& [name, layer] : layers) {
    TORCH_CHECK_VALUE(owners[layer->weight.unsafeGetTensorImpl()].size() == 1, "merge_lora: ", name,
                      ".weight is another module's, too, which has no such LoRA");
    names.push_back(name);
  }
  const torch::NoGradGuard no_grad;
  for (const auto& [name, layer] : layers) {
    const auto wide = [](const torch::Tensor& t) { return t.to(torch::kCPU, torch::kFloat64); };
    const auto product = torch::matmul(wide(layer->lora_B()), wide(layer->lora_A()));
    layer->weight.copy_(wide(layer->weight).add(product, layer->lora().scale(layer->rank())));
    layer->remove_lora();
  }
  return names;
}

ATTZOO_API std::vector<std::string> remove_lora(ModuleRef module) {
  std::vector<std::string> names;
  for (const auto& [name, layer] : core::lora_layers("remove_lora", *module)) {
    layer->remove_lora();
    names.push_back(name);
  }
  return names;
}

}  // namespace attzoo

#endif
