// attzoo_generate: its models, how it draws tokens, and the program itself.

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
#include "support/config_json.hpp"
#include "support/expect_error.hpp"
#include "support/peak_memory.hpp"

namespace attzoo::testing::generate_test {
namespace {

using core::Json;

ModelConfig parsed(const Json& json) { return core::parse_config(json, "config.json"); }

TEST(GenerateModel, SizesAreThoseOfTheModel) {
  const auto check = [](const Json& config) {
    const auto c = parsed(config);
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
  generate::LanguageModel model(parsed(Json::parse(
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
  EXPECT_EQ(o.cache_dtype, "");
  const auto all =
      parse_options({"--text=a=b", "--tokens", "7", "--temperature=0.5", "--top-k", "3", folder,
                     "--top-p", "0.9", "--seed", "11", "--ignore-stop", "--warm-up", "--dtype",
                     "bfloat16", "--cache-dtype=int8", "--device=cuda", "--threads", "2"});
  EXPECT_EQ(all.text, "a=b");
  EXPECT_EQ(all.tokens, 7);
  EXPECT_EQ(all.temperature, 0.5);
  EXPECT_EQ(all.top_k, 3);
  EXPECT_EQ(all.top_p, 0.9);
  EXPECT_EQ(all.seed, 11);
  EXPECT_TRUE(all.ignore_stop && all.warm_up);
  EXPECT_EQ(all.dtype + all.cache_dtype + all.device, "bfloat16int8cuda");
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
  refused({"--ids", "1", "--cache-dtype", "int4"}, "--cache-dtype must be one of float64, float32");
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
    const auto state = [&](const char* how) {  // its bytes
      const auto said = run(folder.path.string() + " --tokens 24 --ids " + prompt + how).first;
      return std::stoll(said.substr(said.find("state: ") + 7));
    };
    const auto bytes = state("");
    EXPECT_EQ(state(" --cache-dtype bfloat16"), bytes / 2);
    EXPECT_EQ(state(" --cache-dtype int8"), state(" --cache-dtype float8_e4m3fn"));
    EXPECT_LT(state(" --cache-dtype int8"), bytes / 2);
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
}  // namespace attzoo::testing::generate_test
