#pragma once
/// \file
/// What mechanisms of all kinds are to their callers, and how they make their layers.

#include <attzoo/config.hpp>
#include <attzoo/module/call.hpp>

#include <torch/nn/modules/linear.h>

#include <optional>
#include <string>

namespace attzoo::core {

/// The part of every mechanism's base that knows nothing of what it computes; it is compiled once.
class MechanismParts {
 public:
  /// Features of the output.
  int64_t d_model() const { return d_model_; }
  /// Features of x.
  int64_t input_dim() const { return callee_.input_dim; }
  /// Which inputs have a meaning here.
  TakenInputs takes() const { return callee_.takes; }

 protected:
  /// Throws c10::ValueError unless both sizes are > 0.
  MechanismParts(const Callee& callee, int64_t d_model);

  /// Throws c10::ValueError unless value > 0.
  void check_positive(const char* name, int64_t value) const;
  /// Throws c10::ValueError unless divisor > 0 divides value.
  void check_divides(const char* divisor_name, int64_t divisor, const char* name,
                     int64_t value) const;
  /// Throws c10::ValueError for more than 2^36 weights.
  void check_layer(const char* layer, int64_t from, int64_t to) const;
  /// An option that the size of layers comes from, for that error.
  void say_size(const char* option, int64_t value);

  /// Registers a new layer with `module`: Xavier uniform weights [to, from], biases of 0. Throws
  /// what check_layer() does.
  torch::nn::Linear new_projection(torch::nn::Module& module, const char* name, int64_t from,
                                   int64_t to, bool bias) const;

  /// What the checks of a call know.
  const Callee& callee() const { return callee_; }
  Callee& callee() { return callee_; }

 private:
  Callee callee_;
  int64_t d_model_;
  std::string sizes_;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/module/checks.hpp>

#include <torch/nn/init.h>

namespace attzoo::core {

ATTZOO_API MechanismParts::MechanismParts(const Callee& callee, int64_t d_model)
    : callee_(callee), d_model_(d_model) {
  check_positive("d_model", d_model);
  check_positive("input_dim", input_dim());
  say_size("d_model", d_model);
  say_size("input_dim", input_dim());
}

ATTZOO_API void MechanismParts::check_positive(const char* name, int64_t value) const {
  TORCH_CHECK_VALUE(value > 0, callee_.name, ": ", name, " must be > 0, got ", value);
}

ATTZOO_API void MechanismParts::check_divides(const char* divisor_name, int64_t divisor,
                                              const char* name, int64_t value) const {
  check_positive(divisor_name, divisor);
  TORCH_CHECK_VALUE(value % divisor == 0, callee_.name, ": ", divisor_name, " must divide ", name,
                    ", got ", divisor_name, "=", divisor, " ", name, "=", value);
}

ATTZOO_API void MechanismParts::say_size(const char* option, int64_t value) {
  sizes_ += c10::str(" ", option, "=", value);
}

ATTZOO_API void MechanismParts::check_layer(const char* layer, int64_t from, int64_t to) const {
  core::check_layer(callee_.name, layer, from, to, sizes_);
}

ATTZOO_API torch::nn::Linear MechanismParts::new_projection(torch::nn::Module& module,
                                                            const char* name, int64_t from,
                                                            int64_t to, bool bias) const {
  check_layer(name, from, to);
  auto layer = make_linear(from, to, bias);
  torch::nn::init::xavier_uniform_(layer->weight);
  if (bias) torch::nn::init::zeros_(layer->bias);
  return module.register_module(name, layer);
}

}  // namespace attzoo::core

#endif
