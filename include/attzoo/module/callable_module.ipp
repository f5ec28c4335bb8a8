#pragma once
// Definitions of callable_module.hpp.

#include <attzoo/module/callable_module.hpp>

namespace attzoo::core {

ATTZOO_API std::vector<torch::nn::AnyValue> with_default_inputs(
    std::vector<torch::nn::AnyValue> arguments) {
  if (arguments.size() < 2) arguments.emplace_back(AttentionInputs());
  return arguments;
}

ATTZOO_API void take_values(const char* who, const torch::nn::Module& fresh,
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

}  // namespace attzoo::core
