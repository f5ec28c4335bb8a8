#include <gtest/gtest.h>
#include <attzoo/gated.hpp>
#include <attzoo/local.hpp>
#include <attzoo/multi_head.hpp>

#include "support/documents_contract.hpp"
#include "support/wrapper_contract.hpp"

namespace attzoo::testing::gated_test {
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

TEST(Gated, LivesAsAModule) { expect_lives_as_a_module(make(7, {.gate_hidden = 4})); }

TEST(Gated, GradientsAreRight) { expect_gradients(make(7, {.gate_hidden = 4})); }

/// A holder built from a holder of its kind is a copy; gated() gates again.
TEST(Gated, NestsByItsFactory) {
  auto once = gated(MultiHeadSelfAttention({.d_model = 12, .num_heads = 3, .dropout = 0}));
  auto twice = gated(once, {.gate_hidden = 3});
  const GatedSelfAttention copy(once);
  EXPECT_EQ(copy.get(), once.get());
  const auto p = state_dict(*twice);
  EXPECT_TRUE(torch::equal(p.at("attn.attn.w_q.weight"), once->attn->w_q->weight));
  EXPECT_EQ(p.at("gate.0.weight").sizes(), (std::vector<int64_t>{3, 12}));
  EXPECT_EQ(p.at("attn.gate.0.weight").sizes(), (std::vector<int64_t>{1, 12}));
  EXPECT_EQ(twice->get_config().attn.attn.num_heads, 3);
  const auto x = torch::randn({2, 5, 12});
  const auto hidden = torch::gelu(torch::linear(x, p.at("gate.0.weight"), p.at("gate.0.bias")));
  const auto g = torch::sigmoid(torch::linear(hidden, p.at("gate.3.weight"), p.at("gate.3.bias")));
  EXPECT_TRUE(torch::allclose(twice(x, {.causal = true}).output,
                              g * once(x, {.causal = true}).output + (1 - g) * x, 1e-5, 1e-6));
}

TEST(Gated, DocumentsAreAlone) {
  auto m = make(7);
  expect_packs(m, "gated");
}

TEST(Gated, Errors) {
  expect_error([] { make(12, {.input_dim = 5}); }, {"GatedSelfAttention", "input_dim", "12", "5"});
  expect_error([] { make(12, {.gate_hidden = 0}); }, {"GatedSelfAttention", "gate_hidden", "0"});
  expect_error([] { make(12, {.gate_hidden = int64_t{1} << 40}); },
               {"GatedSelfAttention", "gate_hidden=1099511627776"});
  expect_error([] { make(12, {.dropout = std::nan("")}); }, {"GatedSelfAttention", "dropout"});
  expect_error([] { make(12, {.dropout = 2}); }, {"GatedSelfAttention", "dropout", "2"});
  expect_error([] { GatedSelfAttention(MultiHeadSelfAttention(nullptr)); },
               {"GatedSelfAttention", "empty"});
}

}  // namespace
}  // namespace attzoo::testing::gated_test
