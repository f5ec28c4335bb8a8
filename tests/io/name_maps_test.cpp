#include <gtest/gtest.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/io/json.hpp>
#include <attzoo/io/name_maps.hpp>
#include <attzoo/io/safetensors.hpp>
#include <attzoo/io/state_dict.hpp>
#include <attzoo/module/torch_masks.hpp>
#include <attzoo/module/transformer.hpp>
#include <attzoo/multi_head.hpp>

#include "support/expect_error.hpp"
#include "support/parameters.hpp"

namespace attzoo::testing::name_maps_test {
namespace {

// ---- attention under upstream names, as the upstream library computes it
// --------------------------

/// A case of tests/golden-modern: in.X, param.X, out.X, cot.X (cotangents) and grad.X, float64.
struct Golden {
  NamedTensors t;
  core::Json config;

  explicit Golden(const std::string& name) {
    auto file = load_safetensors(std::filesystem::path(ATTZOO_SOURCE_DIR) / "tests/golden-modern" /
                                 (name + ".f64.safetensors"));
    t = std::move(file.tensors);
    config = core::Json::parse(file.metadata.at("config"));
  }
  const torch::Tensor& at(const std::string& name) const { return t.at(name); }
  bool has(const std::string& name) const { return t.count(name) > 0; }
  torch::Tensor leaf(const std::string& name) const { return at(name).clone().requires_grad_(); }
  NamedTensors parameters() const { return tensors_under(t, "param."); }
  NamedTensors gradients() const { return tensors_under(t, "grad.param."); }
};

void expect_close(const torch::Tensor& got, const torch::Tensor& want, const std::string& what) {
  ASSERT_EQ(got.sizes(), want.sizes()) << what;
  const auto most = [](const torch::Tensor& t) { return t.detach().abs().max().item<double>(); };
  EXPECT_LE(most(got - want), 1e-12 * (1 + most(want))) << what;
}

/// The gradients that a module has against those of the case, which come under upstream names, too.
void expect_gradients(const torch::nn::Module& module, const Golden& golden, const NameMap& names,
                      const std::vector<std::string>& plus_one = {}) {
  NamedTensors zeros;
  for (const auto& [name, t] : state_dict(module)) zeros[name] = torch::zeros_like(t);
  Parameters want(zeros);
  load_state_dict(want, golden.gradients(), names);
  for (const auto& p : module.named_parameters()) {
    auto gradient = want[p.key()];
    // A map that adds 1 to the weight has the derivative 1.
    if (std::find(plus_one.begin(), plus_one.end(), p.key()) != plus_one.end()) gradient -= 1;
    expect_close(p.value().grad(), gradient, p.key());
  }
}

/// What the module has under upstream names are the tensors that were loaded, and become the module
/// again.
void expect_way_back(const torch::nn::Module& module, const NamedTensors& upstream,
                     const NameMap& names) {
  const auto back = state_dict(module, names);
  for (const auto& [name, t] : back) {
    const auto given = upstream.find(name);
    if (given == upstream.end()) continue;  // under another of its names
    EXPECT_TRUE(torch::allclose(t, given->second, 1e-14, 1e-15)) << name;
  }
  NamedTensors zeros;
  for (const auto& [name, t] : state_dict(module)) zeros[name] = torch::zeros_like(t);
  Parameters again(zeros);
  load_state_dict(again, back, names);
  for (const auto& [name, t] : state_dict(module)) {
    EXPECT_TRUE(torch::allclose(again[name], t, 1e-14, 1e-15)) << name;
  }
}

TEST(NameMaps, TorchMultiheadAttention) {
  for (const auto* name : {"torch_multihead_attention__self_causal_bool_n17",
                           "torch_multihead_attention__float_mask3d_nobias"}) {
    SCOPED_TRACE(name);
    const Golden golden(name);
    const auto names = names::torch_multihead_attention();
    const auto heads = golden.config["H"].integer();
    MultiHeadSelfAttention attn({.d_model = golden.config["E"].integer(),
                                 .num_heads = heads,
                                 .dropout = 0,
                                 .bias = golden.has("param.in_proj_bias")});
    attn->to(torch::kFloat64);
    load_state_dict(*attn, golden.parameters(), names);
    const auto x = golden.leaf("in.query");
    const auto mask =
        golden.has("grad.attn_mask") ? golden.leaf("in.attn_mask") : golden.at("in.attn_mask");
    const auto result = attn(x, from_torch_masks(mask, {}, heads));
    const torch::Tensor weights =
        golden.at("out.weights").dim() == 4 ? result.weights.tensor() : result.weights.head_mean();
    expect_close(result.output, golden.at("out.o"), "output");
    expect_close(weights, golden.at("out.weights"), "weights");
    ((result.output * golden.at("cot.o")).sum() + (weights * golden.at("cot.weights")).sum())
        .backward();
    expect_close(x.grad(), golden.at("grad.query"), "x");
    if (mask.requires_grad()) expect_close(mask.grad(), golden.at("grad.attn_mask"), "mask");
    expect_gradients(*attn, golden, names);
    expect_way_back(*attn, golden.parameters(), names);
  }
}

torch::Tensor split_heads(const torch::Tensor& t, int64_t heads) {
  return t.unflatten(-1, {heads, -1}).transpose(1, 2);
}

torch::Tensor linear(const torch::nn::Module& module, const std::string& name,
                     const torch::Tensor& x) {
  const auto state = state_dict(module);
  const auto bias = state.find(name + ".bias");
  return torch::linear(x, state.at(name + ".weight"),
                       bias == state.end() ? torch::Tensor() : bias->second);
}

/// Parameters of the shapes that `names` gives them, from the tensors of a case.
Parameters parameters_like(const NamedTensors& shapes) {
  NamedTensors zeros;
  for (const auto& [name, t] : shapes) zeros[name] = torch::zeros(t.sizes(), torch::kFloat64);
  return Parameters(zeros);
}

TEST(NameMaps, TorchMultiheadAttentionOfOtherKeysAndValues) {
  const Golden golden("torch_multihead_attention__kdim_vdim_padding");
  const auto names = names::torch_multihead_attention();
  const auto like = [](torch::IntArrayRef sizes) { return torch::empty(sizes); };
  auto module = parameters_like({{"w_q.weight", like({24, 24})},
                                 {"w_q.bias", like({24})},
                                 {"w_k.weight", like({24, 10})},
                                 {"w_k.bias", like({24})},
                                 {"w_v.weight", like({24, 14})},
                                 {"w_v.bias", like({24})},
                                 {"w_o.weight", like({24, 24})},
                                 {"w_o.bias", like({24})}});
  load_state_dict(module, golden.parameters(), names);
  const auto x = golden.leaf("in.query"), key = golden.leaf("in.key"),
             value = golden.leaf("in.value");
  const auto heads = golden.config["H"].integer();
  const auto real = from_torch_masks({}, golden.at("in.key_padding_mask")).key_padding_mask;
  const auto result = attention(split_heads(linear(module, "w_q", x), heads),
                                split_heads(linear(module, "w_k", key), heads),
                                split_heads(linear(module, "w_v", value), heads),
                                mask_tensor(real.view({real.size(0), 1, 1, -1})));
  const auto output = linear(module, "w_o", result.output.transpose(1, 2).flatten(2));
  const auto weights = result.weights.head_mean();
  expect_close(output, golden.at("out.o"), "output");
  expect_close(weights, golden.at("out.weights"), "weights");
  ((output * golden.at("cot.o")).sum() + (weights * golden.at("cot.weights")).sum()).backward();
  expect_close(x.grad(), golden.at("grad.query"), "query");
  expect_close(key.grad(), golden.at("grad.key"), "key");
  expect_close(value.grad(), golden.at("grad.value"), "value");
  expect_gradients(module, golden, names);
}

TEST(NameMaps, TorchsLearnedKeysAreRefused) {
  const Golden golden("torch_multihead_attention__bias_kv_zero_attn_seqfirst");
  MultiHeadSelfAttention attn({.d_model = 16, .num_heads = 4, .bias = true});
  attn->to(torch::kFloat64);
  expect_error(
      [&] { load_state_dict(*attn, golden.parameters(), names::torch_multihead_attention()); },
      {"bias_k: ", "bias_v: ", "add_bias_kv"});
}

TEST(NameMaps, Gpt2) {
  const Golden golden("gpt2_attention__n33");
  MultiHeadSelfAttention attn({.d_model = golden.config["E"].integer(),
                               .num_heads = golden.config["H"].integer(),
                               .dropout = 0,
                               .bias = true,
                               .causal = true});
  attn->to(torch::kFloat64);
  load_state_dict(*attn, golden.parameters(), names::gpt2());
  const auto x = golden.leaf("in.hidden_states");
  const auto output = attn(x).output;
  expect_close(output, golden.at("out.o"), "output");
  (output * golden.at("cot.o")).sum().backward();
  expect_close(x.grad(), golden.at("grad.hidden_states"), "x");
  expect_gradients(*attn, golden, names::gpt2());
}

/// What BertAttention is: attention and the norm behind it.
class BertAttention : public torch::nn::Module {
 public:
  BertAttention(int64_t d_model, int64_t heads)
      : attn({.d_model = d_model, .num_heads = heads, .dropout = 0, .bias = true}),
        norm_attn(torch::nn::LayerNormOptions({d_model}).eps(1e-12)) {
    register_module("attn", attn);
    register_module("norm_attn", norm_attn);
  }
  MultiHeadSelfAttention attn;
  torch::nn::LayerNorm norm_attn;
};

TEST(NameMaps, Bert) {
  const Golden golden("bert_attention__pad_n17");
  const auto heads = golden.config["H"].integer();
  BertAttention bert(golden.config["E"].integer(), heads);
  bert.to(torch::kFloat64);
  load_state_dict(bert, golden.parameters(), names::bert());
  const auto x = golden.leaf("in.hidden_states");
  const auto real = golden.at("in.allowed").select(1, 0).select(1, 0);  // [B, N]
  const auto dense = bert.attn(x, {.key_padding_mask = real}).output;
  const auto layer = bert.norm_attn(dense + x);
  auto& attn = *bert.attn;
  const auto context =
      attention(split_heads(attn.w_q(x), heads), split_heads(attn.w_k(x), heads),
                split_heads(attn.w_v(x), heads), mask_tensor(real.view({real.size(0), 1, 1, -1})))
          .output.transpose(1, 2)
          .flatten(2);
  torch::Tensor sum = torch::zeros({}, torch::kFloat64);
  const NamedTensors outputs{{"context", context}, {"dense", dense}, {"layer", layer}};
  for (const auto& [name, got] : outputs) {
    expect_close(got, golden.at("out." + name), name);
    sum = sum + (got * golden.at("cot." + name)).sum();
  }
  sum.backward();
  expect_close(x.grad(), golden.at("grad.hidden_states"), "x");
  expect_gradients(bert, golden, names::bert());
}

torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight) {
  return x * torch::rsqrt(x.square().mean(-1, true) + 1e-6) * weight;
}

/// The leading features of each head, as many as `cos` has, are rotated in pairs (i, i + half).
torch::Tensor rotate(const torch::Tensor& x, const torch::Tensor& cos, const torch::Tensor& sin) {
  const auto turned = x.slice(-1, 0, cos.size(-1)), rest = x.slice(-1, cos.size(-1));
  const auto half = turned.chunk(2, -1);
  const auto swapped = torch::cat({-half[1], half[0]}, -1);
  return torch::cat({turned * cos.unsqueeze(1) + swapped * sin.unsqueeze(1), rest}, -1);
}

/// The equations of the golden cases' README for models with Llama's names, on our names.
torch::Tensor llama_like(const Parameters& module, const Golden& golden, const torch::Tensor& x) {
  const auto state = state_dict(module);
  const auto heads = golden.config["H"].integer(), kv_heads = golden.config["Hkv"].integer();
  auto q = split_heads(linear(module, "w_q", x), heads);
  auto k = split_heads(linear(module, "w_k", x), kv_heads);
  const auto v = split_heads(linear(module, "w_v", x), kv_heads);
  if (state.count("norm_q.weight") > 0) {
    q = rms_norm(q, state.at("norm_q.weight"));
    k = rms_norm(k, state.at("norm_k.weight"));
  }
  auto cos = golden.at("aux.cos"), sin = golden.at("aux.sin");
  if (golden.config["family"].string() == "gpt_oss") {  // which has each angle once
    cos = torch::cat({cos, cos}, -1);
    sin = torch::cat({sin, sin}, -1);
  }
  q = rotate(q, cos, sin);
  k = rotate(k, cos, sin);
  const auto group = heads / kv_heads;
  const auto of_all = [&](const torch::Tensor& t) { return t.repeat_interleave(group, 1); };
  auto scores = q.matmul(of_all(k).transpose(-1, -2)) /
                std::sqrt(static_cast<double>(golden.config["D"].integer()));
  if (golden.config["family"].string() == "gemma2") {  // query_pre_attn_scalar is D in the case
    const double cap = golden.config["cfg"]["attn_logit_softcapping"].number();
    scores = cap * torch::tanh(scores / cap);
  }
  scores = scores.masked_fill(golden.at("in.allowed").logical_not(), -INFINITY);
  if (state.count("sinks") > 0) {
    const auto sink = state.at("sinks").view({1, heads, 1, 1});
    scores = torch::cat({scores, sink.expand({scores.size(0), heads, scores.size(2), 1})}, -1);
  }
  const auto weights = torch::softmax(scores, -1).slice(-1, 0, x.size(1));
  auto output = weights.matmul(of_all(v)).transpose(1, 2).flatten(2);
  if (state.count("w_g.weight") > 0) output = output * torch::sigmoid(linear(module, "w_g", x));
  return linear(module, "w_o", output);
}

void check_llama_like(const std::string& name, const NameMap& names,
                      const std::vector<std::string>& plus_one = {}) {
  SCOPED_TRACE(name);
  const Golden golden(name);
  const auto config = golden.config;
  const auto E = config["E"].integer(), D = config["D"].integer(), H = config["H"].integer(),
             kv = config["Hkv"].integer();
  NamedTensors shapes{{"w_q.weight", torch::empty({H * D, E})},
                      {"w_k.weight", torch::empty({kv * D, E})},
                      {"w_v.weight", torch::empty({kv * D, E})},
                      {"w_o.weight", torch::empty({E, H * D})}};
  for (const auto* which : {"q", "k", "v", "o"}) {
    if (golden.has(std::string("param.") + which + "_proj.bias")) {
      const auto ours = std::string("w_") + which;
      shapes[ours + ".bias"] = torch::empty({shapes.at(ours + ".weight").size(0)});
    }
  }
  if (golden.has("param.q_norm.weight")) {
    shapes["norm_q.weight"] = shapes["norm_k.weight"] = torch::empty({D});
  }
  if (golden.has("param.sinks")) shapes["sinks"] = torch::empty({H});
  if (config["family"].string() == "qwen3_next") shapes["w_g.weight"] = torch::empty({H * D, E});
  auto module = parameters_like(shapes);
  load_state_dict(module, golden.parameters(), names);
  const auto x = golden.leaf("in.hidden_states");
  const auto output = llama_like(module, golden, x);
  expect_close(output, golden.at("out.o"), "output");
  (output * golden.at("cot.o")).sum().backward();
  expect_close(x.grad(), golden.at("grad.hidden_states"), "x");
  expect_gradients(module, golden, names, plus_one);
  expect_way_back(module, golden.parameters(), names);
}

TEST(NameMaps, ModelsWithLlamasNames) {
  check_llama_like("llama_attention__mha_rightpad_n17", names::llama());
  check_llama_like("llama_attention__mha_rightpad_n17", names::mistral());
  check_llama_like("qwen2_attention__bias_n17", names::qwen2());
  check_llama_like("qwen3_attention__gqa_qknorm_n33", names::qwen3());
  check_llama_like("qwen3_next_attention__gated_n33", names::qwen3_next(4),
                   {"norm_q.weight", "norm_k.weight"});
  check_llama_like("gemma2_attention__softcap_full_n17", names::gemma2());
  check_llama_like("gpt_oss_attention__sinks_full_n17", names::gpt_oss());
}

// ---- blocks and whole models
// ----------------------------------------------------------------------

TEST(NameMaps, ABlockOfGpt2) {
  torch::manual_seed(3);
  const int64_t d = 8, hidden = 12, heads = 2;
  const auto random = [](torch::IntArrayRef sizes) { return torch::randn(sizes, torch::kFloat64); };
  const NamedTensors upstream{{"ln_1.weight", random({d})},
                              {"ln_1.bias", random({d})},
                              {"ln_2.weight", random({d})},
                              {"ln_2.bias", random({d})},
                              {"attn.c_attn.weight", random({d, 3 * d})},
                              {"attn.c_attn.bias", random({3 * d})},
                              {"attn.c_proj.weight", random({d, d})},
                              {"attn.c_proj.bias", random({d})},
                              {"mlp.c_fc.weight", random({d, hidden})},
                              {"mlp.c_fc.bias", random({hidden})},
                              {"mlp.c_proj.weight", random({hidden, d})},
                              {"mlp.c_proj.bias", random({d})},
                              {"attn.bias", torch::ones({1, 1, 16, 16})},
                              {"attn.masked_bias", torch::tensor(-1e4)}};
  auto block = transformer_block(
      MultiHeadSelfAttention(
          {.d_model = d, .num_heads = heads, .dropout = 0, .bias = true, .causal = true}),
      {.mlp_hidden = hidden});
  block->to(torch::kFloat64);
  load_state_dict(*block, upstream, names::gpt2());

  const auto x = random({2, 5, d});
  const auto conv = [&](const std::string& name, const torch::Tensor& t) {
    return t.matmul(upstream.at(name + ".weight")) + upstream.at(name + ".bias");
  };
  const auto norm = [&](const std::string& name, const torch::Tensor& t) {
    return torch::layer_norm(t, {d}, upstream.at(name + ".weight"), upstream.at(name + ".bias"));
  };
  const auto qkv = conv("attn.c_attn", norm("ln_1", x)).chunk(3, -1);
  const auto o =
      at::scaled_dot_product_attention(split_heads(qkv[0], heads), split_heads(qkv[1], heads),
                                       split_heads(qkv[2], heads), {}, 0, true);
  const auto h = x + conv("attn.c_proj", o.transpose(1, 2).flatten(2));
  const auto want = h + conv("mlp.c_proj", torch::gelu(conv("mlp.c_fc", norm("ln_2", h))));
  expect_close(block(x).output, want, "output");
}

/// Each upstream tensor is filled with a number of its own, which must arrive at `ours`.
void expect_names(const NameMap& names, const std::vector<std::pair<std::string, std::string>>& all,
                  const std::vector<std::string>& ignored = {}, double added = 0) {
  NamedTensors upstream, zeros, want;
  double number = 1;
  for (const auto& [from, to] : all) {
    upstream[from] = torch::full({2, 2}, number);
    zeros[to] = torch::zeros({2, 2});
    want[to] = torch::full({2, 2}, number + (to.find("norm") != std::string::npos ? added : 0.0));
    number += 1;
  }
  for (const auto& name : ignored) upstream[name] = torch::zeros({7});
  Parameters module(zeros);
  load_state_dict(module, upstream, names);
  for (const auto& [name, t] : want) EXPECT_TRUE(torch::equal(module[name], t)) << name;
  expect_way_back(module, upstream, names);
}

using Names = std::vector<std::pair<std::string, std::string>>;

Names under(const Names& names, const std::string& from, const std::string& to) {
  Names all;
  for (const auto& [theirs, ours] : names) all.emplace_back(from + theirs, to + ours);
  return all;
}

TEST(NameMaps, WholeModelsWithLlamasNames) {
  const Names attention{{"q_proj.weight", "w_q.weight"},    {"q_proj.bias", "w_q.bias"},
                        {"k_proj.weight", "w_k.weight"},    {"k_proj.bias", "w_k.bias"},
                        {"v_proj.weight", "w_v.weight"},    {"v_proj.bias", "w_v.bias"},
                        {"o_proj.weight", "w_o.weight"},    {"o_proj.bias", "w_o.bias"},
                        {"q_norm.weight", "norm_q.weight"}, {"k_norm.weight", "norm_k.weight"}};
  const Names mlp{{"mlp.gate_proj.weight", "mlp_gate.weight"},
                  {"mlp.up_proj.weight", "mlp_in.weight"},
                  {"mlp.down_proj.weight", "mlp_out.weight"}};
  const Names two_norms{{"input_layernorm.weight", "norm_attn.weight"},
                        {"post_attention_layernorm.weight", "norm_mlp.weight"}};
  const Names four_norms{{"input_layernorm.weight", "norm_attn.weight"},
                         {"post_attention_layernorm.weight", "norm_attn_out.weight"},
                         {"pre_feedforward_layernorm.weight", "norm_mlp.weight"},
                         {"post_feedforward_layernorm.weight", "norm_mlp_out.weight"}};
  const Names moe{{"mlp.router.weight", "moe.router.weight"},
                  {"mlp.experts.gate_up_proj", "moe.experts.gate_up_proj"},
                  {"mlp.experts.down_proj_bias", "moe.experts.down_proj_bias"}};
  const auto joined = [](Names a, const Names& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  };
  const auto check = [&](const NameMap& names, const Names& rest, double added) {
    expect_names(names, attention, {"rotary_emb.inv_freq"}, added);
    const auto block = joined(rest, under(attention, "self_attn.", "attn."));
    expect_names(names, block, {"self_attn.rotary_emb.inv_freq"}, added);
    for (const std::string base : {"model.", ""}) {
      Names model{{base + "embed_tokens.weight", "embed.weight"},
                  {base + "norm.weight", "norm.weight"}};
      for (const std::string layer : {"layers.0.", "layers.11."}) {
        model = joined(model, under(block, base + layer, layer));
      }
      expect_names(names, joined(model, {{"lm_head.weight", "lm_head.weight"}}),
                   {base + "layers.0.self_attn.rotary_emb.inv_freq", base + "rotary_emb.inv_freq"},
                   added);
    }
  };
  for (const auto& names : {names::llama(), names::mistral(), names::qwen2(), names::qwen3()}) {
    check(names, joined(two_norms, mlp), 0);
  }
  check(names::gemma2(), joined(four_norms, mlp), 1);
  check(names::gpt_oss("moe."), joined(two_norms, moe), 0);
  expect_names(names::gpt_oss(), under(attention, "self_attn.", "attn."));
  expect_names(
      names::qwen3_next(2),
      {{"model.layers.0.linear_attn.A_log", "layers.0.linear_attn.A_log"},
       {"model.layers.1.mlp.experts.3.up_proj.weight", "layers.1.mlp.experts.3.up_proj.weight"},
       {"model.layers.1.input_layernorm.weight", "layers.1.norm_attn.weight"},
       {"model.norm.weight", "norm.weight"}},
      {"mtp.fc.weight"}, 1);
}

TEST(NameMaps, WholeModelOfBert) {
  const Names attention{{"query.weight", "w_q.weight"}, {"query.bias", "w_q.bias"},
                        {"key.weight", "w_k.weight"},   {"key.bias", "w_k.bias"},
                        {"value.weight", "w_v.weight"}, {"value.bias", "w_v.bias"}};
  const Names norm{{"LayerNorm.weight", ".weight"}, {"LayerNorm.bias", ".bias"}};
  const Names old_norm{{"LayerNorm.gamma", ".weight"}, {"LayerNorm.beta", ".bias"}};
  const Names dense{{"dense.weight", ".weight"}, {"dense.bias", ".bias"}};
  const auto add = [](Names& to, const Names& more) {
    to.insert(to.end(), more.begin(), more.end());
  };
  expect_names(names::bert(), attention);
  auto with_output = under(attention, "self.", "");
  add(with_output, under(dense, "output.", "w_o"));
  expect_names(names::bert(), with_output);
  for (const auto& spelling : {norm, old_norm}) {
    Names block = under(attention, "attention.self.", "attn.");
    add(block, under(dense, "attention.output.", "attn.w_o"));
    add(block, under(spelling, "attention.output.", "norm_attn"));
    add(block, under(dense, "intermediate.", "mlp_in"));
    add(block, under(dense, "output.", "mlp_out"));
    add(block, under(spelling, "output.", "norm_mlp"));
    expect_names(names::bert(), block);
    for (const std::string base : {"bert.", ""}) {
      Names model{{base + "embeddings.word_embeddings.weight", "embed.weight"},
                  {base + "embeddings.position_embeddings.weight", "positions.weight"},
                  {base + "embeddings.token_type_embeddings.weight", "token_types.weight"}};
      add(model, under(spelling, base + "embeddings.", "norm_embed"));
      add(model, under(block, base + "encoder.layer.0.", "layers.0."));
      add(model, under(block, base + "encoder.layer.10.", "layers.10."));
      expect_names(
          names::bert(), model,
          {base + "embeddings.position_ids", base + "pooler.dense.weight", "cls.predictions.bias"});
      add(model, under(dense, base + "pooler.", "pooler"));
      expect_names(names::bert(), model);
    }
  }
}

TEST(NameMaps, WholeModelOfGpt2AndPyTorchsEncoder) {
  for (const std::string base : {"transformer.", ""}) {
    expect_names(names::gpt2(),
                 {{base + "wte.weight", "embed.weight"},
                  {base + "wpe.weight", "positions.weight"},
                  {base + "h.3.ln_2.weight", "layers.3.norm_mlp.weight"},
                  {base + "h.3.attn.c_proj.bias", "layers.3.attn.w_o.bias"},
                  {base + "h.3.mlp.c_fc.weight", "layers.3.mlp_in.weight"},
                  {base + "h.3.mlp.c_proj.weight", "layers.3.mlp_out.weight"},
                  {base + "ln_f.weight", "norm.weight"},
                  {base + "ln_f.bias", "norm.bias"},
                  {"lm_head.weight", "lm_head.weight"}},
                 {base + "h.3.attn.bias", base + "h.3.attn.masked_bias"});
  }
  expect_names(names::torch_multihead_attention(),
               {{"layers.1.self_attn.out_proj.weight", "layers.1.attn.w_o.weight"},
                {"layers.1.linear1.weight", "layers.1.mlp_in.weight"},
                {"layers.1.linear2.bias", "layers.1.mlp_out.bias"},
                {"layers.1.norm1.weight", "layers.1.norm_attn.weight"},
                {"layers.1.norm2.weight", "layers.1.norm_mlp.weight"},
                {"norm.weight", "norm.weight"}});
}

// ---- and back
// --------------------------------------------------------------------------------------------------

/// The upstream names of a module that has ours.
std::vector<std::string> upstream_names(const NameMap& names,
                                        const std::vector<std::string>& ours) {
  NamedTensors zeros;
  for (const auto& name : ours) zeros[name] = torch::zeros({2, 2});
  std::vector<std::string> all;
  for (const auto& [name, t] : state_dict(Parameters(zeros), names)) all.push_back(name);
  return all;
}

TEST(NameMaps, WritesTheNamesOfWholeModels) {
  using Expected = std::vector<std::string>;
  EXPECT_EQ(
      upstream_names(names::llama(),
                     {"embed.weight", "layers.0.attn.w_q.weight", "layers.11.mlp_gate.weight",
                      "layers.11.norm_mlp.weight", "lm_head.weight", "norm.weight"}),
      (Expected{"lm_head.weight", "model.embed_tokens.weight",
                "model.layers.0.self_attn.q_proj.weight", "model.layers.11.mlp.gate_proj.weight",
                "model.layers.11.post_attention_layernorm.weight", "model.norm.weight"}));
  EXPECT_EQ(upstream_names(names::bert(),
                           {"embed.weight", "layers.0.attn.w_q.bias", "layers.0.attn.w_o.weight",
                            "layers.0.norm_mlp.weight", "norm_embed.bias"}),
            (Expected{"bert.embeddings.LayerNorm.bias", "bert.embeddings.word_embeddings.weight",
                      "bert.encoder.layer.0.attention.output.dense.weight",
                      "bert.encoder.layer.0.attention.self.query.bias",
                      "bert.encoder.layer.0.output.LayerNorm.weight"}));
  EXPECT_EQ(upstream_names(names::gpt2(), {"embed.weight", "layers.0.attn.w_q.weight",
                                           "layers.0.attn.w_k.weight", "layers.0.attn.w_v.weight"}),
            (Expected{"transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"}));
}

TEST(NameMaps, LaysTensorsOutAsTheyWere) {
  torch::manual_seed(0);
  MultiHeadSelfAttention attn({.d_model = 6, .num_heads = 2, .bias = true});
  const auto state = state_dict(*attn, names::gpt2());
  const auto qkv = torch::cat({attn->w_q->weight, attn->w_k->weight, attn->w_v->weight});
  EXPECT_TRUE(torch::equal(state.at("c_attn.weight"), qkv.t()));
  EXPECT_TRUE(torch::equal(state.at("c_proj.weight"), attn->w_o->weight.t()));
  EXPECT_TRUE(state.at("c_proj.weight").is_contiguous());
  EXPECT_FALSE(state.at("c_attn.weight").requires_grad());

  auto gemma = Parameters({{"norm_q.weight", torch::full({3}, 1.25).to(torch::kBFloat16)}});
  const auto norms = state_dict(gemma, names::gemma2());
  EXPECT_EQ(norms.at("q_norm.weight").scalar_type(), torch::kBFloat16);
  EXPECT_TRUE(torch::equal(norms.at("q_norm.weight"), torch::full({3}, 0.25).to(torch::kBFloat16)));
}

TEST(NameMaps, WhatCannotGoBackIsAnError) {
  MultiHeadSelfAttention attn({.d_model = 6, .num_heads = 2});
  expect_error([&] { state_dict(*attn, NameMap().rename("q", "w_q.weight")); },
               {"state_dict", "w_k.weight: has no upstream name", "w_o.weight", "w_v.weight"});
  const auto twice = [](const torch::Tensor& t) { return t * 2; };
  expect_error([&] { state_dict(*attn, NameMap().rename("*", "*", twice)); },
               {"w_q.weight: the map knows no way back to w_q.weight"});
  const auto collide = NameMap()
                           .rename("q", "w_q.weight")
                           .rename("q", "w_k.weight")
                           .rename("v", "w_v.weight")
                           .rename("o", "w_o.weight");
  expect_error([&] { state_dict(*attn, collide); }, {"q is another tensor's name"});
}

}  // namespace
}  // namespace attzoo::testing::name_maps_test
