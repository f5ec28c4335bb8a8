// The rows of docs/models.md: one layer of each model, as Hugging Face's transformers computes it
// with tiny random weights (tests/golden-models/README.md).

#include <gtest/gtest.h>

#include <filesystem>

#include "examples/released_models.hpp"
#include "support/parameters.hpp"

namespace attzoo::testing::released_models_test {
namespace {

using released::Sizes;

constexpr Sizes kDense{.width = 16, .heads = 4, .hidden = 24, .window = 5, .rotary_dim = 2};
constexpr Sizes kGrouped{.width = 16,
                         .heads = 4,
                         .kv_heads = 2,
                         .head_dim = 6,
                         .hidden = 24,
                         .window = 5,
                         .old_context = 16,
                         .scalar = 9};

NamedTensors golden(const std::string& name) {
  return load_safetensors(std::filesystem::path(ATTZOO_SOURCE_DIR) / "tests/golden-models" /
                          (name + ".safetensors"))
      .tensors;
}

void expect_close(const torch::Tensor& got, const torch::Tensor& want, const std::string& what,
                  double unit = 1e-12) {
  ASSERT_EQ(got.sizes(), want.sizes()) << what;
  const double error = (got - want).abs().max().item<double>();
  EXPECT_LE(error, unit * (1 + want.abs().max().item<double>())) << what;
}

template <class Module>
void load(Module& module, const NamedTensors& weights, const NameMap& names) {
  module->to(torch::kFloat64);
  module->eval();
  load_state_dict(*module, weights, names, {.convert_dtype = true});
}

/// An attention alone, whose weights lie below `prefix` in the layer.
template <class Attention>
void expect_attention(const std::string& name, Attention attn, const std::string& prefix,
                      const NameMap& names) {
  const torch::NoGradGuard no_grad;
  auto layer = golden(name);
  // ALiBi's slopes are no weights of the models.
  if constexpr (requires { attn->slopes; }) layer["param." + prefix + "slopes"] = attn->slopes;
  load(attn, tensors_under(layer, "param." + prefix), names);
  expect_close(attn(layer.at("in.attn")).output, layer.at("out.attn"), name);
}

/// A block and its attention.
template <class Block>
void expect_block(const std::string& name, Block block, const NameMap& names) {
  const torch::NoGradGuard no_grad;
  const auto layer = golden(name);
  load(block, tensors_under(layer, "param."), names);
  expect_close(block->attn(layer.at("in.attn")).output, layer.at("out.attn"),
               name + "'s attention");
  expect_close(block(layer.at("in.layer")).output, layer.at("out.layer"), name);
}

TEST(ReleasedModels, ByMapsOfTheLibrary) {
  expect_block("llama2", released::llama2(kDense), names::llama());
  expect_block("llama3", released::llama3(kGrouped), names::llama());
  expect_block("mistral", released::mistral(kGrouped), names::mistral());
  expect_block("qwen2", released::qwen2(kGrouped), names::qwen2());
  expect_block("qwen3", released::qwen3(kGrouped), names::qwen3());
  for (const bool local : {false, true}) {
    const std::string kind = local ? "_local" : "_global";
    expect_block("gemma2" + kind, released::gemma2(kGrouped, local), names::gemma2());
    expect_block("gemma3" + kind, released::gemma3(kGrouped, local), names::gemma2());
    expect_attention("gpt_oss" + kind, released::gpt_oss(kGrouped, local), "self_attn.",
                     names::gpt_oss());
  }
  expect_block("gpt2", released::gpt2(kDense), names::gpt2());
  expect_attention("mixtral", released::mixtral(kGrouped), "self_attn.", names::llama());
  expect_attention("command_r", released::command_r(kGrouped), "self_attn.", names::llama());
  auto next = kGrouped;
  next.head_dim = 8;
  next.rotary_dim = 2;
  expect_attention("qwen3_next", released::qwen3_next(next), "self_attn.", names::qwen3_next(4));
  expect_attention("clip_text", released::clip(kDense, true), "self_attn.", names::bart());
  expect_attention("clip_image", released::clip(kDense, false), "self_attn.", names::bart());
}

/// Where the attention lies in `attn`, and layers that have other names of their own.
NameMap block_map(const NameMap& attention, const std::string& attn,
                  const std::vector<std::pair<std::string, std::string>>& layers) {
  NameMap map;
  map.add(attention, attn, "attn.");
  for (const auto& [from, to] : layers) map.rename_layer(from, to);
  return map;
}

NameMap attention_map(const std::string& out) {
  NameMap map;
  return map.rename_layer("q_proj", "w_q")
      .rename_layer("k_proj", "w_k")
      .rename_layer("v_proj", "w_v")
      .rename_layer(out, "w_o");
}

/// The same of one tensor, [q | k | v] in all or in each of `heads`.
NameMap fused_map(const std::string& from, const std::string& out, int64_t heads = 1) {
  NameMap map;
  for (const std::string what : {".weight", ".bias"}) {
    map.split(from + what, {{"w_q" + what, names::part_of_heads(heads, 0, 3)},
                            {"w_k" + what, names::part_of_heads(heads, 1, 3)},
                            {"w_v" + what, names::part_of_heads(heads, 2, 3)}});
  }
  return map.rename_layer(out, "w_o");
}

TEST(ReleasedModels, ByOtherMaps) {
  expect_block(
      "phi2", released::phi2(kDense),
      block_map(attention_map("dense"), "self_attn.",
                {{"input_layernorm", "norm_attn"}, {"mlp.fc1", "mlp_in"}, {"mlp.fc2", "mlp_out"}}));
  expect_block("phi3", released::phi3(kDense),
               block_map(fused_map("qkv_proj", "o_proj"), "self_attn.",
                         {{"input_layernorm", "norm_attn"},
                          {"post_attention_layernorm", "norm_mlp"},
                          {"mlp.down_proj", "mlp_out"}})
                   .split("mlp.gate_up_proj.weight", {{"mlp_gate.weight", names::part(0, 2)},
                                                      {"mlp_in.weight", names::part(1, 2)}}));
  expect_block("starcoder2", released::starcoder2(kGrouped),
               block_map(attention_map("o_proj"), "self_attn.",
                         {{"input_layernorm", "norm_attn"},
                          {"post_attention_layernorm", "norm_mlp"},
                          {"mlp.c_fc", "mlp_in"},
                          {"mlp.c_proj", "mlp_out"}}));
  expect_block(
      "gptj", released::gptj(kDense),
      block_map(attention_map("out_proj"), "attn.",
                {{"ln_1", "norm_attn"}, {"mlp.fc_in", "mlp_in"}, {"mlp.fc_out", "mlp_out"}}));
  const auto rows = [](int64_t from, int64_t to) {
    return [from, to](const torch::Tensor& t) { return t.slice(0, from, to); };
  };
  NameMap one_key;
  one_key
      .split(
          "query_key_value.weight",
          {{"w_q.weight", rows(0, 16)}, {"w_k.weight", rows(16, 20)}, {"w_v.weight", rows(20, 24)}})
      .rename_layer("dense", "w_o");
  expect_block("falcon", released::falcon(kDense),
               block_map(one_key, "self_attention.",
                         {{"input_layernorm", "norm_attn"},
                          {"mlp.dense_h_to_4h", "mlp_in"},
                          {"mlp.dense_4h_to_h", "mlp_out"}}));
  expect_block("vit", released::vit(kDense),
               block_map(attention_map("o_proj"), "attention.",
                         {{"layernorm_before", "norm_attn"},
                          {"layernorm_after", "norm_mlp"},
                          {"mlp.fc1", "mlp_in"},
                          {"mlp.fc2", "mlp_out"}}));
  expect_attention("gpt_neox", released::gpt_neox({.width = 16, .heads = 2, .rotary_dim = 2}),
                   "attention.", fused_map("query_key_value", "dense", 2));
  expect_attention("mpt", released::mpt(kDense), "attn.",
                   fused_map("Wqkv", "out_proj").rename("slopes", "slopes"));
}

// Its attention adds the residual itself, so that only the block can be compared.
TEST(ReleasedModels, Bloom) {
  const torch::NoGradGuard no_grad;
  auto block = released::bloom(kDense);
  auto layer = golden("bloom");
  layer["param.self_attention.slopes"] = block->attn->slopes;
  load(block, tensors_under(layer, "param."),
       block_map(fused_map("query_key_value", "dense", 4).rename("slopes", "slopes"),
                 "self_attention.",
                 {{"input_layernorm", "norm_attn"},
                  {"post_attention_layernorm", "norm_mlp"},
                  {"mlp.dense_h_to_4h", "mlp_in"},
                  {"mlp.dense_4h_to_h", "mlp_out"}}));
  // Its source writes sqrt(2 / pi) as 0.79788456.
  expect_close(block(layer.at("in.layer")).output, layer.at("out.layer"), "bloom", 1e-9);
}

// Theirs gives the heads' outputs before w_o: the block has it.
TEST(ReleasedModels, BertAndLongformer) {
  const torch::NoGradGuard no_grad;
  const auto bert = golden("bert"), longformer = golden("longformer");
  auto block = released::bert(kDense);
  load(block, tensors_under(bert, "param."), names::bert());
  expect_close(block(bert.at("in.layer"), {.key_padding_mask = bert.at("in.real")}).output,
               bert.at("out.layer"), "bert");

  auto names = names::bert();
  for (const auto& [from, to] : {std::pair{"query", "w_q"}, {"key", "w_k"}, {"value", "w_v"}}) {
    names.rename_layer(c10::str("attention.self.", from, "_global"),
                       c10::str("attn.", to, "_global"));
  }
  auto sizes = kDense;
  sizes.window = 4;
  auto far = released::longformer(sizes);
  load(far, tensors_under(longformer, "param."), names);
  const auto x = longformer.at("in.layer");  // padded to whole windows
  const auto more = [&](const std::string& name) {
    const auto t = longformer.at(name);
    return torch::constant_pad_nd(t, {0, x.size(1) - t.size(1)});
  };
  const auto real = more("in.real");
  const auto y = far(x, {.key_padding_mask = real, .global_attention = more("in.global")}).output;
  expect_close(y.index({real}), longformer.at("out.layer").index({real}), "longformer");
}

}  // namespace
}  // namespace attzoo::testing::released_models_test
