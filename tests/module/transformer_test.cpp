#include <gtest/gtest.h>
#include <attzoo/local.hpp>
#include <attzoo/module/transformer.hpp>
#include <attzoo/multi_head.hpp>

#include "support/documents_contract.hpp"
#include "support/wrapper_contract.hpp"

namespace attzoo::testing {
namespace {

TransformerBlock<MultiHeadSelfAttentionImpl> make(TransformerBlockOptions options = {}) {
  return TransformerBlock(MultiHeadSelfAttention({.d_model = 12, .num_heads = 3, .dropout = 0}),
                          options);
}

TEST(Transformer, IsItsDefinition) {
  auto m = make({.mlp_hidden = 20});
  m->to(torch::kFloat64);
  const auto p = state_dict(*m);
  const auto x = torch::randn({2, 7, 12}, torch::kFloat64);
  const auto norm = [&](const torch::Tensor& t, const std::string& name) {
    const auto centred = t - t.mean(-1, true);
    const auto scaled = centred / (centred.square().mean(-1, true) + 1e-5).sqrt();
    return scaled * p.at(name + ".weight") + p.at(name + ".bias");
  };
  const auto h = x + m->attn->forward(norm(x, "norm_attn"), {.causal = true}).output;
  const auto hidden =
      torch::gelu(torch::linear(norm(h, "norm_mlp"), p.at("mlp_in.weight"), p.at("mlp_in.bias")));
  const auto want = h + torch::linear(hidden, p.at("mlp_out.weight"), p.at("mlp_out.bias"));
  const auto r = m(x, {.causal = true});
  EXPECT_TRUE(torch::allclose(r.output, want));
  EXPECT_EQ(r.weights.sizes(), (std::vector<int64_t>{2, 3, 7, 7}));
}

TEST(Transformer, LivesAsAModule) { expect_lives_as_a_module(make(), 12); }

TEST(Transformer, GradientsAreRight) { expect_gradients(make({.mlp_hidden = 9}), 12); }

TEST(Transformer, NestsByItsFactory) {
  auto once = make({.mlp_hidden = 5});
  auto twice = transformer_block(once, {.mlp_hidden = 6});
  const TransformerBlock copy(once);
  EXPECT_EQ(copy.get(), once.get());
  const auto p = state_dict(*twice);
  EXPECT_TRUE(torch::equal(p.at("attn.attn.w_q.weight"), once->attn->w_q->weight));
  EXPECT_EQ(p.at("attn.mlp_in.weight").size(0), 5);
  EXPECT_EQ(p.at("mlp_in.weight").size(0), 6);
  const auto x = torch::randn({2, 5, 12});
  const auto h = x + once(twice->norm_attn(x)).output;
  const auto want = h + twice->mlp_out(torch::gelu(twice->mlp_in(twice->norm_mlp(h))));
  EXPECT_TRUE(torch::allclose(twice(x).output, want, 1e-5, 1e-6));
}

TEST(Transformer, DocumentsAreAlone) {
  auto m = make();
  expect_packs(m, "transformer block");
}

TEST(Transformer, DropoutActsWhileTraining) {
  auto m = make({.dropout = 0.5});
  const auto x = torch::randn({2, 7, 12});
  EXPECT_FALSE(torch::equal(m(x).output, m(x).output));
  m->eval();
  EXPECT_TRUE(torch::equal(m(x).output, m(x).output));
}

TEST(Transformer, Errors) {
  expect_error([] { make({.mlp_hidden = 0}); }, {"TransformerBlock", "mlp_hidden", "0"});
  expect_error([] { make({.mlp_hidden = int64_t{1} << 40}); },
               {"TransformerBlock", "mlp_hidden=1099511627776"});
  expect_error([] { make({.dropout = -1}); }, {"TransformerBlock", "dropout", "-1"});
  expect_error([] { TransformerBlock(LocalSelfAttention({.d_model = 16, .input_dim = 8})); },
               {"TransformerBlock", "input_dim=8", "d_model=16"});
  auto m = make();
  const auto x = torch::randn({2, 6, 12});
  expect_error([&] { m({}); }, {"TransformerBlock", "x", "undefined"});
  expect_error([&] { m(x.slice(2, 1)); }, {"TransformerBlock", "x", "input_dim=12", "[2, 6, 11]"});
  expect_error([&] { m(x.to(torch::kFloat64)); }, {"TransformerBlock", "x", "Float", "Double"});
  expect_error([&] { m(x.to_sparse()); }, {"TransformerBlock", "x", "dense"});
  expect_error([] { TransformerBlock(LocalSelfAttention(nullptr)); },
               {"TransformerBlock", "empty"});
}

}  // namespace
}  // namespace attzoo::testing
