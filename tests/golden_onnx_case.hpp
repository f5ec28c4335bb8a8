#pragma once
/// \file
/// What a case of ONNX gives an operator, and what it gives back.

#include <string>
#include <utility>

#include "golden_modern.hpp"

namespace attzoo::testing {

/// The outputs of an operator by name, from its inputs by name; `terms` of its longest sum.
struct OnnxResult {
  NamedTensors out;
  int64_t terms = 0;
};

/// The operator's inputs by name.
class OnnxInputs {
 public:
  explicit OnnxInputs(NamedTensors all) : all_(std::move(all)) {}
  /// An optional one, undefined where it is left out.
  torch::Tensor operator()(const std::string& name) const {
    const auto it = all_.find(name);
    return it == all_.end() ? torch::Tensor() : it->second;
  }
  /// Those of floating types in this one.
  OnnxInputs to(torch::ScalarType dtype) const {
    NamedTensors all = all_;
    for (auto& [name, t] : all) {
      if (t.is_floating_point()) t = t.to(dtype);
    }
    return OnnxInputs(std::move(all));
  }

 private:
  NamedTensors all_;
};

}  // namespace attzoo::testing
