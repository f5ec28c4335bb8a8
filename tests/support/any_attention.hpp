#pragma once
/// \file
/// A mechanism that is chosen at run time, so that wrappers can be built around any other.

#include <attzoo/module/wrapper.hpp>

#include <concepts>
#include <functional>
#include <memory>
#include <string>

namespace attzoo::testing {

class AnyAttentionImpl : public torch::nn::Cloneable<AnyAttentionImpl> {
 public:
  using Config = std::function<std::shared_ptr<AnyAttentionImpl>()>;  // makes another one

  /// A template, or else it would be asked whether a module holder converts to a function.
  template <std::same_as<Config> Make>
  explicit AnyAttentionImpl(const Make& make) : AnyAttentionImpl(*make()) {}
  template <class Impl>
  explicit AnyAttentionImpl(const torch::nn::ModuleHolder<Impl>& module)
      : d_model_(module->d_model()),
        input_dim_(module->input_dim()),
        takes_(module->takes()),
        config_([config = module->get_config()] {
          return std::make_shared<AnyAttentionImpl>(
              torch::nn::ModuleHolder<Impl>(std::make_shared<Impl>(config)));
        }) {
    auto impl = module.ptr();
    register_module("any", impl);
    forward_ = [impl](const torch::Tensor& x, const AttentionInputs& in) {
      return impl->forward(x, in);
    };
  }

  void reset() override {}
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    return forward_(x, inputs);
  }
  int64_t d_model() const { return d_model_; }
  int64_t input_dim() const { return input_dim_; }
  TakenInputs takes() const { return takes_; }
  Config get_config() const { return config_; }

 private:
  int64_t d_model_, input_dim_;
  TakenInputs takes_;
  Config config_;
  std::function<AttentionResult(const torch::Tensor&, const AttentionInputs&)> forward_;
};

using AnyAttention = torch::nn::ModuleHolder<AnyAttentionImpl>;

template <class Impl>
AnyAttention erase(const torch::nn::ModuleHolder<Impl>& module) {
  return AnyAttention(std::make_shared<AnyAttentionImpl>(module));
}

/// The name that a tensor has without the erasure: "any.attn.any.w_q.weight" -> "attn.w_q.weight".
inline std::string plain_name(std::string name) {
  for (size_t at; (at = name.find("any.")) != std::string::npos;) name.erase(at, 4);
  return name;
}

}  // namespace attzoo::testing
