#include <gtest/gtest.h>
#include <attzoo/combined.hpp>
#include <attzoo/gated.hpp>
#include <attzoo/local.hpp>
#include <attzoo/multi_head.hpp>

#include "support/wrapper_contract.hpp"

namespace attzoo::testing {
namespace {

auto make(int64_t input_dim, GateOptions options = {}) {
  return CombinedAttention(
      LocalSelfAttention(
          {.d_model = 12, .input_dim = input_dim, .window_size = 3, .num_heads = 2, .dropout = 0}),
      MultiHeadSelfAttention({.d_model = 12, .num_heads = 3, .input_dim = input_dim, .dropout = 0}),
      options);
}

TEST(Combined, IsItsDefinition) {
  for (const bool hidden : {false, true}) {
    auto m = make(7, hidden ? GateOptions{.gate_hidden = 5} : GateOptions{});
    m->to(torch::kFloat64);
    m->eval();
    const auto x = torch::randn({2, 9, 7}, torch::kFloat64);
    const auto p = state_dict(*m);
    auto z = torch::linear(x, p.at("gate.0.weight"), p.at("gate.0.bias"));
    if (hidden) z = torch::linear(torch::gelu(z), p.at("gate.3.weight"), p.at("gate.3.bias"));
    const auto g = torch::sigmoid(z);
    const AttentionInputs in{.key_padding_mask = create_padding_mask(std::vector<int64_t>{9, 4})};
    const auto a = m->attn_a->forward(x, in), b = m->attn_b->forward(x, in);
    const auto r = m(x, in);
    EXPECT_TRUE(torch::allclose(r.output, g * a.output + (1 - g) * b.output));
    EXPECT_TRUE(torch::equal(r.weights, a.weights));
    EXPECT_TRUE(torch::equal(r.lse, a.lse));
  }
}

TEST(Combined, LivesAsAModule) { expect_lives_as_a_module(make(7, {.gate_hidden = 4}), 7); }

TEST(Combined, GradientsAreRight) { expect_gradients(make(7, {.gate_bias = false}), 7); }

TEST(Combined, WrappersNest) {
  CombinedAttention mix(GatedSelfAttention(MultiHeadSelfAttention(12, 3)), make(12));
  EXPECT_EQ(mix(torch::randn({1, 4, 12})).output.sizes(), (std::vector<int64_t>{1, 4, 12}));
  EXPECT_EQ(mix->get_config().attn_b.attn_a.window_size, 3);
}

TEST(Combined, Errors) {
  expect_error(
      [] { CombinedAttention(MultiHeadSelfAttention(12, 3), MultiHeadSelfAttention(8, 2)); },
      {"CombinedAttention", "d_model", "12", "8"});
  expect_error(
      [] {
        CombinedAttention(MultiHeadSelfAttention(12, 3),
                          MultiHeadSelfAttention({.d_model = 12, .num_heads = 3, .input_dim = 5}));
      },
      {"CombinedAttention", "input_dim", "12", "5"});
  expect_error([] { make(12, {.input_dim = 5}); }, {"CombinedAttention", "input_dim", "12", "5"});
  expect_error(
      [] { CombinedAttention(MultiHeadSelfAttention(nullptr), MultiHeadSelfAttention(12, 3)); },
      {"CombinedAttention", "empty"});
}

}  // namespace
}  // namespace attzoo::testing
