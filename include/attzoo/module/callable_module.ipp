#pragma once
// Definitions of callable_module.hpp.

#include <attzoo/module/callable_module.hpp>

namespace attzoo::core {

ATTZOO_API std::vector<torch::nn::AnyValue> with_default_inputs(
    std::vector<torch::nn::AnyValue> arguments) {
  if (arguments.size() < 2) arguments.emplace_back(AttentionInputs());
  return arguments;
}

}  // namespace attzoo::core
