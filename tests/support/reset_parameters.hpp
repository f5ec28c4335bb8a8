#pragma once
/// \file
/// reset_parameters() of a module with get_config().

#include <gtest/gtest.h>
#include <torch/nn/module.h>

#include <functional>
#include <memory>

namespace attzoo::testing {

/// It gives all parameters and buffers, in place, the values that a new module has for the same
/// seed, whatever the dtype. `make`: makes the new one.
void expect_reset_parameters(const torch::nn::Module& m, const std::function<void()>& reset,
                             const std::function<std::shared_ptr<torch::nn::Module>()>& make);

template <class Module>
void expect_reset_parameters(Module m) {
  expect_reset_parameters(
      *m, [&] { m->reset_parameters(); }, [&] { return Module(m->get_config()).ptr(); });
}

}  // namespace attzoo::testing
