#pragma once
/// \file
/// Modules made of names, to load weights into.

#include <attzoo/io/state_dict.hpp>

#include <map>
#include <memory>
#include <string>

namespace attzoo::testing {

using NamedTensors = std::map<std::string, torch::Tensor>;

/// A module of nothing but parameters of these names, in whose names `.` are levels.
class Parameters : public torch::nn::Module {
 public:
  Parameters() : torch::nn::Module("Parameters") {}
  explicit Parameters(const NamedTensors& tensors) : Parameters() {
    for (const auto& [name, t] : tensors) add(name, t);
  }
  void add(const std::string& name, const torch::Tensor& t) {
    const auto dot = name.find('.');
    if (dot == std::string::npos) {
      register_parameter(name, t, /*requires_grad=*/t.is_floating_point());
      return;
    }
    const auto head = name.substr(0, dot);
    if (named_children().find(head) == nullptr) {
      register_module(head, std::make_shared<Parameters>());
    }
    std::dynamic_pointer_cast<Parameters>(named_children()[head])->add(name.substr(dot + 1), t);
  }
  torch::Tensor operator[](const std::string& name) const {
    return state_dict(*this).at(name).detach();
  }
};

}  // namespace attzoo::testing
