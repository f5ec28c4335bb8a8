#include <gtest/gtest.h>
#include <attzoo/combined.hpp>
#include <attzoo/gated.hpp>
#include <attzoo/linear.hpp>
#include <attzoo/local.hpp>
#include <attzoo/longformer.hpp>
#include <attzoo/module/transformer.hpp>
#include <attzoo/multi_head.hpp>

#include "support/documents_contract.hpp"
#include "support/wrapper_contract.hpp"

namespace attzoo::testing::combined_test {
namespace {

auto make(int64_t input_dim, GateOptions options = {}) {
  return CombinedAttention(
      LocalSelfAttention(
          {.d_model = 12, .num_heads = 2, .window_size = 3, .input_dim = input_dim, .dropout = 0}),
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

TEST(Combined, LivesAsAModule) { expect_lives_as_a_module(make(7, {.gate_hidden = 4})); }

TEST(Combined, GradientsAreRight) { expect_gradients(make(7, {.gate_bias = false})); }

TEST(Combined, WrappersNest) {
  CombinedAttention mix(GatedSelfAttention(MultiHeadSelfAttention(12, 3)), make(12));
  EXPECT_EQ(mix(torch::randn({1, 4, 12})).output.sizes(), (std::vector<int64_t>{1, 4, 12}));
  EXPECT_EQ(mix->get_config().attn_b.attn_a.window_size, 3);
}

TEST(Combined, NestsByItsFactory) {
  auto inner = make(12);
  auto outer = combined(inner, inner->attn_a);
  const auto p = state_dict(*outer);
  EXPECT_TRUE(torch::equal(p.at("attn_a.attn_b.w_q.weight"), inner->attn_b->w_q->weight));
  EXPECT_TRUE(torch::equal(p.at("attn_b.w_q.weight"), inner->attn_a->w_q->weight));
  const auto x = torch::randn({2, 5, 12});
  const auto g = outer->gate->forward(x);
  EXPECT_TRUE(torch::allclose(outer(x).output,
                              g * inner(x).output + (1 - g) * inner->attn_a->forward(x).output,
                              1e-5, 1e-6));
}

/// global_attention goes to the side that takes it, however deep.
TEST(Combined, PassesGlobalTokensToWhoTakesThem) {
  LongformerSelfAttention longformer(
      {.d_model = 12, .num_heads = 3, .window_size = 2, .dropout = 0});
  LocalSelfAttention local({.d_model = 12, .num_heads = 2, .window_size = 3, .dropout = 0});
  const auto x = torch::randn({2, 9, 12});
  const AttentionInputs in{.causal = true, .global_attention = torch::arange(9) == 4};
  const auto want_a = longformer(x, in).output, want_b = local(x, {.causal = true}).output;
  EXPECT_FALSE(torch::allclose(want_a, longformer(x, {.causal = true}).output));
  const auto check = [&](auto mix, const torch::Tensor& a, const torch::Tensor& b) {
    EXPECT_TRUE(mix->takes().global_attention);
    const auto g = mix->gate->forward(x);
    EXPECT_TRUE(torch::allclose(mix(x, in).output, g * a + (1 - g) * b, 1e-5, 1e-6));
  };
  check(combined(longformer, local), want_a, want_b);
  check(combined(local, longformer), want_b, want_a);
  auto wrapped = gated(longformer);
  check(combined(wrapped, local), wrapped(x, in).output, want_b);
  auto mixed = combined(longformer, local);
  check(combined(local, mixed), want_b, mixed(x, in).output);
  auto block = transformer_block(mixed);
  EXPECT_FALSE(torch::allclose(block(x, in).output, block(x, {.causal = true}).output));

  auto neither = combined(local, gated(local));
  EXPECT_FALSE(neither->takes().global_attention);
  expect_error([&] { neither(x, in); }, {"CombinedAttention", "global_attention",
                                         "attn_a and none in attn_b", "Longformer"});
  expect_error([&] { gated(local)(x, in); }, {"LocalSelfAttention", "global_attention"});
}

/// A mask must hold in both sides; what linear attention can honour it gets.
TEST(Combined, MaskAndLinearAttention) {
  auto mix = combined(MultiHeadSelfAttention({.d_model = 12, .num_heads = 3, .dropout = 0}),
                      LinearSelfAttention({.d_model = 12, .dropout = 0}));
  EXPECT_FALSE(mix->takes().mask);
  const auto x = torch::randn({2, 9, 12});
  expect_error(
      [&] {
        mix(x, {.mask = torch::ones({9, 9}, torch::kBool)});
      },
      {"CombinedAttention", "mask", "attn_b", "key_padding_mask", "causal"});
  expect_error(
      [&] {
        combined(mix->attn_b, mix->attn_a)(x, {.mask = torch::ones({9, 9}, torch::kBool)});
      },
      {"CombinedAttention", "mask", "attn_a"});
  const AttentionInputs in{.key_padding_mask = create_padding_mask(std::vector<int64_t>{9, 4}),
                           .causal = true};
  const auto g = mix->gate->forward(x);
  EXPECT_TRUE(torch::allclose(
      mix(x, in).output,
      g * mix->attn_a->forward(x, in).output + (1 - g) * mix->attn_b->forward(x, in).output, 1e-5,
      1e-6));
  expect_packs(mix, "combined");
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
}  // namespace attzoo::testing::combined_test
