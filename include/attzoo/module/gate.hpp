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

#ifndef ATTZOO_COMPILED
#include <attzoo/module/gate.ipp>
#endif
