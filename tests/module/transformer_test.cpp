#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <attzoo/local.hpp>
#include <attzoo/module/transformer.hpp>
#include <attzoo/multi_head.hpp>

#include <cmath>
#include <map>
#include <sstream>

#include "support/documents_contract.hpp"
#include "support/wrapper_contract.hpp"

namespace attzoo::testing::transformer_test {
namespace {

TransformerBlock<MultiHeadSelfAttentionImpl> make(TransformerBlockOptions options = {}) {
  return TransformerBlock(MultiHeadSelfAttention({.d_model = 12, .num_heads = 3, .dropout = 0}),
                          options);
}

/// Every combination of what changes the formula.
std::vector<TransformerBlockOptions> all_options() {
  std::vector<TransformerBlockOptions> all;
  for (const auto norm : {NormKind::kLayerNorm, NormKind::kRMSNorm}) {
    for (const auto placement : {NormPlacement::kPre, NormPlacement::kPost,
                                 NormPlacement::kParallel, NormPlacement::kSandwich}) {
      for (const auto activation :
           {Activation::kGelu, Activation::kGeluTanh, Activation::kRelu, Activation::kSilu}) {
        for (const bool gated : {false, true}) {
          all.push_back({.mlp_hidden = 9,
                         .norm = norm,
                         .norm_eps = 0.25,
                         .norm_placement = placement,
                         .activation = activation,
                         .mlp_gated = gated,
                         .mlp_bias = all.size() % 3 != 1});
        }
      }
    }
  }
  return all;
}

/// Norms and biases are made 1 and 0, which would hide that one is left out.
template <class Module>
void randomize(Module& m) {
  const torch::NoGradGuard no_grad;
  for (auto& p : m->parameters()) p.uniform_(-1, 1);
}

/// The block by its formula, of its parameters by name.
struct Definition {
  std::map<std::string, torch::Tensor> p;
  TransformerBlockOptions o;

  torch::Tensor norm(const torch::Tensor& t, const std::string& name) const {
    const bool rms = o.norm == NormKind::kRMSNorm;
    const auto centred = rms ? t : t - t.mean(-1, true);
    const auto scaled = centred / (centred.square().mean(-1, true) + o.norm_eps).sqrt();
    const auto y = scaled * p.at(name + ".weight");
    return rms ? y : y + p.at(name + ".bias");
  }
  torch::Tensor linear(const torch::Tensor& t, const std::string& name) const {
    const auto y = t.matmul(p.at(name + ".weight").t());
    return o.mlp_bias ? y + p.at(name + ".bias") : y;
  }
  torch::Tensor activate(const torch::Tensor& t) const {
    switch (o.activation) {
      case Activation::kGelu:
        return t * (1 + torch::erf(t / std::sqrt(2.0))) / 2;
      case Activation::kGeluTanh:
        return t * (1 + torch::tanh(std::sqrt(2 / M_PI) * (t + 0.044715 * t.pow(3)))) / 2;
      case Activation::kRelu:
        return torch::maximum(t, torch::zeros_like(t));
      case Activation::kSilu:
        return t / (1 + torch::exp(-t));
    }
    return {};
  }
  torch::Tensor mlp(const torch::Tensor& t) const {
    if (!o.mlp_gated) return linear(activate(linear(t, "mlp_in")), "mlp_out");
    return linear(activate(linear(t, "mlp_gate")) * linear(t, "mlp_in"), "mlp_out");
  }
  template <class Attention>
  torch::Tensor operator()(const torch::Tensor& x, const Attention& attn) const {
    switch (o.norm_placement) {
      case NormPlacement::kPre: {
        const auto h = x + attn(norm(x, "norm_attn"));
        return h + mlp(norm(h, "norm_mlp"));
      }
      case NormPlacement::kPost: {
        const auto h = norm(x + attn(x), "norm_attn");
        return norm(h + mlp(h), "norm_mlp");
      }
      case NormPlacement::kParallel: {
        const auto n = norm(x, "norm_attn");
        return x + attn(n) + mlp(n);
      }
      case NormPlacement::kSandwich: {
        const auto h = x + norm(attn(norm(x, "norm_attn")), "norm_attn_out");
        return h + norm(mlp(norm(h, "norm_mlp")), "norm_mlp_out");
      }
    }
    return {};
  }
};

TEST(Transformer, IsItsDefinition) {
  torch::manual_seed(0);
  auto every = all_options();
  every.push_back({.mlp_hidden = 20});  // the defaults
  for (const auto& o : every) {
    auto m = make(o);
    m->to(torch::kFloat64);
    randomize(m);
    const auto x = torch::randn({2, 7, 12}, torch::kFloat64);
    const auto attn = [&](const torch::Tensor& t) {
      return m->attn->forward(t, {.causal = true}).output;
    };
    const auto want = Definition{state_dict(*m), o}(x, attn);
    const auto r = m(x, {.causal = true});
    EXPECT_TRUE(torch::allclose(r.output, want, 1e-11, 1e-12)) << m;
    EXPECT_EQ(r.weights.sizes(), (std::vector<int64_t>{2, 3, 7, 7}));
  }
}

TEST(Transformer, DefaultsAreThoseOfGPT2ButForItsGelu) {
  const auto o = make()->options;
  EXPECT_EQ(o.mlp_hidden, 48);
  EXPECT_EQ(o.norm, NormKind::kLayerNorm);
  EXPECT_EQ(o.norm_eps, 1e-5);
  EXPECT_EQ(o.norm_placement, NormPlacement::kPre);
  EXPECT_EQ(o.activation, Activation::kGelu);
  EXPECT_FALSE(o.mlp_gated);
  EXPECT_TRUE(o.mlp_bias);
}

TEST(Transformer, StateHasTheNamesOfItsParts) {
  auto m = make({.norm = NormKind::kRMSNorm,
                 .norm_placement = NormPlacement::kSandwich,
                 .activation = Activation::kSilu,
                 .mlp_gated = true,
                 .mlp_bias = false});
  std::vector<std::string> names;
  for (const auto& p : m->named_parameters()) {
    if (!p.key().starts_with("attn.")) names.push_back(p.key());
  }
  EXPECT_EQ(names, (std::vector<std::string>{"norm_attn.weight", "norm_attn_out.weight",
                                             "norm_mlp.weight", "mlp_in.weight", "mlp_gate.weight",
                                             "mlp_out.weight", "norm_mlp_out.weight"}));
  EXPECT_TRUE(make({.norm_placement = NormPlacement::kParallel})->norm_mlp.is_empty());
}

TEST(Transformer, ItsAttentionIsCalledAsAnyOther) {
  auto block = make();
  block->eval();
  const auto x = torch::randn({2, 5, 12});
  EXPECT_TRUE(torch::equal(block->attn(x, {.causal = true}).output,
                           block->attn->forward(x, {.causal = true}).output));
}

TEST(Transformer, LivesAsAModule) {
  expect_lives_as_a_module(make());
  const auto all = all_options();
  for (size_t i = 0; i < all.size(); i += 5) expect_lives_as_a_module(make(all[i]));
}

TEST(Transformer, GradientsAreRight) {
  expect_gradients(make({.mlp_hidden = 9}));
  const auto all = all_options();
  for (size_t i = 0; i < all.size(); i += 13) {
    auto m = make(all[i]);
    randomize(m);
    expect_gradients(m);
  }
}

TEST(Transformer, StepsAreTheWholePass) {
  torch::manual_seed(1);
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({2, 9, 12}, torch::kFloat64);
  for (const auto& o : all_options()) {
    auto m = make(o);
    m->to(torch::kFloat64);
    randomize(m);
    auto cache = m->make_cache(2, 9);
    auto got = std::vector{m(x.slice(1, 0, 4), {.causal = true, .cache = cache}).output};
    for (int64_t i = 4; i < 9; ++i) {
      got.push_back(m(x.slice(1, i, i + 1), {.causal = true, .cache = cache}).output);
    }
    EXPECT_TRUE(torch::allclose(torch::cat(got, 1), m(x, {.causal = true}).output, 1e-11, 1e-12))
        << m;
  }
}

TEST(Transformer, PrintsItsOptions) {
  std::ostringstream text;
  make({.mlp_hidden = 5,
        .norm = NormKind::kRMSNorm,
        .norm_placement = NormPlacement::kSandwich,
        .activation = Activation::kGeluTanh,
        .mlp_gated = true})
      ->pretty_print(text);
  EXPECT_EQ(text.str(),
            "attzoo::TransformerBlock(d_model=12, mlp_hidden=5, dropout=0, norm=rms_norm, "
            "norm_eps=1e-05, norm_placement=sandwich, activation=gelu_tanh, mlp_gated=true, "
            "mlp_bias=true)");
}

TEST(Transformer, RunsUnderAutocast) {
  for (const auto& o : all_options()) {
    auto m = make(o);
    const auto x = torch::randn({2, 7, 12});
    const auto want = m(x).output;
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    const auto got = m(x).output;
    at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
    EXPECT_TRUE(torch::allclose(got.to(torch::kFloat32), want, 0.1, 0.1)) << m;
  }
}

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
  const auto x = torch::randn({2, 7, 12});
  for (auto o : all_options()) {
    o.dropout = 0.5;
    auto m = make(o);
    EXPECT_FALSE(torch::equal(m(x).output, m(x).output)) << m;
    m->eval();
    EXPECT_TRUE(torch::equal(m(x).output, m(x).output)) << m;
    o.dropout = 1;  // nothing of the branches is left
    auto all = make(o);
    const Definition definition{state_dict(*all), o};
    auto want = x;
    if (o.norm_placement == NormPlacement::kPost) {
      want = definition.norm(definition.norm(x, "norm_attn"), "norm_mlp");
    }
    EXPECT_TRUE(torch::allclose(all(x).output, want, 1e-5, 1e-6)) << all;
  }
}

TEST(Transformer, Errors) {
  expect_error([] { make({.mlp_hidden = 0}); }, {"TransformerBlock", "mlp_hidden", "0"});
  expect_error([] { make({.mlp_hidden = int64_t{1} << 40}); },
               {"TransformerBlock", "mlp_hidden=1099511627776"});
  expect_error([] { make({.dropout = -1}); }, {"TransformerBlock", "dropout", "-1"});
  expect_error([] { make({.norm_eps = -1}); }, {"TransformerBlock", "norm_eps", "-1"});
  expect_error([] { make({.norm_eps = NAN}); }, {"TransformerBlock", "norm_eps", "nan"});
  expect_error([] { make({.norm = static_cast<NormKind>(7)}); }, {"TransformerBlock", "norm", "7"});
  expect_error([] { make({.norm_placement = static_cast<NormPlacement>(-1)}); },
               {"TransformerBlock", "norm_placement", "-1"});
  expect_error([] { make({.activation = static_cast<Activation>(4)}); },
               {"TransformerBlock", "activation", "4"});
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
}  // namespace attzoo::testing::transformer_test
