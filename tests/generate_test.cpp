// attzoo_generate: what it makes of config.json, how it draws tokens, and the program itself.

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "examples/generate/options.hpp"
#include "examples/generate/sample.hpp"
#include "golden_decode.hpp"
#include "support/expect_error.hpp"
#include "support/peak_memory.hpp"

namespace attzoo::testing {
namespace {

using core::Json;
using generate::read_config;

/// A config.json with changes; a value that is null takes the key away.
Json changed(const char* text, const Json::Object& changes = {}) {
  auto all = Json::parse(text).object();
  for (const auto& [key, value] : changes) {
    if (value.is_null()) {
      all.erase(key);
    } else {
      all[key] = value;
    }
  }
  return all;
}

constexpr const char* kLlama = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128009], "hidden_act": "silu",
  "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96,
  "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 8, "num_hidden_layers": 3, "num_key_value_heads": 2,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.43.0", "use_cache": true, "vocab_size": 100})";

TEST(GenerateConfig, ReadsLlama) {
  const auto c = read_config(changed(kLlama));
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

TEST(GenerateConfig, ReadsBothWaysOfWritingRope) {
  const Json::Object yarn{{"rope_type", "yarn"}, {"factor", 4}, {"rope_theta", 1e6}};
  const auto in_parameters = read_config(
      changed(kLlama, {{"rope_theta", {}}, {"rope_scaling", {}}, {"rope_parameters", yarn}}));
  const auto* a = in_parameters.attention.rope.options();
  const auto old = read_config(
      changed(kLlama, {{"rope_theta", 1e6},
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

TEST(GenerateConfig, EachFamilyHasItsBiasesNormsAndWindows) {
  const auto of = [](const char* family, Json::Object more = {}) {
    more["model_type"] = family;
    if (std::string(family) == "mistral") {
      more["attention_bias"] = more["mlp_bias"] = Json();
    } else if (std::string(family) != "llama") {
      more["mlp_bias"] = Json();
      if (std::string(family) == "qwen2") more["attention_bias"] = Json();
    }
    return read_config(changed(kLlama, more));
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
  const auto gpt2 = read_config(Json::parse(
      R"({"model_type": "gpt2", "n_embd": 12, "n_head": 3, "n_layer": 2, "n_positions": 9,
          "n_inner": null, "vocab_size": 7, "activation_function": "gelu_new"})"));
  EXPECT_EQ(gpt2.positions, 9);
  EXPECT_TRUE(gpt2.tied);
  EXPECT_TRUE(gpt2.attention.bias);
  EXPECT_EQ(gpt2.block.mlp_hidden, 48);
  EXPECT_EQ(gpt2.block.activation, Activation::kGeluTanh);
  EXPECT_FALSE(gpt2.attention.rope);
}

TEST(GenerateConfig, OneErrorListsAllThatIsWrong) {
  expect_error(
      [] {
        read_config(changed(kLlama, {{"model_type", "bert"}}));
      },
      {"config.json", "model_type", "bert", "llama"});
  expect_error([] { read_config(changed(kLlama, {{"model_type", {}}})); }, {"config.json"});
  expect_error(
      [] {
        read_config(changed(
            kLlama, {{"hidden_size", {}},
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
        read_config(changed(
            kLlama,
            {{"rope_scaling", Json::Object{{"rope_type", "llama3"}, {"factor", 2}, {"more", 1}}}}));
      },
      {"rope_scaling: low_freq_factor is missing", "rope_scaling: more = 1 is not known"});
  expect_error(
      [] {
        read_config(changed(kLlama, {{"num_hidden_layers", -1}}));
      },
      {"num_hidden_layers", "10000"});
  expect_error(
      [] {
        read_config(changed(kLlama, {{"rope_scaling", 3}}));
      },
      {"rope_scaling", "object"});
}

/// The numbers of config.json that no model has.
TEST(GenerateConfig, NumbersOutOfRangeAreNamed) {
  const auto refused = [](const Json::Object& changes, const std::vector<std::string>& parts) {
    auto all = parts;
    all.push_back("config.json");
    expect_error([&] { read_config(changed(kLlama, changes)); }, all);
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
    expect_error([&] { read_config(gpt2); }, {key, "within 1"});
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

TEST(GenerateConfig, SizesAreThoseOfTheModel) {
  const auto check = [](const Json& config) {
    const auto c = read_config(config);
    generate::Sizes sizes;
    for (const auto& [name, t] : state_dict(generate::LanguageModel(c))) {
      sizes[name] = t.sizes().vec();
    }
    EXPECT_EQ(generate::sizes_of(c), sizes) << config.dump();
  };
  check(changed(kLlama));
  check(changed(kLlama, {{"tie_word_embeddings", false},
                         {"attention_bias", true},
                         {"mlp_bias", true},
                         {"head_dim", 20}}));
  check(changed(kLlama, {{"model_type", "qwen2"}, {"attention_bias", {}}, {"mlp_bias", {}}}));
  check(changed(kLlama, {{"model_type", "qwen3"}, {"mlp_bias", {}}}));
  check(changed(kLlama, {{"model_type", "mistral"}, {"attention_bias", {}}, {"mlp_bias", {}}}));
  check(changed(kLlama, {{"model_type", "gpt_oss"}, {"num_local_experts", 5}, {"mlp_bias", {}}}));
  Json::Object gpt2{{"model_type", "gpt2"}, {"n_embd", 12},     {"n_head", 3},
                    {"n_layer", 2},         {"n_positions", 9}, {"vocab_size", 7}};
  check(gpt2);
  gpt2["n_inner"] = 20;
  gpt2["tie_word_embeddings"] = false;
  check(gpt2);
}

TEST(GenerateModel, LearnedPositionsEnd) {
  torch::manual_seed(0);
  const torch::NoGradGuard no_grad;
  generate::LanguageModel model(read_config(Json::parse(
      R"({"model_type": "gpt2", "n_embd": 12, "n_head": 3, "n_layer": 1, "n_positions": 6,
          "vocab_size": 7})")));
  auto state = model.make_state(1, 16);
  model.forward(torch::zeros({1, 6}, torch::kInt64), state);
  expect_error([&] { model.forward(torch::zeros({1, 1}, torch::kInt64), state); }, {"6 positions"});
}

TEST(GenerateSample, ProbabilitiesAreThoseOfTheirDefinitions) {
  const auto logits = torch::tensor({1.0, 3.0, 2.0, 0.0, -1.0}, torch::kFloat64);
  const auto p = torch::softmax(logits / 0.5, -1);
  EXPECT_TRUE(torch::allclose(generate::probabilities(logits, {0.5, 0, 1}), p));
  const auto two = torch::softmax(torch::tensor({3.0, 2.0}, torch::kFloat64), -1);
  const auto top2 = generate::probabilities(logits, {1, 2, 1});
  EXPECT_TRUE(torch::allclose(top2.index({torch::tensor({1, 2})}), two));
  EXPECT_EQ((top2 > 0).sum().item<int64_t>(), 2);
  // 0.636 + 0.234 reach 0.8; the first alone does not.
  EXPECT_TRUE(torch::allclose(generate::probabilities(logits, {1, 0, 0.8}), top2));
  EXPECT_EQ((generate::probabilities(logits, {1, 0, 0}) > 0).sum().item<int64_t>(), 1);
}

TEST(GenerateSample, NoTemperatureIsTooLow) {
  const auto logits = torch::tensor({1.0, 3.0, 2.0}, torch::kFloat64);
  for (const double temperature : {1e-300, 5e-324}) {
    EXPECT_TRUE(torch::equal(generate::probabilities(logits, {temperature, 0, 1}),
                             torch::tensor({0.0, 1.0, 0.0}, torch::kFloat64)));
  }
}

TEST(GenerateSample, DrawsByItsSeed) {
  const auto logits = torch::log(torch::tensor({0.5, 0.3, 0.2}));
  const auto draw = [&](int64_t seed) {
    generate::Sampler sample({.temperature = 1}, seed);
    std::vector<int64_t> ids;
    for (int i = 0; i < 2000; ++i) ids.push_back(sample(logits));
    return ids;
  };
  const auto ids = draw(1);
  EXPECT_EQ(draw(1), ids);
  EXPECT_NE(draw(2), ids);
  EXPECT_NEAR(static_cast<double>(std::count(ids.begin(), ids.end(), 0)), 1000, 100);
  EXPECT_NEAR(static_cast<double>(std::count(ids.begin(), ids.end(), 2)), 400, 80);
  generate::Sampler greedy({}, 1);
  EXPECT_EQ(greedy(logits), 0);
}

/// A folder of its own, which goes with it.
struct Folder {
  Folder() : path(std::filesystem::temp_directory_path() / c10::str("attzoo_generate_", getpid())) {
    std::filesystem::create_directories(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  void write(const char* name, const Json& json) const {
    std::ofstream(path / name) << json.dump(2);
  }
  std::filesystem::path path;
};

/// A folder with the weights of a reference case, and its config.json with changes.
struct ModelFolder : Folder {
  explicit ModelFolder(const std::string& name)
      : model(load_safetensors(std::filesystem::path(ATTZOO_SOURCE_DIR) / "tests/golden-modern" /
                               ("decode_" + name + "__greedy.f64.safetensors"))) {
    save_safetensors(path / "model.safetensors", model.weights());
    change({});
  }
  void change(const Json::Object& changes) const {
    write("config.json", changed(model.config().dump().c_str(), changes));
  }
  DecodeCase model;
};

std::unique_ptr<generate::LanguageModel> load(const Folder& folder) {
  return generate::load_model(folder.path, torch::kFloat64, torch::kCPU);
}

TEST(GenerateModel, SizesAreHeldAgainstTheTensorsFirst) {
  constexpr int64_t kMany = 100'000'000;
  struct Wrong {
    const char *key, *part;
    int64_t value = kMany;
  };
  const std::map<std::string, std::vector<Wrong>> wrong{
      {"llama",
       {{"vocab_size", "embed.weight (from model.embed_tokens.weight): expected [100000000, "},
        {"hidden_size", "embed.weight (from model.embed_tokens.weight): expected [97, 100000000]"},
        {"intermediate_size", "layers.0.mlp_in.weight (from model.layers.0.mlp.up_proj.weight): "},
        {"num_attention_heads", "layers.0.attn.w_q.weight"},
        {"num_key_value_heads", "layers.0.attn.w_k.weight"},
        {"head_dim", "layers.0.attn.w_o.weight"},
        {"num_hidden_layers", "10000 layers", 10000},
        {"num_hidden_layers", "missing: layers.3.attn.w_q.weight", 5},
        {"num_hidden_layers", "extra: model.layers.1.", 1}}},
      {"gpt2",
       {{"vocab_size", "embed.weight"},
        {"n_positions", "positions.weight (from transformer.wpe.weight): expected [100000000, "},
        {"n_embd", "layers.0.attn.w_o.weight (from transformer.h.0.attn.c_proj.weight)"},
        {"n_inner", "layers.0.mlp_out.weight"},
        {"n_layer", "10000 layers", 10000}}},
      {"gpt_oss",
       {{"vocab_size", "embed.weight"},
        {"num_local_experts", "layers.0.mlp.experts.down_proj (from "},
        {"num_hidden_layers", "10000 layers", 10000}}}};
  for (const auto& [name, cases] : wrong) {
    const ModelFolder folder(name);
    for (const auto& [key, part, value] : cases) {
      SCOPED_TRACE(name + ": " + key);
      folder.change({{key, value}});
      const PeakMemory memory;
      expect_error([&] { load(folder); }, {part});
      EXPECT_LT(memory.total(), 1 << 20);
    }
    folder.change({});
    load(folder);
  }
}

TEST(GenerateModel, ConfigIsARegularFile) {
  const ModelFolder folder("llama");
  const auto config = folder.path / "config.json";
  std::filesystem::remove(config);
  expect_error([&] { load(folder); }, {config.string(), "cannot be opened"});
  ASSERT_EQ(::mkfifo(config.c_str(), 0600), 0);
  expect_error([&] { load(folder); }, {config.string(), "pipe", "regular file"});
  std::filesystem::remove(config);
  std::filesystem::create_symlink("/dev/zero", config);
  expect_error([&] { load(folder); }, {config.string(), "device", "regular file"});
  std::filesystem::remove(config);
  folder.write("config.json", Json::Array{});
  expect_error([&] { load(folder); }, {"config.json", "an object"});
}

TEST(GenerateModel, AFileMayHaveTheOutputLayerAlone) {
  const torch::NoGradGuard no_grad;
  const ModelFolder folder("gpt2");
  const auto ids = folder.model.at("in.prompt.0").unsqueeze(0);
  const auto logits = [&] {
    const auto model = load(folder);
    auto state = model->make_state(1, ids.size(1));
    return model->logits(model->forward(ids, state));
  };
  const auto want = logits();
  auto weights = folder.model.weights();
  weights.erase("lm_head.weight");
  auto embedding = weights.extract("transformer.wte.weight");
  weights["lm_head.weight"] = embedding.mapped();
  save_safetensors(folder.path / "model.safetensors", weights);
  EXPECT_TRUE(torch::equal(logits(), want));
}

TEST(GenerateOptions, ReadsACommandLine) {
  using generate::parse_options;
  const auto folder = std::filesystem::temp_directory_path().string();
  const auto o = parse_options({folder, "--ids", "1,22,3"});
  EXPECT_EQ(o.folder, folder);
  EXPECT_EQ(o.ids, (std::vector<int64_t>{1, 22, 3}));
  EXPECT_EQ(o.tokens, 64);
  EXPECT_EQ(o.dtype, "float32");
  const auto all =
      parse_options({"--text=a=b", "--tokens", "7", "--temperature=0.5", "--top-k", "3", folder,
                     "--top-p", "0.9", "--seed", "11", "--ignore-stop", "--warm-up", "--dtype",
                     "bfloat16", "--device=cuda", "--threads", "2"});
  EXPECT_EQ(all.text, "a=b");
  EXPECT_EQ(all.tokens, 7);
  EXPECT_EQ(all.temperature, 0.5);
  EXPECT_EQ(all.top_k, 3);
  EXPECT_EQ(all.top_p, 0.9);
  EXPECT_EQ(all.seed, 11);
  EXPECT_TRUE(all.ignore_stop && all.warm_up);
  EXPECT_EQ(all.dtype + all.device, "bfloat16cuda");
  EXPECT_EQ(all.threads, 2);
  EXPECT_TRUE(parse_options({"--help"}).help);
  EXPECT_TRUE(parse_options({"-h"}).help);

  const auto refused = [&](std::vector<std::string> words, const std::string& part) {
    words.insert(words.begin(), folder);
    expect_error([&] { parse_options(words); }, {part});
  };
  expect_error([] { parse_options({"--ids", "1"}); }, {"FOLDER"});
  expect_error([] { parse_options({"/no/such", "--ids", "1"}); }, {"FOLDER", "/no/such"});
  refused({"more", "--ids", "1"}, "one FOLDER");
  refused({}, "--ids or --text");
  refused({"--ids", "1", "--text", "a"}, "--ids or --text");
  refused({"--ids", "1", "--ids", "2"}, "given once");
  refused({"--ids"}, "--ids needs a value");
  refused({"--ids", "1", "--warm-up=1"}, "unknown option --warm-up=1");
  refused({"--ids", "1", "--best"}, "unknown option --best");
  for (const char* ids : {"", "x", "1,,2", "1,", ",1", "-1", "1 2", "9223372036854775808"}) {
    refused({"--ids", ids}, "--ids must be a whole number");
  }
  for (const char* tokens :
       {"9223372036854775807", "9223372036854775808", "-1", "1e3", "", "1.5"}) {
    refused({"--ids", "1", "--tokens", tokens},
            "--tokens must be a whole number within 0 ... 1000");
  }
  for (const char* number : {"-1", "nan", "inf", "1e400", "x", ""}) {
    refused({"--ids", "1", "--temperature", number}, "--temperature must be a number within 0");
  }
  refused({"--ids", "1", "--top-p", "1.5"}, "--top-p");
  refused({"--ids", "1", "--threads", "5000"}, "--threads");
  refused({"--ids", "1", "--dtype", "float8"}, "--dtype must be one of float64, float32");
  refused({"--ids", "1", "--device", "tpu"}, "--device must be one of cpu, cuda");
}

/// What the program prints, and its status. `errors`: where the standard error goes.
std::pair<std::string, int> run(const std::string& arguments, const char* errors = "&1") {
  FILE* pipe =
      popen((std::string(ATTZOO_GENERATE) + " " + arguments + " 2>" + errors).c_str(), "r");
  std::string text;
  std::array<char, 256> part;
  while (fgets(part.data(), part.size(), pipe)) text += part.data();
  return {text, pclose(pipe)};
}

std::string joined(const torch::Tensor& ids, const char* between) {
  std::string text;
  for (int64_t i = 0; i < ids.numel(); ++i) {
    text += (i ? between : "") + std::to_string(ids[i].item<int64_t>());
  }
  return text;
}

TEST(GenerateProgram, ContinuesACheckpointOfTwoShards) {
  const Folder folder;
  for (const char* model : {"llama", "gpt2", "gpt_oss"}) {
    const DecodeCase c(
        load_safetensors(std::filesystem::path(ATTZOO_SOURCE_DIR) / "tests/golden-modern" /
                         (std::string("decode_") + model + "__greedy.f64.safetensors")));
    std::array<DecodeCase::Tensors, 2> shards;
    Json::Object files;
    for (const auto& [name, tensor] : c.weights()) {
      const size_t shard = files.size() % 2;
      shards[shard][name] = tensor;
      files[name] = shard ? "b.safetensors" : "a.safetensors";
    }
    save_safetensors(folder.path / "a.safetensors", shards[0]);
    save_safetensors(folder.path / "b.safetensors", shards[1]);
    folder.write("model.safetensors.index.json", Json::Object{{"weight_map", files}});
    folder.write("config.json", c.config());
    const auto prompt = joined(c.at("in.prompt.0"), ","), want = joined(c.at("out.ids.0"), " ");
    const auto call = folder.path.string() + " --dtype float64 --tokens 24 --ids " + prompt;
    const auto [text, status] = run(call);
    EXPECT_EQ(status, 0);
    EXPECT_NE(text.find(want + " \n"), std::string::npos) << text << "\nwanted: " << want;
    EXPECT_NE(text.find("tokens/s"), std::string::npos);
    EXPECT_NE(text.find("state: "), std::string::npos);
    const auto drawn = run(call + " --temperature 1 --top-k 5 --seed 3", "/dev/null");
    EXPECT_EQ(run(call + " --temperature 1 --top-k 5 --seed 3", "/dev/null"), drawn);
    EXPECT_EQ(drawn.second, 0);
  }
  const auto [text, status] = run(folder.path.string() + " --ids 1,97");
  EXPECT_NE(status, 0);
  EXPECT_NE(text.find("token 97 is none of the 97"), std::string::npos) << text;
}

TEST(GenerateProgram, StopsWhereATextEndsAndRefusesWrongCalls) {
  const Folder folder;
  const auto file = std::filesystem::path(ATTZOO_SOURCE_DIR) /
                    "tests/golden-modern/decode_llama__greedy.f64.safetensors";
  const DecodeCase c(load_safetensors(file));
  save_safetensors(folder.path / "model.safetensors", c.weights());
  auto config = c.config().object();
  const auto ids = c.at("out.ids.0");
  config["eos_token_id"] = ids[3].item<int64_t>();
  folder.write("config.json", config);
  int64_t end = 0;
  while (ids[end].item<int64_t>() != ids[3].item<int64_t>()) ++end;
  const auto prompt = " --ids " + joined(c.at("in.prompt.0"), ",");
  const auto call = folder.path.string() + " --dtype float64 --tokens 24" + prompt;
  const auto until = [&](int64_t n) {
    return joined(ids.slice(0, 0, n), " ") + (n ? " \n" : "\n");
  };
  EXPECT_NE(run(call).first.find("\n" + until(end)), std::string::npos);
  EXPECT_NE(run(folder.path.string() + prompt).first.find("\n" + until(end)), std::string::npos);
  EXPECT_NE(run(call + " --ignore-stop").first.find(until(24)), std::string::npos);
  for (const char* wrong : {"", " --ids 1 --text a", " --ids x", " --ids 1 --temperature -1",
                            " --ids 1 --tokens 9223372036854775807"}) {
    EXPECT_EQ(WEXITSTATUS(run(folder.path.string() + wrong).second), 2) << wrong;
  }
  config["model_type"] = "bert";
  folder.write("config.json", config);
  const auto [text, status] = run(call);
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_NE(text.find("model_type \"bert\""), std::string::npos) << text;
}

}  // namespace
}  // namespace attzoo::testing
