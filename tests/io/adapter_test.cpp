// Adapters by PEFT's names: saved, loaded, and as PEFT itself has written them.

#include <gtest/gtest.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <attzoo/attzoo.hpp>

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "support/expect_error.hpp"

namespace attzoo::testing::adapter_test {
namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

/// A new folder that goes with the test.
struct Folder {
  Folder() {
    const auto name = "attzoo_lora_" + std::to_string(::getpid()) + "_" + std::to_string(count++);
    path = fs::temp_directory_path() / name;
    fs::remove_all(path);
  }
  ~Folder() { fs::remove_all(path); }
  fs::path path;
  static inline int count = 0;
};

std::string read(const fs::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void write(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }

/// Replaces `from` in the config of an adapter.
void edit(const fs::path& folder, const std::string& from, const std::string& to) {
  auto text = read(folder / "adapter_config.json");
  const auto at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  write(folder / "adapter_config.json", text.replace(at, from.size(), to));
}

/// `model.layers.N` of blocks, as a Llama has them.
struct Model : torch::nn::Module {
  explicit Model(int64_t width = 16, bool gated = true) {
    for (int i = 0; i < 2; ++i) {
      GroupedSelfAttention attn({.d_model = width,
                                 .num_query_heads = 4,
                                 .num_kv_heads = 2,
                                 .rope = true,
                                 .causal = true});
      layers->push_back(transformer_block(attn, {.mlp_hidden = 3 * width / 2,
                                                 .norm = NormKind::kRMSNorm,
                                                 .activation = Activation::kSilu,
                                                 .mlp_gated = gated,
                                                 .mlp_bias = false}));
    }
    register_module("layers", layers);
    eval();
  }
  torch::Tensor forward(const torch::Tensor& x) { return layers(x).output; }
  Stack layers;
};

void fill(torch::nn::Module& module) {
  const torch::NoGradGuard no_grad;
  for (const auto& item : module.named_parameters()) {
    if (item.key().ends_with("lora_B")) item.value().copy_(torch::randn_like(item.value()) * 0.2);
  }
}

/// Copies all weights but LoRA.
void copy_base(const torch::nn::Module& from, torch::nn::Module& to) {
  auto state = state_dict(from);
  std::erase_if(state, [](const auto& e) { return e.first.find("lora_") != std::string::npos; });
  load_state_dict(to, state);
}

TEST(SaveLora, HasPeftsNames) {
  torch::manual_seed(1);
  Model model, other, renamed;
  copy_base(model, other);
  copy_base(model, renamed);
  const Names names = add_lora(
      model, {.rank = 3, .alpha = 6, .targets = {"w_q", "w_v", "mlp_out"}, .dropout = 0.1});
  fill(model);
  Folder folder;
  save_lora(model, folder.path, names::llama());
  const auto saved = load_safetensors(folder.path / "adapter_model.safetensors").tensors;
  std::set<std::string> keys;
  for (const auto& [name, t] : saved) keys.insert(name);
  std::set<std::string> expected;
  for (const std::string layer : {"0", "1"}) {
    for (const std::string module : {"self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"}) {
      for (const std::string which : {"A", "B"}) {
        expected.insert("base_model.model.model.layers." + layer + "." + module + ".lora_" + which +
                        ".weight");
      }
    }
  }
  EXPECT_EQ(keys, expected);
  EXPECT_TRUE(
      torch::equal(saved.at("base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"),
                   model.named_parameters()["layers.1.attn.w_v.lora_B"]));
  const auto config = core::Json::parse(read(folder.path / "adapter_config.json"));
  EXPECT_EQ(config["peft_type"].string(), "LORA");
  EXPECT_EQ(config["r"].integer(), 3);
  EXPECT_EQ(config["lora_alpha"].integer(), 6);
  EXPECT_EQ(config["lora_dropout"].number(), 0.1);
  EXPECT_FALSE(config["fan_in_fan_out"].boolean());
  EXPECT_EQ(config["target_modules"].array().size(), 6U);
  EXPECT_EQ(config["target_modules"].array()[0].string(), "model.layers.0.self_attn.q_proj");

  const auto x = torch::randn({2, 5, 16});
  EXPECT_FALSE(torch::equal(other.forward(x), model.forward(x)));
  EXPECT_EQ(load_lora(other, folder.path, names::llama()), names);
  EXPECT_TRUE(torch::equal(other.forward(x), model.forward(x)));
  for (const auto& item : other.named_parameters()) {
    EXPECT_EQ(item.value().requires_grad(), item.key().find("lora_") != std::string::npos);
  }

  // By its own names, and over LoRA that is there.
  Folder own;
  add_lora(renamed, {.rank = 3, .alpha = 1, .targets = {"w_q", "w_v", "mlp_out"}});
  auto before = renamed.named_parameters();
  save_lora(model, own.path);
  EXPECT_EQ(load_lora(renamed, own.path), names);
  EXPECT_TRUE(torch::equal(renamed.forward(x), model.forward(x)));
  for (const auto& item : renamed.named_parameters()) {  // which an optimizer may hold
    EXPECT_TRUE(item.value().is_same(before[item.key()])) << item.key();
  }

  // One attention alone, from its tensors of the whole.
  auto attn = std::dynamic_pointer_cast<GroupedSelfAttentionImpl>(
      model.layers[0]->as<TransformerBlockImpl<GroupedSelfAttentionImpl>>()->attn->clone());
  Folder alone;
  save_lora(attn, alone.path, names::llama());
  EXPECT_EQ(load_safetensors(alone.path / "adapter_model.safetensors")
                .tensors.count("base_model.model.q_proj.lora_A.weight"),
            1U);
}

TEST(SaveLora, RefusesWhatHasNoForm) {
  Model model;
  Folder folder;
  expect_error([&] { save_lora(model, folder.path, names::llama()); }, {"save_lora", "no LoRA"});
  add_lora(model, {.rank = 3, .targets = {"w_q"}});
  add_lora(model, {.rank = 2, .targets = {"layers.1.attn.w_v"}});
  expect_error([&] { save_lora(model, folder.path, names::llama()); },
               {"layers.1.attn.w_v", "rank", "layers.0.attn.w_q"});
  expect_error([&] { save_lora(model, folder.path, names::gpt2()); },
               {"layers.0.attn.w_q", "transformer.h.0.attn.c_attn.weight", "layers.1.attn.w_v"});
  remove_lora(model);
  add_lora(model, {.targets = {"w_q", "w_o"}});
  NameMap half;
  half.rename("o.weight", "layers.0.attn.w_o.weight");
  expect_error([&] { save_lora(model, folder.path, half); },
               {"layers.0.attn.w_q", "no upstream name", "layers.1.attn.w_o"});
  NameMap odd;  // a change of the columns
  odd.rename(
         "{n}.weight", "layers.{n}.attn.w_q.weight",
         [](const torch::Tensor& t) { return t.flip(1); },
         [](const torch::Tensor& t) { return t.flip(1); })
      .rename("{n}.o.weight", "layers.{n}.attn.w_o.weight");
  expect_error([&] { save_lora(model, folder.path, odd); }, {"layers.1.attn.w_q", "rows"});
  EXPECT_FALSE(fs::exists(folder.path));
  MultiHeadSelfAttention attn(16, 2);
  add_lora(attn);
  expect_error([&] { save_lora(attn, folder.path, names::gpt2()); },
               {"w_q", "c_attn.weight", "part"});
  write(folder.path, "a file where the folder should be");
  expect_error([&] { save_lora(attn, folder.path); }, {"save_lora", folder.path.string()});
}

TEST(LoadLora, FollowsRowsTransposesAndFusedLayers) {
  torch::manual_seed(2);
  // Upstream has w_q's rows in another order, w_o turned.
  NameMap names;
  const auto order = torch::randperm(16), back = torch::argsort(order);
  names
      .rename(
          "query.weight", "w_q.weight",
          [order](const torch::Tensor& t) { return t.index_select(0, order); },
          [back](const torch::Tensor& t) { return t.index_select(0, back); })
      .rename("out.weight", "w_o.weight", names::transposed(), names::transposed())
      .rename("key.weight", "w_k.weight")
      .rename("value.weight", "w_v.weight");
  MultiHeadSelfAttention attn(16, 4), other(16, 4);
  copy_base(*attn, *other);
  const auto base = state_dict(*attn, names);
  add_lora(attn, {.rank = 2, .alpha = 3, .targets = {"w_q", "w_o"}});
  fill(*attn);
  Folder folder;
  save_lora(attn, folder.path, names);
  load_lora(other, folder.path, names);
  const auto x = torch::randn({2, 5, 16});
  EXPECT_TRUE(torch::equal(other(x).output, attn(x).output));
  // The merged weights are those that upstream gets from what was saved.
  const auto saved = load_safetensors(folder.path / "adapter_model.safetensors").tensors;
  merge_lora(attn);
  const auto merged = state_dict(*attn, names);
  for (const std::string module : {"query", "out"}) {
    const auto product = torch::matmul(saved.at("base_model.model." + module + ".lora_B.weight"),
                                       saved.at("base_model.model." + module + ".lora_A.weight")) *
                         1.5;
    const auto change = module == "out" ? product.t() : product;
    EXPECT_TRUE(torch::allclose(merged.at(module + ".weight"), base.at(module + ".weight") + change,
                                1e-5, 1e-6))
        << module;
  }
  EXPECT_TRUE(
      core::Json::parse(read(folder.path / "adapter_config.json"))["fan_in_fan_out"].boolean());

  // GPT-2's c_attn: one A, and B in three parts.
  MultiHeadSelfAttention fused({.d_model = 16, .num_heads = 4, .bias = true});
  const auto before = state_dict(*fused, names::gpt2());
  const auto A = torch::randn({2, 16}), B = torch::randn({48, 2});
  save_safetensors(
      folder.path / "adapter_model.safetensors",
      {{"base_model.model.c_attn.lora_A.weight", A}, {"base_model.model.c_attn.lora_B.weight", B}});
  EXPECT_EQ(load_lora(fused, folder.path, names::gpt2()), (Names{"w_q", "w_k", "w_v"}));
  merge_lora(fused);
  EXPECT_TRUE(torch::allclose(state_dict(*fused, names::gpt2()).at("c_attn.weight"),
                              before.at("c_attn.weight") + 1.5 * torch::matmul(B, A).t(), 1e-5,
                              1e-5));
}

TEST(LoadLora, IsStrictAndChangesNothing) {
  torch::manual_seed(3);
  Model model;
  add_lora(model, {.rank = 2});
  fill(model);
  Folder folder;
  save_lora(model, folder.path, names::llama());
  const auto config = read(folder.path / "adapter_config.json");
  const auto good = load_safetensors(folder.path / "adapter_model.safetensors").tensors;
  const std::string first = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
  const auto refuse = [&](Model& into, const Names& parts) {
    std::map<std::string, torch::Tensor> before;
    for (const auto& [name, t] : state_dict(into)) before[name] = t.clone();
    auto all = parts;
    all.push_back("load_lora");
    expect_error([&] { load_lora(into, folder.path, names::llama()); }, all);
    const auto after = state_dict(into);
    EXPECT_EQ(after.size(), before.size());
    for (const auto& [name, t] : after) EXPECT_TRUE(torch::equal(t, before.at(name))) << name;
  };
  const auto with = [&](const std::map<std::string, torch::Tensor>& changed,
                        const Names& removed = {}) {
    auto tensors = good;
    for (const auto& [name, t] : changed) tensors[name] = t;
    for (const auto& name : removed) tensors.erase(name);
    save_safetensors(folder.path / "adapter_model.safetensors", tensors);
  };
  Model fresh;
  with({{"x", torch::ones(1)}, {"base_model.model.model.norm.weight", torch::ones(16)}});
  refuse(fresh, {"extra: x", "extra: base_model.model.model.norm.weight"});
  with({}, {first + "A.weight"});
  refuse(fresh, {"missing", "layers.0.self_attn.q_proj.lora_A.weight"});
  with({{first + "A.weight", torch::ones({3, 16})}});
  refuse(fresh, {"q_proj", "[2, in]", "[3, 16]"});
  with({{first + "A.weight", torch::ones({2, 15})}});
  refuse(fresh, {"layers.0.attn.w_q", "[2, 15]", "[16, 16]"});
  with({{first + "B.weight", torch::ones({8, 2})}});
  refuse(fresh, {"layers.0.attn.w_q", "B", "[16, 2]", "[8, 2]"});
  with({{first + "B.weight", torch::ones({16, 2}, torch::kFloat64)}});
  refuse(fresh, {"layers.0.attn.w_q", "B", "Double"});
  with({{"base_model.model.lm_head.lora_A.weight", torch::ones({2, 16})},
        {"base_model.model.lm_head.lora_B.weight", torch::ones({7, 2})}});
  refuse(fresh, {"lm_head", "no such layer"});
  with({{"base_model.model.layers.0.self_attn.q_proj.lora_A.weight", torch::ones({2, 16})},
        {"base_model.model.layers.0.self_attn.q_proj.lora_B.weight", torch::ones({16, 2})}});
  refuse(fresh, {"layers.0.attn.w_q", "other numbers"});
  Model half;  // has LoRA in other layers
  add_lora(half, {.rank = 2, .targets = {"w_q", "w_o"}});
  with({});
  refuse(half, {"missing: the LoRA of layers.0.attn.w_o", "layers.1.attn.w_v: has no LoRA"});
  Model ranks;
  add_lora(ranks, {.rank = 4});
  refuse(ranks, {"layers.0.attn.w_q", "A", "[4, 16]", "[2, 16]"});

  // What a config may say that is another thing.
  const auto refuse_config = [&](const std::string& from, const std::string& to,
                                 const Names& parts) {
    write(folder.path / "adapter_config.json", config);
    edit(folder.path, from, to);
    refuse(fresh, parts);
  };
  refuse_config("\"LORA\"", "\"IA3\"", {"adapter_config.json", "peft_type"});
  refuse_config("\"r\": 2", "\"r\": 0", {"r:", "> 0"});
  refuse_config("\"r\": 2", "\"rank\": 2", {"r:", "rank: 2"});
  refuse_config("\"lora_alpha\": 8", "\"lora_alpha\": \"8\"", {"lora_alpha", "number"});
  refuse_config("\"lora_alpha\": 8", "\"lora_alpha\": -1", {"lora_alpha", "> 0"});
  refuse_config("\"lora_dropout\": 0", "\"lora_dropout\": 3", {"lora_dropout", "[0, 1]"});
  refuse_config("\"bias\": \"none\"", "\"bias\": \"all\"", {"bias", "not supported"});
  refuse_config("\"use_dora\": false", "\"use_dora\": true", {"use_dora"});
  refuse_config("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"", {"pissa"});
  refuse_config("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", {"lm_head"});
  refuse_config("\"modules_to_save\": null", "\"rank_pattern\": {\"q_proj\": 4}", {"rank_pattern"});
  write(folder.path / "adapter_config.json", "{");
  refuse(fresh, {"adapter_config.json"});
  fs::remove(folder.path / "adapter_config.json");
  refuse(fresh, {"adapter_config.json"});

  // What changes nothing, and rsLoRA's factor.
  write(folder.path / "adapter_config.json", config);
  edit(folder.path, "\"modules_to_save\": null",
       "\"modules_to_save\": [], \"rank_pattern\": {}, \"lora_bias\": false, \"later\": null");
  edit(folder.path, "\"use_rslora\": false", "\"use_rslora\": true");
  with({{first + "B.weight", good.at(first + "B.weight").to(torch::kFloat64)}});
  load_lora(fresh, folder.path, names::llama(), {.convert_dtype = true});
  const auto* block = fresh.layers[0]->as<TransformerBlockImpl<GroupedSelfAttentionImpl>>();
  EXPECT_DOUBLE_EQ(core::adaptable(*block->attn->w_q)->lora().scale(2), 8 / std::sqrt(2.0));
  EXPECT_EQ(state_dict(fresh).at("layers.0.attn.w_q.lora_B").scalar_type(), torch::kFloat32);
}

/// The language model of a config.json.
struct LanguageModel : torch::nn::Module {
  explicit LanguageModel(const ModelConfig& c)
      : embed(c.vocab, c.attention.d_model),
        layers(c.layers()),
        norm(c.block.norm, c.attention.d_model, c.block.norm_eps) {
    register_module("embed", embed);
    if (c.positions > 0) {
      positions = register_module("positions", torch::nn::Embedding(c.positions, 16));
    }
    register_module("layers", layers);
    register_module("norm", norm.ptr());
    if (!c.tied) {
      lm_head = register_module(
          "lm_head", torch::nn::Linear(torch::nn::LinearOptions(16, c.vocab).bias(false)));
    }
    eval();
  }
  torch::Tensor forward(const torch::Tensor& tokens) {
    auto x = embed(tokens);
    if (!positions.is_empty()) x = x + positions(torch::arange(tokens.size(1)));
    x = norm(layers(x, {.causal = true}).output);
    return torch::linear(x, lm_head.is_empty() ? embed->weight : lm_head->weight);
  }
  torch::nn::Embedding embed, positions{nullptr};
  Stack layers;
  Norm norm;
  torch::nn::Linear lm_head{nullptr};
};

TEST(LoadLora, ReadsWhatPeftHasWritten) {
  for (const std::string family : {"llama", "gpt2"}) {
    const auto folder = fs::path(ATTZOO_SOURCE_DIR) / "tests/golden-peft" / family;
    const auto given = load_safetensors(folder / "case.safetensors").tensors;
    const auto config = read_config(folder);
    LanguageModel model(config);
    model.to(torch::kFloat64);
    load_state_dict(model, tensors_under(given, "base."), config.names, {.convert_dtype = true});
    const auto base = model.forward(given.at("tokens"));
    const auto loaded = load_lora(model, folder, config.names, {.convert_dtype = true});
    EXPECT_EQ(loaded.size(), family == "llama" ? 6U : 10U);
    const auto& logits = given.at("logits");
    // transformers computes rotary angles in float32.
    const double eps = family == "llama" ? 0x1p-23 : 0x1p-48;
    const auto largest = [](const torch::Tensor& t) { return t.abs().max().item<double>(); };
    EXPECT_LT(largest(model.forward(given.at("tokens")) - logits), eps * largest(logits)) << family;
    EXPECT_GT(largest(base - logits), 0.01 * largest(logits)) << family;
    if (family == "llama") {  // goes back as it came
      Folder saved;
      model.to(torch::kFloat32);
      save_lora(model, saved.path, config.names);
      const auto before = load_safetensors(folder / "adapter_model.safetensors").tensors;
      const auto after = load_safetensors(saved.path / "adapter_model.safetensors").tensors;
      EXPECT_EQ(before.size(), after.size());
      for (const auto& [name, t] : before) EXPECT_TRUE(torch::equal(t, after.at(name))) << name;
      model.to(torch::kFloat64);
    }
    merge_lora(model);
    EXPECT_LT(largest(model.forward(given.at("tokens")) - logits), eps * largest(logits)) << family;
  }
}

}  // namespace
}  // namespace attzoo::testing::adapter_test
