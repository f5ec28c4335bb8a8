// What is made of a config.json. That such models compute what they should, decode_test.cpp holds.
#include <gtest/gtest.h>
#include <attzoo/io/model_config.hpp>

#include <filesystem>
#include <fstream>
#include <limits>
#include <map>

#include "support/config_json.hpp"
#include "support/expect_error.hpp"

namespace attzoo::testing::model_config_test {
namespace {

using core::Json;

ModelConfig parsed(const Json& json) { return core::parse_config(json, "config.json"); }

TEST(ModelConfig, ReadsLlama) {
  const auto c = parsed(changed(kLlama));
  EXPECT_EQ(c.vocab, 100);
  EXPECT_EQ(c.context, 131072);
  EXPECT_TRUE(c.tied);
  EXPECT_EQ(c.stop, (std::vector<int64_t>{128001, 128009}));
  EXPECT_EQ(c.attention.d_model, 64);
  EXPECT_EQ(c.attention.num_query_heads, 8);
  EXPECT_EQ(c.attention.num_kv_heads, 2);
  EXPECT_EQ(c.attention.head_dim, 8);
  EXPECT_TRUE(c.attention.causal);
  EXPECT_FALSE(c.attention.bias || c.attention.qk_norm || c.attention.sinks);
  EXPECT_EQ(c.block.norm_eps, 1e-5);
  EXPECT_EQ(c.block.norm, NormKind::kRMSNorm);
  EXPECT_TRUE(c.block.mlp_gated);
  EXPECT_FALSE(c.block.mlp_bias);
  EXPECT_EQ(c.windows, std::vector<std::optional<int64_t>>(3));
  const auto* rope = c.attention.rope.options();
  ASSERT_TRUE(rope);
  EXPECT_EQ(rope->base, 500000);
  EXPECT_EQ(rope->pairs, RopePairs::kHalves);
  const auto& scaling = std::get<Llama3RopeScaling>(rope->scaling);
  EXPECT_EQ(scaling.factor, 8);
  EXPECT_EQ(scaling.original_max_position, 8192);
}

TEST(ModelConfig, ReadsBothWaysOfWritingRope) {
  const Json::Object yarn{{"rope_type", "yarn"}, {"factor", 4}, {"rope_theta", 1e6}};
  const auto in_parameters = parsed(
      changed(kLlama, {{"rope_theta", {}}, {"rope_scaling", {}}, {"rope_parameters", yarn}}));
  const auto* a = in_parameters.attention.rope.options();
  const auto old =
      parsed(changed(kLlama, {{"rope_theta", 1e6},
                              {"partial_rotary_factor", 0.5},
                              {"rope_scaling", Json::Object{{"type", "linear"}, {"factor", 2}}}}));
  const auto* b = old.attention.rope.options();
  EXPECT_EQ(a->base, 1e6);
  EXPECT_EQ(std::get<YarnRopeScaling>(a->scaling).original_max_position, 131072);
  EXPECT_FALSE(std::get<YarnRopeScaling>(a->scaling).attention_factor);
  EXPECT_FALSE(a->dimensions);
  EXPECT_EQ(b->base, 1e6);
  EXPECT_EQ(std::get<LinearRopeScaling>(b->scaling).factor, 2);
  EXPECT_EQ(b->dimensions, 4);
}

TEST(ModelConfig, EachFamilyHasItsBiasesNormsAndWindows) {
  const auto of = [](const char* family, Json::Object more = {}) {
    more["model_type"] = family;
    if (std::string(family) == "mistral") {
      more["attention_bias"] = more["mlp_bias"] = Json();
    } else if (std::string(family) != "llama") {
      more["mlp_bias"] = Json();
      if (std::string(family) == "qwen2") more["attention_bias"] = Json();
    }
    return parsed(changed(kLlama, more));
  };
  using Windows = std::vector<std::optional<int64_t>>;
  const auto qwen2 =
      of("qwen2", {{"use_sliding_window", true}, {"sliding_window", 16}, {"max_window_layers", 2}});
  EXPECT_TRUE(qwen2.attention.bias);
  EXPECT_EQ(qwen2.attention.out_bias, false);
  EXPECT_EQ(qwen2.windows, (Windows{{}, {}, 16}));
  const auto qwen3 = of("qwen3", {{"sliding_window", 16}, {"use_sliding_window", false}});
  EXPECT_TRUE(qwen3.attention.qk_norm);
  EXPECT_EQ(qwen3.attention.qk_norm_eps, 1e-5);
  EXPECT_EQ(qwen3.attention.head_dim, 128);
  EXPECT_EQ(qwen3.windows, Windows(3));
  EXPECT_EQ(of("mistral", {{"sliding_window", 16}}).windows, (Windows{16, 16, 16}));
  EXPECT_EQ(of("mistral").windows, (Windows{4096, 4096, 4096}));
  const Json::Array types{"full_attention", "sliding_attention", "full_attention"};
  EXPECT_EQ(of("mistral", {{"sliding_window", 8}, {"layer_types", types}}).windows,
            (Windows{{}, 8, {}}));
  const auto oss = of("gpt_oss", {{"num_local_experts", 4}, {"attention_bias", true}});
  EXPECT_EQ(oss.windows, (Windows{128, {}, 128}));
  EXPECT_TRUE(oss.attention.sinks);
  EXPECT_EQ(oss.attention.out_bias, true);
  EXPECT_EQ(oss.experts->per_token, 4);
  const auto gpt2 = parsed(Json::parse(
      R"({"model_type": "gpt2", "n_embd": 12, "n_head": 3, "n_layer": 2, "n_positions": 9,
          "n_inner": null, "vocab_size": 7, "activation_function": "gelu_new"})"));
  EXPECT_EQ(gpt2.positions, 9);
  EXPECT_TRUE(gpt2.tied);
  EXPECT_TRUE(gpt2.attention.bias);
  EXPECT_EQ(gpt2.block.mlp_hidden, 48);
  EXPECT_EQ(gpt2.block.activation, Activation::kGeluTanh);
  EXPECT_FALSE(gpt2.attention.rope);
}

TEST(ModelConfig, OneErrorListsAllThatIsWrong) {
  expect_error(
      [] {
        parsed(changed(kLlama, {{"model_type", "bert"}}));
      },
      {"config.json", "model_type", "bert", "llama"});
  expect_error([] { parsed(changed(kLlama, {{"model_type", {}}})); }, {"config.json"});
  expect_error(
      [] {
        parsed(changed(kLlama,
                       {{"hidden_size", {}},
                        {"num_attention_heads", "eight"},
                        {"hidden_act", "tanh"},
                        {"logit_scale", 0.5},
                        {"quantization_config", Json::Object{{"quant_method", "mxfp4"}}},
                        {"architectures", Json::Array{"LlamaForSequenceClassification"}},
                        {"rope_scaling", Json::Object{{"rope_type", "dynamic"}, {"factor", 2}}}}));
      },
      {"config.json", "hidden_size is missing", "num_attention_heads", "eight", "hidden_act",
       "logit_scale = 0.5 is not known", "quantization_config", "SequenceClassification",
       "rope_scaling: rope_type = \"dynamic\" is not supported"});
  expect_error(
      [] {
        parsed(changed(
            kLlama,
            {{"rope_scaling", Json::Object{{"rope_type", "llama3"}, {"factor", 2}, {"more", 1}}}}));
      },
      {"rope_scaling: low_freq_factor is missing", "rope_scaling: more = 1 is not known"});
  expect_error(
      [] {
        parsed(changed(kLlama, {{"num_hidden_layers", -1}}));
      },
      {"num_hidden_layers", "10000"});
  expect_error([] { parsed(changed(kLlama, {{"rope_scaling", 3}})); }, {"rope_scaling", "object"});
}

/// The numbers of config.json that no model has.
TEST(ModelConfig, NumbersOutOfRangeAreNamed) {
  const auto refused = [](const Json::Object& changes, const std::vector<std::string>& parts) {
    auto all = parts;
    all.push_back("config.json");
    expect_error([&] { parsed(changed(kLlama, changes)); }, all);
  };
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
                          "num_key_value_heads", "head_dim"}) {
    for (const int64_t wrong : {kHuge, int64_t{1} << 31, int64_t{0}, int64_t{-1}, -kHuge}) {
      refused({{key, wrong}},
              {std::string(key) + ": must be within 1 ... ", std::to_string(wrong)});
    }
    refused({{key, 64.5}}, {key, "an integer", "64.5"});
  }
  for (const char* key : {"n_embd", "n_head", "n_positions", "n_inner", "vocab_size"}) {
    Json::Object gpt2{{"model_type", "gpt2"}, {"n_embd", 12},     {"n_head", 3},
                      {"n_layer", 1},         {"n_positions", 9}, {"vocab_size", 7}};
    gpt2[key] = kHuge;
    expect_error([&] { parsed(gpt2); }, {key, "within 1"});
  }
  for (const double part : {-0.5, 1.5, 1e300, 1e-300 * -1}) {
    refused({{"partial_rotary_factor", part}}, {"partial_rotary_factor: must be within 0 ... 1"});
  }
  const auto scaling = [](const char* type, const char* key, const Json& value) {
    Json::Object o{{"rope_type", type},
                   {"factor", 2},
                   {"low_freq_factor", 1},
                   {"high_freq_factor", 4},
                   {"original_max_position_embeddings", 64}};
    if (std::string(type) == "yarn") o.erase("low_freq_factor"), o.erase("high_freq_factor");
    o[key] = value;
    return Json::Object{{"rope_scaling", o}};
  };
  for (const double factor : {1e308, -2.0, 0.0}) {
    refused(scaling("llama3", "factor", factor), {"rope_scaling: factor: must be within 1"});
    refused(scaling("yarn", "factor", factor), {"rope_scaling: factor: must be within 1"});
  }
  refused(scaling("yarn", "attention_factor", 1e308), {"rope_scaling: attention_factor"});
  refused(scaling("yarn", "beta_fast", 1e308), {"rope_scaling: beta_fast"});
  refused(scaling("llama3", "high_freq_factor", 1e308), {"rope_scaling: high_freq_factor"});
  refused({{"rope_theta", 1e308}}, {"rope_theta: must be within"});
  refused({{"rope_theta", -1}}, {"rope_theta: must be within"});
  refused({{"rms_norm_eps", 1e308}}, {"rms_norm_eps: must be within 0 ... 1"});
  refused({{"rms_norm_eps", -1e-5}}, {"rms_norm_eps: must be within 0 ... 1"});
  refused({{"max_position_embeddings", 0}}, {"max_position_embeddings: must be within 1"});
  refused({{"model_type", "mistral"}, {"sliding_window", -3}},
          {"sliding_window: must be within 0"});
  refused({{"eos_token_id", Json::Array{1, "end"}}}, {"eos_token_id: \"end\" is no token"});
  const auto experts = [](const char* key, const Json& value) {
    Json::Object o{{"model_type", "gpt_oss"}, {"num_local_experts", 4}, {"mlp_bias", {}}};
    o[key] = value;
    return o;
  };
  refused(experts("num_local_experts", kHuge), {"num_local_experts: must be within 1"});
  refused(experts("num_experts_per_tok", 5),
          {"num_experts_per_tok must be at most num_local_experts"});
  refused(experts("swiglu_limit", -7), {"swiglu_limit: must be within 0"});
  refused(experts("swiglu_alpha", 1e308), {"swiglu_alpha: must be within"});
}

/// Blocks of these options load a checkpoint, in a module that registers them as the maps expect.
TEST(ModelConfig, LayersLoadByItsNames) {
  const auto folder = std::filesystem::temp_directory_path() / "attzoo_model_config";
  std::filesystem::create_directories(folder);
  const auto file = folder / "config.json";
  std::ofstream(file) << changed(kLlama).dump();
  const auto config = read_config(folder);
  EXPECT_EQ(read_config(file).vocab, config.vocab);
  std::filesystem::remove_all(folder);
  expect_error([&] { read_config(folder); }, {"read_config", folder.string(), "cannot be opened"});

  auto layers = config.layers();
  ASSERT_EQ(layers->size(), 3U);
  const std::map<std::string, std::string> upstream{
      {"norm_attn", "input_layernorm"}, {"attn.w_q", "self_attn.q_proj"},
      {"attn.w_k", "self_attn.k_proj"}, {"attn.w_v", "self_attn.v_proj"},
      {"attn.w_o", "self_attn.o_proj"}, {"norm_mlp", "post_attention_layernorm"},
      {"mlp_in", "mlp.up_proj"},        {"mlp_gate", "mlp.gate_proj"},
      {"mlp_out", "mlp.down_proj"}};
  std::map<std::string, torch::Tensor> tensors;
  for (const auto& [name, t] : state_dict(*config.layers())) {
    const auto dot = name.find('.'), end = name.rfind('.');
    tensors["model.layers." + name.substr(0, dot + 1) +
            upstream.at(name.substr(dot + 1, end - dot - 1)) + name.substr(end)] =
        torch::randn_like(t).detach();
  }
  torch::nn::Module model;
  model.register_module("layers", layers);
  load_state_dict(model, tensors, config.names);
  EXPECT_TRUE(torch::equal(state_dict(*layers).at("1.attn.w_o.weight"),
                           tensors.at("model.layers.1.self_attn.o_proj.weight")));
  const torch::NoGradGuard no_grad;
  EXPECT_EQ(layers(torch::randn({1, 5, 64})).output.sizes(), (std::vector<int64_t>{1, 5, 64}));
  expect_error([&] { config.attention_of(3); }, {"no layer 3 of 3"});
}

TEST(ModelConfig, ExpertsAreNoBlocksOfTheLibrary) {
  const auto config = parsed(
      changed(kLlama, {{"model_type", "gpt_oss"}, {"num_local_experts", 4}, {"mlp_bias", {}}}));
  expect_error([&] { config.layers(); }, {"gpt_oss", "experts", "attention_of(layer)"});
  EXPECT_EQ(config.attention_of(0).sliding_window, 128);
  EXPECT_FALSE(config.attention_of(1).sliding_window);
}

}  // namespace
}  // namespace attzoo::testing::model_config_test
