#pragma once
/// \file
/// What mixing wrappers share: a gate that gives each token a number in (0, 1).

#include <attzoo/config.hpp>
#include <attzoo/module/wrapper.hpp>

#include <torch/nn/modules/container/sequential.h>

#include <iosfwd>
#include <optional>

namespace attzoo {

/// Options of the mixing wrappers.
struct GateOptions {
  std::optional<int64_t> gate_hidden = std::nullopt;  ///< hidden layer of the gate; default none
  bool gate_bias = true;                              ///< biases of the gate's layers
  std::optional<int64_t> input_dim = std::nullopt;    ///< features of x; default the wrapped one's
  double dropout = 0.0;  ///< on the gate's hidden layer, while training
};

namespace core {

/// Throws c10::ValueError for an input_dim that is not the wrapped module's, and for gate_hidden
/// and dropout out of range.
ATTZOO_API void check_gate_options(const GateOptions& options, int64_t inner_input_dim,
                                   const char* name);

/// sigmoid(Linear(x)), or with a hidden layer sigmoid(Linear(Dropout(GELU(Linear(x))))):
/// [B, L, input_dim] -> [B, L, 1]. Layers keep LibTorch's default initialisation.
ATTZOO_API torch::nn::Sequential make_gate(int64_t input_dim, const GateOptions& options);

/// g * yes + (1 - g) * no, with g = gate(x) one number a token: all [B, L, features].
ATTZOO_API torch::Tensor mix(torch::nn::Sequential& gate, const torch::Tensor& x,
                             const torch::Tensor& yes, const torch::Tensor& no);

/// "attzoo::name(d_model=.., ...)".
ATTZOO_API void print_gated(std::ostream& stream, const char* name, int64_t d_model,
                            const GateOptions& options);

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/module/checks.hpp>
#include <attzoo/module/options.hpp>

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/linear.h>

namespace attzoo::core {

ATTZOO_API void check_gate_options(const GateOptions& options, int64_t inner_input_dim,
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
  check_dropout(name, options.dropout);
}

ATTZOO_API torch::nn::Sequential make_gate(int64_t input_dim, const GateOptions& options) {
  using namespace torch::nn;
  const auto linear = [&](int64_t from, int64_t to) {
    return Linear(LinearOptions(from, to).bias(options.gate_bias));
  };
  if (!options.gate_hidden) return Sequential(linear(input_dim, 1), Sigmoid());
  return Sequential(linear(input_dim, *options.gate_hidden), GELU(),
                    torch::nn::Dropout(options.dropout), linear(*options.gate_hidden, 1),
                    Sigmoid());
}

ATTZOO_API torch::Tensor mix(torch::nn::Sequential& gate, const torch::Tensor& x,
                             const torch::Tensor& yes, const torch::Tensor& no) {
  const auto g = gate->forward(x);  // [B, L, 1]
  return g * yes + (1 - g) * no;
}

ATTZOO_API void print_gated(std::ostream& stream, const char* name, int64_t d_model,
                            const GateOptions& options) {
  stream << "attzoo::" << name << "(d_model=" << d_model;
  print_options(stream, options);
  stream << ")";
}

}  // namespace attzoo::core

#endif
