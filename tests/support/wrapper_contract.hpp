#pragma once
/// \file
/// What every module around another attention module must do.

#include <gtest/gtest.h>
#include <torch/nn/modules/container/any.h>
#include <torch/serialize.h>
#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/io/state_dict.hpp>

#include <sstream>

#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"
#include "support/reset_parameters.hpp"

namespace attzoo::testing {

template <class Module>
void expect_lives_as_a_module(Module m, int64_t input_dim) {
  using Impl = typename Module::ContainedType;
  torch::manual_seed(3);
  m->to(torch::kFloat64);
  m->eval();
  const auto x = torch::randn({2, 6, input_dim}, torch::kFloat64);
  const auto want = m(x).output;

  const auto copy = std::dynamic_pointer_cast<Impl>(m->clone());
  EXPECT_TRUE(torch::equal(copy->forward(x).output, want));
  ASSERT_EQ(copy->parameters().size(), m->parameters().size());
  for (const auto& p : copy->named_parameters()) {
    EXPECT_NE(p.value().data_ptr(), m->named_parameters()[p.key()].data_ptr()) << p.key();
  }

  Module rebuilt(m->get_config());
  rebuilt->to(torch::kFloat64);
  rebuilt->eval();
  EXPECT_FALSE(torch::equal(rebuilt(x).output, want));
  std::stringstream stream;
  torch::save(m, stream);
  torch::load(rebuilt, stream);
  EXPECT_TRUE(torch::equal(rebuilt(x).output, want));

  torch::nn::AnyModule any(m);
  EXPECT_TRUE(torch::equal(any.template forward<AttentionResult>(x).output, want));

  Module none(nullptr), shared(m.ptr());
  EXPECT_TRUE(none.is_empty());
  EXPECT_TRUE(torch::equal(shared(x).output, want));
  std::stringstream text;
  text << m;
  EXPECT_NE(text.str().find(std::string("attzoo::") + Impl::kName), std::string::npos);
  EXPECT_EQ(m(x.slice(0, 0, 0)).output.size(0), 0);
  expect_error([&] { m(x[0]); }, {"[batch, seq, input_dim"});
  expect_reset_parameters(rebuilt);
}

template <class Module>
void expect_gradients(Module m, int64_t input_dim) {
  torch::manual_seed(4);
  m->to(torch::kFloat64);
  m->eval();
  auto x = torch::randn({2, 5, input_dim}, torch::kFloat64).requires_grad_();
  Tensors leaves{x};
  for (const auto& p : m->parameters()) leaves.push_back(p);
  const auto cotangent = torch::randn({2, 5, m->d_model()}, torch::kFloat64);
  const auto f = [&] { return (m(x).output * cotangent).sum(); };
  gradcheck(f, leaves, Module::ContainedType::kName);
  gradgradcheck(f, {x}, Module::ContainedType::kName);
}

}  // namespace attzoo::testing
