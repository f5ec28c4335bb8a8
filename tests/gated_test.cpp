#include <gtest/gtest.h>
#include <attzoo/gated.hpp>
#include <attzoo/local.hpp>
#include <attzoo/multi_head.hpp>

#include "support/wrapper_contract.hpp"

namespace attzoo::testing {
namespace {

GatedSelfAttention<MultiHeadSelfAttentionImpl> make(int64_t input_dim, GateOptions options = {}) {
  return GatedSelfAttention(
      MultiHeadSelfAttention({.d_model = 12, .num_heads = 3, .input_dim = input_dim, .dropout = 0}),
      options);
}

TEST(Gated, IsItsDefinition) {
  for (const int64_t input_dim : {12, 7}) {
    for (const bool hidden : {false, true}) {
      auto m = make(input_dim, hidden ? GateOptions{.gate_hidden = 5} : GateOptions{});
      m->to(torch::kFloat64);
      m->eval();
      const auto x = torch::randn({2, 9, input_dim}, torch::kFloat64);
      const auto p = state_dict(*m);
      auto z = torch::linear(x, p.at("gate.0.weight"), p.at("gate.0.bias"));
      if (hidden) {
        z = torch::linear(torch::gelu(z), p.at("gate.3.weight"), p.at("gate.3.bias"));
      }
      const auto g = torch::sigmoid(z);
      const auto residual =
          input_dim == 12 ? x : torch::linear(x, p.at("x_proj.weight"), p.at("x_proj.bias"));
      const auto inner = m->attn->forward(x, {.causal = true});
      const auto r = m(x, {.causal = true});
      EXPECT_TRUE(torch::allclose(r.output, g * inner.output + (1 - g) * residual));
      EXPECT_TRUE(torch::equal(r.weights, inner.weights));
      EXPECT_TRUE(torch::equal(r.lse, inner.lse));
    }
  }
}

TEST(Gated, NamesAreThePythonOnes) {
  std::vector<std::string> names;
  for (const auto& p : make(7, {.gate_hidden = 4})->named_parameters()) names.push_back(p.key());
  EXPECT_EQ(names, (std::vector<std::string>{"attn.w_q.weight", "attn.w_k.weight",
                                             "attn.w_v.weight", "attn.w_o.weight", "gate.0.weight",
                                             "gate.0.bias", "gate.3.weight", "gate.3.bias",
                                             "x_proj.weight", "x_proj.bias"}));
  EXPECT_EQ(make(12, {.gate_bias = false})->parameters().size(), 5u);
}

TEST(Gated, LivesAsAModule) { expect_lives_as_a_module(make(7, {.gate_hidden = 4}), 7); }

TEST(Gated, GradientsAreRight) { expect_gradients(make(7, {.gate_hidden = 4}), 7); }

TEST(Gated, WrappersNest) {
  GatedSelfAttention<GatedSelfAttentionImpl<MultiHeadSelfAttentionImpl>> outer(
      make(12), GateOptions{.gate_hidden = 3});
  EXPECT_EQ(outer(torch::randn({1, 4, 12})).output.sizes(), (std::vector<int64_t>{1, 4, 12}));
  EXPECT_EQ(outer->get_config().attn.attn.num_heads, 3);
}

TEST(Gated, Errors) {
  expect_error([] { make(12, {.input_dim = 5}); }, {"GatedSelfAttention", "input_dim", "12", "5"});
  expect_error([] { make(12, {.gate_hidden = 0}); }, {"GatedSelfAttention", "gate_hidden", "0"});
  expect_error([] { make(12, {.dropout = 2}); }, {"GatedSelfAttention", "dropout", "2"});
  expect_error([] { GatedSelfAttention(MultiHeadSelfAttention(nullptr)); },
               {"GatedSelfAttention", "empty"});
}

}  // namespace
}  // namespace attzoo::testing
