// BART and Whisper: tiny models of random weights as Hugging Face saves them
// (tests/golden-models/README.md), loaded into models of attzoo's modules.

#include <gtest/gtest.h>
#include <torch/nn/modules/conv.h>

#include <filesystem>

#include "examples/bart.hpp"
#include "support/expect_error.hpp"
#include "support/parameters.hpp"

namespace attzoo::testing::encoder_decoder_models_test {
namespace {

const auto kFolder = std::filesystem::path(ATTZOO_SOURCE_DIR) / "tests/golden-models";

BartConfig tiny_bart() {
  return {.vocab_size = 50, .d_model = 16, .heads = 4, .ffn_dim = 24, .layers = 2, .positions = 24};
}

void expect_close(const torch::Tensor& got, const torch::Tensor& want, const std::string& what) {
  ASSERT_EQ(got.sizes(), want.sizes()) << what;
  const double unit = got.scalar_type() == torch::kFloat64 ? 1e-12 : 1e-5;
  const auto error = (got.to(torch::kFloat64) - want).abs().max().item<double>();
  EXPECT_LE(error, unit * (1 + want.abs().max().item<double>())) << what;
}

/// Logits of all tokens of `golden` behind `start`, one by one, and the tokens that are likeliest.
template <class Step>
void expect_greedy(const NamedTensors& golden, int64_t start, const Step& logits_of) {
  const auto tokens = golden.at("out.tokens");
  auto next = torch::full({tokens.size(0), 1}, start);
  for (int64_t i = 0; i < tokens.size(1); ++i) {
    const auto logits = logits_of(next, i);
    expect_close(logits.select(1, 0), golden.at("out.greedy").select(1, i), c10::str("token ", i));
    next = logits.argmax(-1);
    EXPECT_TRUE(torch::equal(next, tokens.slice(1, i, i + 1))) << i;
  }
}

TEST(Bart, ComputesWhatHuggingFacesDoes) {
  const torch::NoGradGuard no_grad;
  const auto golden = load_safetensors(kFolder / "bart/golden.safetensors").tensors;
  const auto read = golden.at("in.read"), written = golden.at("in.written");
  for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
    Bart model(tiny_bart());
    model.to(dtype);
    model.eval();
    load_state_dict(model, kFolder / "bart/model.safetensors", names::bart(),
                    {.convert_dtype = true});
    const auto encoded = model.encode(read);
    // Rows of padding have a meaning for nobody, but are computed alike.
    expect_close(encoded.context, golden.at("out.encoder"), "encoder");
    EXPECT_TRUE(torch::equal(encoded.context_padding_mask, golden.at("in.real")));
    expect_close(model.decode(written, encoded, 0), golden.at("out.logits"), "logits");
    // Token by token from caches.
    auto call = encoded;
    call.cache = model.decoder->layers->make_cache(read.size(0), 10);
    expect_greedy(golden, model.config.start, [&](const torch::Tensor& next, int64_t place) {
      const auto logits = model.decode(next, call, place);
      call = {.cache = call.cache};
      return logits;
    });
    EXPECT_TRUE(torch::equal(model.write(read, 10), golden.at("out.tokens")));
  }
}

TEST(Bart, StopsWhereAllRowsHaveAnEnd) {
  const torch::NoGradGuard no_grad;
  const auto golden = load_safetensors(kFolder / "bart/golden.safetensors").tensors;
  auto config = tiny_bart();
  config.end = 48;
  Bart model(config);
  model.eval();
  load_state_dict(model, kFolder / "bart", names::bart());
  const auto tokens = golden.at("out.tokens");
  const auto ends = (tokens == 48).to(torch::kInt64).argmax(1) + 1;
  ASSERT_TRUE((tokens == 48).any(1).slice(0, 1).all().item<bool>());
  const auto two = golden.at("in.read").slice(0, 1);
  const auto most = ends.slice(0, 1).max().item<int64_t>();
  EXPECT_TRUE(torch::equal(model.write(two, 10), tokens.slice(0, 1).slice(1, 0, most)));
}

/// What goes back is what came, but for what upstream leaves unused and what is zero.
void expect_way_back(const torch::nn::Module& model, const std::filesystem::path& file,
                     const NameMap& names) {
  auto given = load_safetensors(file).tensors;
  const auto back = state_dict(model, names);
  given.erase("final_logits_bias");
  for (const auto& [name, t] : back) {
    ASSERT_TRUE(given.count(name)) << name;
    auto want = given.at(name);
    if (name.ends_with("embed_positions.weight") && given.count("model.shared.weight")) {
      EXPECT_FALSE(t.slice(0, 0, 2).count_nonzero().item<bool>()) << name;
      want = want.clone();
      want.slice(0, 0, 2).zero_();
    }
    EXPECT_TRUE(torch::equal(t, want)) << name;
  }
  EXPECT_EQ(back.size(), given.size());
}

TEST(Bart, GoesBackUnderUpstreamNames) {
  Bart model(tiny_bart());
  const auto file = kFolder / "bart/model.safetensors";
  load_state_dict(model, file, names::bart());
  expect_way_back(model, file, names::bart());
  Bart again(tiny_bart());
  load_state_dict(again, state_dict(model, names::bart()), names::bart());
  for (const auto& [name, t] : state_dict(model)) {
    EXPECT_TRUE(torch::equal(state_dict(again).at(name), t)) << name;
  }
}

TEST(Bart, EmbeddingsAreTiedUnderAnyOfTheirNames) {
  const auto file = load_safetensors(kFolder / "bart/model.safetensors").tensors;
  const auto shared = file.at("model.shared.weight");
  const auto loads = [&](const NamedTensors& tensors) {
    Bart model(tiny_bart());
    load_state_dict(model, tensors, names::bart());
    return torch::equal(model.embed->weight, shared);
  };
  auto all = file;
  for (const auto* name : {"model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight",
                           "lm_head.weight"}) {
    all[name] = shared;
  }
  EXPECT_TRUE(loads(all));
  all.erase("model.shared.weight");
  EXPECT_TRUE(loads(all));
  all["lm_head.weight"] = shared + 1;
  expect_error([&] { loads(all); },
               {"embed_tokens.weight: the module has embed.weight", "other numbers"});
  // A BartModel has no `model.` before its names.
  EXPECT_TRUE(loads(tensors_under(file, "model.")));
}

TEST(Bart, BiasOfTheLogitsMustBeZero) {
  auto file = load_safetensors(kFolder / "bart/model.safetensors").tensors;
  Bart model(tiny_bart());
  const auto before = model.embed->weight.clone();
  file["final_logits_bias"] = torch::zeros({1, 50});
  file["final_logits_bias"][0][7] = 1e-30;
  expect_error([&] { load_state_dict(model, file, names::bart()); },
               {"final_logits_bias", "not all zeros"});
  EXPECT_TRUE(torch::equal(model.embed->weight, before));
  model.register_buffer("final_logits_bias", torch::zeros({1, 50}));
  load_state_dict(model, file, names::bart());
  EXPECT_TRUE(torch::equal(model.named_buffers()["final_logits_bias"], file["final_logits_bias"]));
  EXPECT_EQ(state_dict(model, names::bart()).count("final_logits_bias"), 1U);
}

TEST(Bart, PositionsHaveTwoRowsBefore) {
  auto file = load_safetensors(kFolder / "bart/model.safetensors").tensors;
  file["model.encoder.embed_positions.weight"] = torch::zeros({2, 16});
  Bart model(tiny_bart());
  expect_error([&] { load_state_dict(model, file, names::bart()); },
               {"encoder.positions.weight", "behind two rows", "[2, 16]"});
}

TEST(Bart, OneLayerAndOneAttention) {
  const auto file = load_safetensors(kFolder / "bart/model.safetensors").tensors;
  const auto layer = tensors_under(file, "model.decoder.layers.1.");
  MultiHeadSelfAttention cross({.d_model = 16, .num_heads = 4, .bias = true});
  load_state_dict(*cross, tensors_under(layer, "encoder_attn."), names::bart());
  EXPECT_TRUE(torch::equal(cross->w_o->bias, layer.at("encoder_attn.out_proj.bias")));
  auto block = decoder_block(MultiHeadSelfAttention({.d_model = 16, .num_heads = 4, .bias = true}),
                             cross, {.mlp_hidden = 24});
  load_state_dict(*block, layer, names::bart());
  EXPECT_TRUE(torch::equal(block->norm_cross.weight(), layer.at("encoder_attn_layer_norm.weight")));
}

/// One half of Whisper (Radford et al., 2022, arXiv:2212.04356), behind its embedding.
struct WhisperHalf : torch::nn::Module {
  explicit WhisperHalf(bool writes) : norm(torch::nn::LayerNormOptions({16})) {
    const auto attention = [](bool causal) {
      return MultiHeadSelfAttention(
          {.d_model = 16, .num_heads = 4, .bias = true, .causal = causal, .key_bias = false});
    };
    const TransformerBlockOptions o{.mlp_hidden = 24};
    for (int i = 0; i < 2; ++i) {
      if (writes) layers->push_back(decoder_block(attention(true), attention(false), o));
      if (!writes) layers->push_back(transformer_block(attention(false), o));
    }
    positions = register_module("positions", torch::nn::Embedding(writes ? 24 : 12, 16));
    register_module("layers", layers);
    register_module("norm", norm);
  }
  torch::Tensor forward(const torch::Tensor& x, const AttentionInputs& in, int64_t place) {
    const auto places = torch::arange(place, place + x.size(1));
    return norm(layers(x + positions(places), in).output);
  }
  torch::nn::Embedding positions{nullptr};
  Stack layers;
  torch::nn::LayerNorm norm;
};

struct Whisper : torch::nn::Module {
  Whisper() {
    using torch::nn::Conv1d, torch::nn::Conv1dOptions;
    register_module("encoder", encoder);
    register_module("decoder", decoder);
    conv1 = encoder->register_module("conv1", Conv1d(Conv1dOptions(6, 16, 3).padding(1)));
    conv2 =
        encoder->register_module("conv2", Conv1d(Conv1dOptions(16, 16, 3).stride(2).padding(1)));
    embed = register_module("embed", torch::nn::Embedding(50, 16));
  }
  /// Spectrograms [B, mels, 2 S] -> the context [B, S, 16].
  torch::Tensor encode(const torch::Tensor& heard) {
    const auto x = torch::gelu(conv2(torch::gelu(conv1(heard)))).transpose(1, 2);
    return encoder->forward(x, {}, 0);
  }
  torch::Tensor decode(const torch::Tensor& next, const AttentionInputs& in, int64_t place) {
    return torch::linear(decoder->forward(embed(next), in, place), embed->weight);
  }
  std::shared_ptr<WhisperHalf> encoder = std::make_shared<WhisperHalf>(false),
                               decoder = std::make_shared<WhisperHalf>(true);
  torch::nn::Conv1d conv1{nullptr}, conv2{nullptr};
  torch::nn::Embedding embed{nullptr};
};

TEST(WhisperModel, ComputesWhatHuggingFacesDoes) {
  const torch::NoGradGuard no_grad;
  const auto golden = load_safetensors(kFolder / "whisper/golden.safetensors").tensors;
  for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
    Whisper model;
    model.to(dtype);
    model.eval();
    load_state_dict(model, kFolder / "whisper/model.safetensors", names::whisper(),
                    {.convert_dtype = true});
    const auto context = model.encode(golden.at("in.heard").to(dtype));
    expect_close(context, golden.at("out.encoder"), "encoder");
    AttentionInputs call{.context = context};
    expect_close(model.decode(golden.at("in.written"), call, 0), golden.at("out.logits"), "logits");
    call.cache = model.decoder->layers->make_cache(context.size(0), 10);
    expect_greedy(golden, 3, [&](const torch::Tensor& next, int64_t place) {
      const auto logits = model.decode(next, call, place);
      call = {.cache = call.cache};
      return logits;
    });
  }
}

TEST(WhisperModel, GoesBackUnderUpstreamNames) {
  Whisper model;
  const auto file = kFolder / "whisper/model.safetensors";
  load_state_dict(model, file, names::whisper());
  expect_way_back(model, file, names::whisper());
  auto tensors = load_safetensors(file).tensors;
  tensors["proj_out.weight"] = tensors.at("model.decoder.embed_tokens.weight");
  load_state_dict(model, tensors, names::whisper());
}

TEST(WhisperModel, KeysWithABiasAreMissingOne) {
  const auto file = load_safetensors(kFolder / "whisper/model.safetensors").tensors;
  MultiHeadSelfAttention attn({.d_model = 16, .num_heads = 4, .bias = true});
  expect_error(
      [&] {
        load_state_dict(*attn, tensors_under(file, "model.encoder.layers.0.self_attn."),
                        names::whisper());
      },
      {"missing", "w_k.bias"});
}

}  // namespace
}  // namespace attzoo::testing::encoder_decoder_models_test
