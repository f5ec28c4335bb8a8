// Attention where LibTorch's containers expect a tensor in and a tensor out.

#include <gtest/gtest.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>
#include <attzoo/attzoo.hpp>

#include <memory>

#include "support/every_mechanism.hpp"
#include "support/expect_error.hpp"

namespace attzoo::testing::output_of_test {
namespace {

TEST(OutputOf, IsTheOutputOfEveryMechanism) {
  for (const auto& [name, make] : every_mechanism({.width = 16, .heads = 2, .span = 4})) {
    auto attn = make();
    attn->eval();
    torch::nn::Sequential model(torch::nn::Linear(8, attn.input_dim()), output_of(attn),
                                torch::nn::Linear(attn.d_model(), 3));
    const auto x = torch::randn({2, 7, 8});
    const auto h = model[0]->as<torch::nn::LinearImpl>()->forward(x);
    const auto y = model[2]->as<torch::nn::LinearImpl>()->forward(attn(h).output);
    EXPECT_TRUE(torch::equal(model->forward(x), y)) << name;
  }
}

TEST(OutputOf, GivesItsInputsToEveryCall) {
  MultiHeadSelfAttention attn(16, 2);
  torch::nn::Sequential model(output_of(attn, {.causal = true}));
  const auto x = torch::randn({2, 7, 16});
  EXPECT_TRUE(torch::equal(model->forward(x), attn(x, {.causal = true}).output));
  EXPECT_FALSE(torch::equal(model->forward(x), attn(x).output));
}

TEST(OutputOf, RegistersTheModuleItself) {
  auto block = transformer_block(MultiHeadSelfAttention(16, 2));
  torch::nn::Sequential model(output_of(block), torch::nn::Linear(16, 1));
  const auto named = model->named_parameters();
  ASSERT_TRUE(named.contains("0.attn.attn.w_q.weight"));
  EXPECT_TRUE(named["0.attn.attn.w_q.weight"].is_same(block->attn->w_q->weight));
  EXPECT_EQ(named.size(), block->parameters().size() + 2);

  const auto before = block->attn->w_v->weight.clone();
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  model->forward(torch::randn({2, 5, 16})).sum().backward();
  optimizer.step();
  EXPECT_FALSE(torch::equal(block->attn->w_v->weight, before));
  model->eval();
  EXPECT_FALSE(block->is_training());
}

TEST(OutputOf, ClonesShareNothing) {
  auto block = transformer_block(MultiHeadSelfAttention(16, 2));
  torch::nn::Sequential model(output_of(block, {.causal = true}));
  model->eval();
  const auto copy = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(model->clone());
  ASSERT_TRUE(copy);
  EXPECT_FALSE(copy->ptr(0)->is_training());
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({2, 5, 16}), y = model->forward(x);
  EXPECT_TRUE(torch::equal(copy->forward(x), y));
  block->attn->w_o->weight.zero_();
  EXPECT_TRUE(torch::equal(copy->forward(x), y));
  EXPECT_FALSE(torch::equal(model->forward(x), y));
}

TEST(OutputOf, RefusesAnEmptyHolder) {
  expect_error([] { output_of(MultiHeadSelfAttention(nullptr)); }, {"empty holder"});
}

}  // namespace
}  // namespace attzoo::testing::output_of_test
