#pragma once
/// \file
/// What mechanisms and wrappers are to LibTorch: modules that AnyModule and Sequential can call.

#include <attzoo/module/holder.hpp>

#include <torch/nn/cloneable.h>

#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace attzoo::core {

/// Gives the parameters and buffers of `module` the values of those of `fresh`, in place. Throws
/// c10::ValueError, and changes nothing, unless both have the same ones of the same sizes.
inline void take_values(const char* who, const torch::nn::Module& fresh,
                        torch::nn::Module& module) {
  const auto each = [&](const auto& f) {
    f(fresh.named_parameters(), module.named_parameters());
    f(fresh.named_buffers(), module.named_buffers());
  };
  each([who](const auto& from, const auto& to) {
    for (const auto& item : to) {
      const auto* value = from.find(item.key());
      TORCH_CHECK_VALUE(value && value->sizes() == item.value().sizes(), who,
                        ": reset_parameters knows what the constructor makes, which is no ",
                        item.key(), " ", item.value().sizes());
    }
    TORCH_CHECK_VALUE(from.size() == to.size(), who, ": reset_parameters expects the ", from.size(),
                      " parameters or buffers that the constructor makes, found ", to.size());
  });
  const torch::NoGradGuard no_grad;
  each([](const auto& from, const auto& to) {
    for (auto item : to) item.value().copy_(from[item.key()]);
  });
}

/// What learns in `from` learns in its copy, and no more: LibTorch's clone() makes all learn.
inline void copy_learning(const torch::nn::Module& from, const torch::nn::Module& copy) {
  auto copied = copy.named_parameters();
  for (const auto& item : from.named_parameters()) {
    copied[item.key()].set_requires_grad(item.value().requires_grad());
  }
}

/// A module whose forward(x, inputs) is called with x alone as well: what LibTorch's macro
/// FORWARD_HAS_DEFAULT_ARGS says, but compiled once.
template <class Derived>
class CallableModule : public torch::nn::Cloneable<Derived>, public MakesCache {
 public:
  /// A copy that shares nothing with the module, and learns where it does.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override {
    auto copy = torch::nn::Cloneable<Derived>::clone(device);
    copy_learning(*this, *copy);
    return copy;
  }

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
    if (arguments.size() < 2) arguments.emplace_back(AttentionInputs());
    return std::move(arguments);
  }
};

}  // namespace attzoo::core
