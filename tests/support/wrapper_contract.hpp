#pragma once
/// \file
/// What every module must do as one of LibTorch's, and wrappers around other modules in particular.

#include <torch/nn/modules/container/any.h>
#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/io/state_dict.hpp>
#include <attzoo/module/any_attention.hpp>

#include <functional>
#include <string>

#include "support/expect_error.hpp"
#include "support/reset_parameters.hpp"

namespace attzoo::testing {

/// It is cloned, rebuilt, saved, loaded, called as an AnyModule, printed as `name`, and `reset`.
void expect_lives_as_a_module(const AnyAttention& m, torch::nn::AnyModule any,
                              const std::string& name, const std::function<void()>& reset);

template <class Module>
void expect_lives_as_a_module(Module m) {
  EXPECT_TRUE(Module(nullptr).is_empty());
  expect_lives_as_a_module(Module(m.ptr()), torch::nn::AnyModule(m), Module::ContainedType::kName,
                           [&] { m->reset_parameters(); });
}

/// Those of the output, to all parameters and x, and of those to x.
void expect_gradients(const AnyAttention& m);

}  // namespace attzoo::testing
