#pragma once
/// \file
/// What the wrapping mechanisms share: a gate that gives each token a number in (0, 1).

#include <attzoo/module/self_attention.hpp>

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/dropout.h>

namespace attzoo {

/// Options of the wrapping mechanisms.
struct GateOptions {
  std::optional<int64_t> input_dim = std::nullopt;    ///< features of x; default the wrapped one's
  std::optional<int64_t> gate_hidden = std::nullopt;  ///< hidden layer of the gate; default none
  bool gate_bias = true;                              ///< biases of the gate's layers
  double dropout = 0.0;  ///< on the gate's hidden layer, while training
};

namespace core {

inline void check_gate_options(const GateOptions& options, int64_t inner_input_dim,
                               const char* name) {
  TORCH_CHECK_VALUE(!options.input_dim || *options.input_dim == inner_input_dim, name,
                    ": input_dim must be that of the wrapped module, ", inner_input_dim, ", got ",
                    *options.input_dim);
  TORCH_CHECK_VALUE(!options.gate_hidden || *options.gate_hidden > 0, name,
                    ": gate_hidden must be > 0, got ", *options.gate_hidden);
  if (options.gate_hidden) {
    check_layer(name, "gate", inner_input_dim, *options.gate_hidden,
                c10::str(" gate_hidden=", *options.gate_hidden, " input_dim=", inner_input_dim));
  }
  TORCH_CHECK_VALUE(options.dropout >= 0 && options.dropout <= 1, name,
                    ": dropout must be in [0, 1], got ", options.dropout);
}

/// sigmoid(Linear(x)), or with a hidden layer sigmoid(Linear(Dropout(GELU(Linear(x))))):
/// [B, L, input_dim] -> [B, L, 1]. Layers keep LibTorch's default initialisation.
inline torch::nn::Sequential make_gate(int64_t input_dim, const GateOptions& options) {
  using namespace torch::nn;
  const auto linear = [&](int64_t from, int64_t to) {
    return Linear(LinearOptions(from, to).bias(options.gate_bias));
  };
  if (!options.gate_hidden) return Sequential(linear(input_dim, 1), Sigmoid());
  return Sequential(linear(input_dim, *options.gate_hidden), GELU(),
                    torch::nn::Dropout(options.dropout), linear(*options.gate_hidden, 1),
                    Sigmoid());
}

inline void print_gate_options(std::ostream& stream, const GateOptions& options) {
  stream << ", gate_hidden=";
  if (options.gate_hidden) {
    stream << *options.gate_hidden;
  } else {
    stream << "none";
  }
  stream << ", gate_bias=" << std::boolalpha << options.gate_bias << std::noboolalpha
         << ", dropout=" << options.dropout << ")";
}

}  // namespace core
}  // namespace attzoo
