#pragma once
/// \file
/// reset_parameters() of a module with get_config().

#include <gtest/gtest.h>
#include <torch/optim/sgd.h>

#include <memory>

namespace attzoo::testing {

/// It gives all parameters and buffers, in place, the values that a new module has for the same
/// seed, whatever the dtype.
template <class Module>
void expect_reset_parameters(Module m) {
  const auto tensors = [](const torch::nn::Module& of) {
    auto all = of.named_parameters();
    all.update(of.named_buffers());
    return all;
  };
  const auto before = tensors(*m);
  torch::optim::SGD optimizer(m->parameters(), 0.1);
  const torch::NoGradGuard no_grad;
  for (const auto& item : before) item.value().zero_();
  torch::manual_seed(11);
  m->reset_parameters();
  torch::manual_seed(11);
  const Module fresh(m->get_config());
  const auto after = tensors(*m), want = tensors(*fresh);
  ASSERT_EQ(after.size(), want.size());
  for (const auto& item : after) {
    EXPECT_EQ(item.value().data_ptr(), before[item.key()].data_ptr()) << item.key();
    EXPECT_TRUE(torch::equal(item.value(), want[item.key()].to(item.value().scalar_type())))
        << item.key();
  }
  for (auto& p : m->parameters()) p.mutable_grad() = torch::ones_like(p);
  optimizer.step();
  for (const auto& p : m->named_parameters()) {
    EXPECT_TRUE(torch::allclose(p.value(), want[p.key()].to(p.value().scalar_type()) - 0.1))
        << p.key();
  }
}

}  // namespace attzoo::testing
