#pragma once
/// \file
/// Any module as an argument.

#include <c10/util/Exception.h>
#include <torch/nn/module.h>

#include <concepts>
#include <memory>

namespace attzoo {

/// A module, for the length of a call: itself, or what holds it, as LibTorch's holders,
/// AnyAttention and std::shared_ptr do. Throws c10::Error for one that holds nothing.
template <class Module>
class BasicModuleRef {
 public:
  BasicModuleRef(Module& module) : module_(&module) {}  // NOLINT: any module is one
  template <class Holder>
  requires requires(const Holder& h) {
    { h.ptr() } -> std::convertible_to<std::shared_ptr<Module>>;
  }
  BasicModuleRef(const Holder& holder) : BasicModuleRef(holder.ptr()) {}  // NOLINT
  template <std::derived_from<torch::nn::Module> M>
  BasicModuleRef(const std::shared_ptr<M>& module) : module_(module.get()) {  // NOLINT
    TORCH_CHECK_VALUE(module_, "expected a module, got an empty pointer");
  }

  Module& operator*() const { return *module_; }
  Module* operator->() const { return module_; }

 private:
  Module* module_;
};

using ModuleRef = BasicModuleRef<torch::nn::Module>;             ///< may change it
using ConstModuleRef = BasicModuleRef<const torch::nn::Module>;  ///< reads it

}  // namespace attzoo
