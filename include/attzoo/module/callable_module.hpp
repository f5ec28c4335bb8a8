#pragma once
/// \file
/// What mechanisms and wrappers are to LibTorch: modules that AnyModule and Sequential can call.

#include <attzoo/config.hpp>
#include <attzoo/module/holder.hpp>

#include <torch/nn/cloneable.h>

#include <memory>
#include <utility>
#include <vector>

namespace attzoo::core {

/// The arguments of forward() with AttentionInputs behind x where there are none.
ATTZOO_API std::vector<torch::nn::AnyValue> with_default_inputs(
    std::vector<torch::nn::AnyValue> arguments);

/// Gives the parameters and buffers of `module` the values of those of `fresh`, in place. Throws
/// c10::ValueError, and changes nothing, unless both have the same ones of the same sizes.
ATTZOO_API void take_values(const char* who, const torch::nn::Module& fresh,
                            torch::nn::Module& module);

/// A module whose forward(x, inputs) is called with x alone as well: what LibTorch's macro
/// FORWARD_HAS_DEFAULT_ARGS says, but compiled once.
template <class Derived>
class CallableModule : public torch::nn::Cloneable<Derived>, public MakesCache {
 public:
  /// Initialises all parameters and buffers anew, in place, those of wrapped modules too: they get
  /// the values that a new module with these options has, and stay the same tensors, of the same
  /// dtype and on the same device, so that an optimizer keeps them. Throws c10::ValueError where
  /// parameters were added or layers replaced since the module was made.
  void reset_parameters() {
    auto& self = static_cast<Derived&>(*this);
    take_values(Derived::kName, *std::make_shared<Derived>(self.get_config()), self);
  }

 protected:
  template <class Module, class... Arguments>
  friend struct torch::nn::AnyModuleHolder;

  bool _forward_has_default_args() override { return true; }
  unsigned int _forward_num_required_args() override { return 1; }
  std::vector<torch::nn::AnyValue> _forward_populate_default_args(
      std::vector<torch::nn::AnyValue>&& arguments) override {
    return with_default_inputs(std::move(arguments));
  }
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/module/callable_module.ipp>
#endif
