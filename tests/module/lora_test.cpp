// Low-rank adaptation of every mechanism's layers is the dense layer with W + alpha / rank B A.

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/serialize.h>
#include <attzoo/attzoo.hpp>

#include <cmath>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "support/error_rule.hpp"
#include "support/every_mechanism.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing::lora_test {
namespace {

using Names = std::vector<std::string>;

constexpr int64_t kWidth = 16;

/// Every mechanism, a block and a stack, with the names of all their layers that can have LoRA.
struct Adapted {
  std::string name;
  AnyAttention attn;
  Names layers;
};

std::vector<Adapted> every_module() {
  std::vector<Adapted> all;
  const auto add = [&](const std::string& name, const AnyAttention& attn) {
    Names layers;
    for (const auto& parameter : attn->named_parameters().keys()) {
      if (!parameter.ends_with(".weight")) continue;
      const auto layer = parameter.substr(0, parameter.rfind('.'));
      const auto last = layer.substr(layer.rfind('.') + 1);
      if (last.starts_with("w_") || last.starts_with("mlp_") || last == "x_proj") {
        layers.push_back(layer);
      }
    }
    attn->eval();
    attn->to(torch::kFloat64);
    all.push_back({name, attn, layers});
  };
  for (const auto& [name, make] : every_mechanism({.width = kWidth, .heads = 2, .span = 4})) {
    add(name, make());
  }
  add("grouped, all options", GroupedSelfAttention({.d_model = kWidth,
                                                    .num_query_heads = 4,
                                                    .num_kv_heads = 2,
                                                    .bias = true,
                                                    .rope = true,
                                                    .qk_norm = true,
                                                    .sinks = true,
                                                    .output_gate = true}));
  add("global projections",
      LongformerSelfAttention(
          {.d_model = kWidth, .num_heads = 2, .window_size = 4, .global_projections = true}));
  add("a gate with a projection",
      gated(MultiHeadSelfAttention({.d_model = 8, .num_heads = 2, .input_dim = kWidth})));
  add("a block",
      transformer_block(MultiHeadSelfAttention(kWidth, 2),
                        {.mlp_hidden = 24, .activation = Activation::kSilu, .mlp_gated = true}));
  add("a stack", Stack(transformer_block(MultiHeadSelfAttention(kWidth, 2)),
                       gated(LocalSelfAttention({.d_model = kWidth, .window_size = 4}))));
  return all;
}

/// Numbers for B, which begins as 0, of the size that training gives it.
void fill(const AnyAttention& attn) {
  const torch::NoGradGuard no_grad;
  for (const auto& item : attn->named_parameters()) {
    if (item.key().ends_with("lora_B")) item.value().copy_(torch::randn_like(item.value()) * 0.2);
  }
}

/// The weights of `attn` with those of its LoRA added by hand.
std::map<std::string, torch::Tensor> dense(const AnyAttention& attn, double scale) {
  const torch::NoGradGuard no_grad;
  auto all = state_dict(*attn.ptr());
  std::map<std::string, torch::Tensor> result;
  for (const auto& [name, t] : all) {
    if (name.find("lora_") != std::string::npos) continue;
    const auto layer = name.substr(0, name.rfind('.') + 1);
    const bool adapted = name.ends_with(".weight") && all.count(layer + "lora_A") > 0;
    result[name] = adapted ? t + scale * torch::matmul(all[layer + "lora_B"], all[layer + "lora_A"])
                           : t.clone();
  }
  return result;
}

AttentionInputs inputs_of(const AnyAttention& attn, int64_t L) {
  AttentionInputs in;
  if (attn.takes().global_attention) in.global_attention = torch::arange(L) == 2;
  return in;
}

double largest(const torch::Tensor& t) { return t.abs().max().item<double>(); }

TEST(Lora, BeginsAsNothingAndIsTheDenseWeight) {
  torch::manual_seed(1);
  for (const auto& [name, attn, layers] : every_module()) {
    const auto x = torch::randn({2, 9, kWidth}, torch::kFloat64);
    const auto in = inputs_of(attn, 9);
    const auto before = attn(x, in).output;
    auto same = attn.clone();  // becomes the dense one
    EXPECT_EQ(add_lora(attn, {.rank = 3, .alpha = 6, .targets = layers}), layers) << name;
    // Products along the sequence round otherwise where rows lie otherwise in memory.
    EXPECT_TRUE(torch::allclose(attn(x, in).output, before, 1e-14, 1e-14)) << name;
    fill(attn);
    const auto adapted = attn(x, in).output;
    EXPECT_GT(largest(adapted - before), 1e-3) << name;
    load_state_dict(*same.ptr(), dense(attn, 2.0));
    EXPECT_LT(largest(adapted - same(x, in).output), 1e-12) << name;

    // One token without gradients goes through loops of its own.
    const torch::NoGradGuard no_grad;
    const auto one = x.slice(1, 0, 1);
    const auto token = inputs_of(attn, 1).global_attention.defined()
                           ? AttentionInputs{.global_attention = torch::ones({1}, torch::kBool)}
                           : AttentionInputs{};
    EXPECT_LT(largest(attn(one, token).output - same(one, token).output), 1e-12) << name;

    EXPECT_EQ(merge_lora(attn), layers) << name;
    EXPECT_EQ(attn->named_modules().keys(), same->named_modules().keys()) << name;
    for (const auto& [key, t] : state_dict(*same.ptr())) {
      EXPECT_LT(largest(state_dict(*attn.ptr()).at(key) - t), 1e-14) << name << ' ' << key;
    }
  }
}

TEST(Lora, EachLayerIsAdaptedByItself) {
  torch::manual_seed(2);
  for (const auto& [name, attn, layers] : every_module()) {
    const auto x = torch::randn({2, 9, kWidth}, torch::kFloat64);
    const auto in = inputs_of(attn, 9);
    const auto before = attn(x, in).output;
    for (const auto& layer : layers) {
      add_lora(attn, {.targets = {layer}});
      fill(attn);
      EXPECT_GT(largest(attn(x, in).output - before), 1e-6) << name << ' ' << layer;
      EXPECT_EQ(remove_lora(attn), Names{layer});
      // What is frozen may take loops of its own, which round otherwise.
      EXPECT_LT(largest(attn(x, in).output - before), 1e-13) << name << ' ' << layer;
    }
  }
}

TEST(Lora, HasTheGradientsOfItsFormula) {
  torch::manual_seed(3);
  MultiHeadSelfAttention attn({.d_model = 6, .num_heads = 2, .bias = true, .causal = true});
  attn->to(torch::kFloat64);
  add_lora(attn, {.rank = 2, .alpha = 3, .targets = {"w_q", "w_k", "w_v", "w_o"}});
  fill(attn);
  auto x = torch::randn({2, 5, 6}, torch::kFloat64).requires_grad_();
  Tensors leaves{x};
  for (const auto& t : attn->parameters()) {
    if (t.requires_grad()) leaves.push_back(t);
  }
  EXPECT_EQ(leaves.size(), 9U);
  const auto weights = torch::randn({2, 5, 6}, torch::kFloat64);
  const auto loss = [&] { return (attn(x).output * weights).sum(); };
  gradcheck(loss, leaves, "LoRA");
  gradgradcheck(loss, {attn->w_q->named_parameters()["lora_A"], x}, "LoRA");
}

TEST(Lora, IsExactInEveryDtype) {
  torch::manual_seed(4);
  for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    MultiHeadSelfAttention attn({.d_model = 48, .num_heads = 4, .bias = true});
    attn->to(dtype);
    add_lora(attn, {.rank = 4, .alpha = 6, .targets = {"w_q"}});
    fill(attn);
    const auto own = attn->w_q->named_parameters();
    EXPECT_EQ(own["lora_A"].scalar_type(), dtype);
    const auto formula = [&](const torch::Tensor& x) {
      const auto to = [&](const char* name) { return own[name].to(x.scalar_type()); };
      const auto product = torch::linear(torch::linear(x, to("lora_A")), to("lora_B"));
      return torch::linear(x, to("weight"), to("bias")) + 1.5 * product;
    };
    for (const bool learns : {false, true}) {
      const torch::AutoGradMode mode(learns);
      for (const auto& sizes : {std::vector<int64_t>{48}, {3, 48}, {2, 20, 48}, {0, 48}}) {
        const auto x = torch::randn(sizes).to(dtype);
        const auto got = apply_linear(x, attn->w_q);
        expect_within_rule(got, formula(x.to(torch::kFloat64)), formula(x), 2, 48 + 4,
                           c10::str(dtype, ' ', sizes));
      }
    }
    const auto w = own["weight"].detach().to(torch::kFloat64);
    const auto exact = w + 1.5 * torch::matmul(own["lora_B"].detach().to(torch::kFloat64),
                                               own["lora_A"].detach().to(torch::kFloat64));
    merge_lora(attn);
    const auto merged = attn->w_q->weight;
    EXPECT_LE(largest(merged.to(torch::kFloat64) - exact.to(dtype)),
              dtype == torch::kFloat64 ? 2 * epsilon(dtype) * largest(exact) : 0)
        << dtype;
  }
}

TEST(Lora, IsCastByAutocast) {
  torch::manual_seed(5);
  MultiHeadSelfAttention attn(32, 4);
  add_lora(attn);
  fill(attn);
  const auto x = torch::randn({2, 9, 32});
  const auto gold = attn(x).output;
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const auto got = attn(x).output;
  got.sum().backward();
  merge_lora(attn);
  const auto dense = attn(x).output;
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  expect_within_rule(got, gold, dense, 2, 64, "autocast");
}

TEST(Lora, WorksBehindCachesAndContexts) {
  torch::manual_seed(5);
  MultiHeadSelfAttention self({.d_model = kWidth, .num_heads = 4, .rope = true, .causal = true});
  GroupedSelfAttention cross({.d_model = kWidth, .num_query_heads = 4, .num_kv_heads = 2});
  auto block = decoder_block(self, cross, {.mlp_hidden = 24});
  AnyAttention attn(block);
  attn->to(torch::kFloat64);
  attn->eval();
  add_lora(attn, {.targets = {"w_q", "w_k", "w_v", "w_o", "mlp_in", "mlp_out"}});
  fill(attn);
  const auto x = torch::randn({2, 6, kWidth}, torch::kFloat64),
             memory = torch::randn({2, 5, kWidth}, torch::kFloat64);
  const torch::NoGradGuard no_grad;
  const auto whole = attn(x, {.context = memory}).output;
  const auto cache = attn.make_cache(2, 6);
  std::vector<torch::Tensor> rows;
  for (int64_t i = 0; i < 6; ++i) {
    AttentionInputs in{.cache = cache};
    if (i == 0) in.context = memory;
    rows.push_back(attn(x.slice(1, i, i + 1), in).output);
  }
  EXPECT_LT(largest(torch::cat(rows, 1) - whole), 1e-12);
  const auto kept = cross->make_context_cache(memory);
  EXPECT_LT(largest(cross(x, {.cache = kept}).output - cross(x, {.context = memory}).output),
            1e-12);
}

TEST(Lora, TrainsAloneAndDropsItsInput) {
  torch::manual_seed(6);
  auto block = transformer_block(MultiHeadSelfAttention({.d_model = kWidth, .num_heads = 2}));
  const auto x = torch::randn({2, 9, kWidth});
  block(x).output.sum().backward();  // leaves gradients, which an optimizer would follow
  const Names added = add_lora(block, {.rank = 2, .dropout = 0.5});
  EXPECT_EQ(added, (Names{"attn.w_q", "attn.w_v"}));
  const auto before = state_dict(*block->clone());
  torch::optim::AdamW optimizer(block->parameters(),
                                torch::optim::AdamWOptions(0.1).weight_decay(0.1));
  const auto target = torch::randn_like(x);
  double first = 0, last = 0;
  for (int step = 0; step < 30; ++step) {
    const auto loss = (block(x).output - target).pow(2).mean();
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    if (step == 0) first = last;
  }
  EXPECT_LT(last, first);
  for (const auto& [name, t] : state_dict(*block)) {
    EXPECT_EQ(torch::equal(t, before.at(name)), name.find("lora_") == std::string::npos) << name;
  }
  EXPECT_FALSE(torch::equal(block(x).output, block(x).output));
  block->eval();
  EXPECT_TRUE(torch::equal(block(x).output, block(x).output));
  // Of the input, and scaled: the mean over many draws is what is computed without.
  MultiHeadSelfAttention attn(8, 2);
  add_lora(attn, {.targets = {"w_v"}, .dropout = 0.25});
  fill(attn);
  const torch::NoGradGuard no_grad;
  const auto token = torch::randn({1, 8}).repeat({20000, 1});
  const auto dropped = apply_linear(token, attn->w_v).mean(0);
  attn->eval();
  EXPECT_LT(largest(dropped - apply_linear(token, attn->w_v)[0]), 0.02);
}

TEST(Lora, IsInClonesStatesAndArchives) {
  torch::manual_seed(7);
  for (const auto& [name, attn, layers] : every_module()) {
    add_lora(attn, {.rank = 2, .alpha = 5, .targets = layers, .dropout = 0.5});
    fill(attn);
    const auto x = torch::randn({2, 9, kWidth}, torch::kFloat64);
    const auto in = inputs_of(attn, 9);
    const auto want = attn(x, in).output;
    auto copy = attn.clone();
    EXPECT_FALSE(copy->is_training());
    EXPECT_TRUE(torch::equal(copy(x, in).output, want)) << name;
    const auto mine = attn->named_parameters(), its = copy->named_parameters();
    EXPECT_EQ(mine.keys(), its.keys()) << name;
    for (const auto& item : mine) {
      const auto& other = its[item.key()];
      EXPECT_EQ(item.value().requires_grad(), other.requires_grad()) << name << item.key();
      EXPECT_EQ(item.value().requires_grad(), item.key().find("lora_") != std::string::npos);
      EXPECT_FALSE(item.value().is_alias_of(other)) << name << item.key();
    }
    std::set<const torch::nn::Module*> modules;
    for (const auto& m : attn->modules()) modules.insert(m.get());
    for (const auto& m : copy->modules()) EXPECT_EQ(modules.count(m.get()), 0U) << m->name();

    std::stringstream file;
    torch::save(attn.ptr(), file);
    fill(copy);
    EXPECT_FALSE(torch::equal(copy(x, in).output, want)) << name;
    auto module = copy.ptr();
    torch::load(module, file);
    EXPECT_TRUE(torch::equal(copy(x, in).output, want)) << name;

    remove_lora(copy);
    EXPECT_EQ(state_dict(*copy.ptr()).count(layers[0] + ".lora_A"), 0U);
    EXPECT_TRUE(torch::equal(attn(x, in).output, want)) << name;
    std::ostringstream text;
    text << *attn.ptr();
    EXPECT_NE(text.str().find("(lora): attzoo::Lora(alpha=5, dropout=0.5)"), std::string::npos);
  }
}

struct Model : torch::nn::Module {
  Model() {
    layers->push_back(transformer_block(MultiHeadSelfAttention(kWidth, 2)));
    layers->push_back(transformer_block(MultiHeadSelfAttention(kWidth, 2)));
    register_module("embed", embed);
    register_module("layers", layers);
    register_module("lm_head", lm_head);
  }
  torch::nn::Embedding embed{7, kWidth};
  Stack layers;
  torch::nn::Linear lm_head{kWidth, 7};
};

TEST(Lora, FindsLayersInAnyModule) {
  Model model;
  EXPECT_EQ(add_lora(model), (Names{"layers.0.attn.w_q", "layers.0.attn.w_v", "layers.1.attn.w_q",
                                    "layers.1.attn.w_v"}));
  EXPECT_EQ(add_lora(model, {.rank = 1, .targets = {"attn.w_o", "layers.1.mlp_in"}}).size(), 3U);
  for (const auto& item : model.named_parameters()) {
    EXPECT_EQ(item.value().requires_grad(), item.key().find("lora_") != std::string::npos);
  }
  // One block at two places has one LoRA.
  auto block = transformer_block(MultiHeadSelfAttention(kWidth, 2));
  Stack twice;
  twice->push_back(block);
  twice->push_back(block);
  EXPECT_EQ(add_lora(twice).size(), 2U);
  fill(twice);
  const auto x = torch::randn({1, 4, kWidth});
  const auto want = twice(x).output;
  EXPECT_EQ(merge_lora(twice).size(), 2U);
  EXPECT_TRUE(torch::allclose(twice(x).output, want, 1e-4, 1e-5));
}

TEST(Lora, SaysWhatIsWrongAndChangesNothing) {
  Model model;
  const auto names = model.named_parameters().keys();
  const auto refuse = [&](const LoraOptions& o, const Names& parts) {
    expect_error([&] { add_lora(model, o); }, parts);
    EXPECT_EQ(model.named_parameters().keys(), names);
    for (const auto& t : model.parameters()) EXPECT_TRUE(t.requires_grad());
  };
  refuse({.rank = 0}, {"add_lora", "rank", "> 0", "0"});
  refuse({.rank = int64_t{1} << 40}, {"add_lora", "layers.0.attn.w_q", "rank="});
  refuse({.alpha = 0}, {"add_lora", "alpha"});
  refuse({.alpha = std::nan("")}, {"add_lora", "alpha"});
  refuse({.targets = {}}, {"add_lora", "targets"});
  refuse({.dropout = 1.5}, {"add_lora", "dropout", "1.5"});
  refuse({.targets = {"w_q", "q_proj"}}, {"q_proj", "layers.1.mlp_out"});
  refuse({.targets = {"_q"}}, {"\"_q\"", "no layer"});
  refuse({.targets = {"w_q", "lm_head"}}, {"lm_head", "torch::nn::Linear"});
  expect_error([&] { merge_lora(model); }, {"merge_lora", "no LoRA"});
  expect_error([&] { remove_lora(model); }, {"remove_lora", "no LoRA"});
  expect_error([&] { add_lora(torch::nn::Linear(3, 3)); }, {"w_q", "none"});
  expect_error([&] { add_lora(MultiHeadSelfAttention(nullptr)); }, {"empty"});

  add_lora(model);
  expect_error(
      [&] {
        add_lora(model, {.targets = {"w_q", "w_o"}});
      },
      {"layers.0.attn.w_q", "already"});
  EXPECT_EQ(remove_lora(model).size(), 4U);
  unfreeze(model);

  // A weight that two layers have cannot take the LoRA of one of them.
  MultiHeadSelfAttention attn(kWidth, 2);
  attn->w_q->weight = attn->w_k->weight;
  add_lora(attn);
  expect_error([&] { merge_lora(attn); }, {"merge_lora", "w_q.weight", "another"});
  EXPECT_EQ(remove_lora(attn), (Names{"w_q", "w_v"}));

  // A parameter of somebody's own is no LoRA.
  const auto x = torch::randn({1, 3, kWidth});
  const auto want = attn(x).output;
  attn->w_o->register_parameter("scale", torch::ones(1));
  EXPECT_TRUE(torch::equal(attn(x).output, want));
  EXPECT_EQ(add_lora(attn, {.targets = {"w_o"}}), Names{"w_o"});
  EXPECT_EQ(merge_lora(attn), Names{"w_o"});
}

}  // namespace
}  // namespace attzoo::testing::lora_test
