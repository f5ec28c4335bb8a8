// Sentence embeddings by all-MiniLM-L6-v2 (https://huggingface.co/sentence-transformers/
// all-MiniLM-L6-v2), with its own weights: which sentences mean the same?
//
//   python3 examples/get_minilm.py            # once: brings model.safetensors and vocab.txt
//   example_embed_minilm [SENTENCE...]
//
// Without sentences it takes six of its own, and checks their similarities against those of an
// independent computation. ATTZOO_MINILM names another folder than models/all-MiniLM-L6-v2.

#include <torch/nn/modules/embedding.h>

#include <attzoo/attzoo.hpp>
#include <cstdlib>
#include <iomanip>
#include <iostream>

#include "wordpiece.hpp"

namespace {

namespace nn = torch::nn;

constexpr int64_t kLayers = 6, kModel = 384, kHeads = 12, kHidden = 1536, kWords = 30522,
                  kPositions = 512;

struct MiniLM : nn::Module {
  MiniLM() {
    register_module("embed", embed);
    register_module("positions", positions);
    register_module("token_types", token_types);
    register_module("norm_embed", norm_embed);
    register_module("layers", layers);
    for (int64_t i = 0; i < kLayers; ++i) {
      attzoo::MultiHeadSelfAttention attn({.d_model = kModel, .num_heads = kHeads, .bias = true});
      layers->push_back(
          attzoo::transformer_block(attn, {.mlp_hidden = kHidden,
                                           .norm_eps = 1e-12,
                                           .norm_placement = attzoo::NormPlacement::kPost}));
    }
  }

  /// ids [B, n], real [B, n] (false = padding) -> embeddings [B, 384] of length 1: the mean over
  /// the real tokens.
  torch::Tensor forward(const torch::Tensor& ids, const torch::Tensor& real) {
    auto x = embed(ids) + positions(torch::arange(ids.size(1))) + token_types->weight[0];
    x = layers(norm_embed(x), {.key_padding_mask = real}).output;
    const auto share = real.to(x.dtype()).unsqueeze(-1);
    const auto mean = (x * share).sum(1) / share.sum(1);
    return mean / mean.norm(2, -1, /*keepdim=*/true);
  }

  nn::Embedding embed{kWords, kModel}, positions{kPositions, kModel}, token_types{2, kModel};
  nn::LayerNorm norm_embed{nn::LayerNormOptions({kModel}).eps(1e-12)};
  attzoo::Stack layers;
};

/// All sentences at once, the shorter ones padded.
torch::Tensor embed_sentences(MiniLM& model, const wordpiece::Tokenizer& tokenizer,
                              const std::vector<std::string>& sentences) {
  std::vector<std::vector<int64_t>> rows;
  std::vector<int64_t> lengths;
  for (const auto& sentence : sentences) {
    rows.push_back(tokenizer.encode(sentence));
    lengths.push_back(static_cast<int64_t>(rows.back().size()));
  }
  const auto real = attzoo::create_padding_mask(lengths);
  const auto ids = torch::zeros(real.sizes(), torch::kInt64);
  for (size_t i = 0; i < rows.size(); ++i) {
    ids[static_cast<int64_t>(i)].slice(0, 0, lengths[i]).copy_(torch::tensor(rows[i]));
  }
  return model.forward(ids, real);
}

const std::vector<std::string> kSentences = {
    "The cat sits on the mat.",           "A feline rests on a rug.",
    "Ünïcode café: naïve résumé, señor!", "Quantum chromodynamics isn't easy...",
    "東京 is the capital of Japan.",      "A man is playing the guitar."};

/// Of kSentences, by NumPy in float64 and the tokenizer of Hugging Face.
const double kSimilarities[6][6] = {
    {1.0000000, 0.5584039, -0.0055374, -0.0339034, -0.0508289, 0.0842634},
    {0.5584039, 1.0000000, 0.0462661, 0.0274779, -0.0673714, -0.0596577},
    {-0.0055374, 0.0462661, 1.0000000, 0.0541984, 0.0553405, -0.1016537},
    {-0.0339034, 0.0274779, 0.0541984, 1.0000000, 0.0246566, 0.0435248},
    {-0.0508289, -0.0673714, 0.0553405, 0.0246566, 1.0000000, -0.0213390},
    {0.0842634, -0.0596577, -0.1016537, 0.0435248, -0.0213390, 1.0000000},
};

}  // namespace

int main(int argc, char** argv) {
  const char* given = std::getenv("ATTZOO_MINILM");
  const std::filesystem::path folder = given != nullptr ? given : "models/all-MiniLM-L6-v2";
  if (!std::filesystem::exists(folder / "model.safetensors")) {
    std::cout << "SKIPPED: there is no " << folder.string()
              << "/model.safetensors; examples/get_minilm.py brings it\n";
    return 77;
  }
  const bool checks = argc < 2;
  const auto sentences = checks ? kSentences : std::vector<std::string>(argv + 1, argv + argc);

  torch::NoGradGuard no_grad;
  const wordpiece::Tokenizer tokenizer(folder / "vocab.txt");
  MiniLM model;
  attzoo::load_state_dict(model, folder, attzoo::names::bert());
  model.eval();

  const auto embeddings = embed_sentences(model, tokenizer, sentences);
  const auto similarities = embeddings.matmul(embeddings.t());
  const auto n = static_cast<int64_t>(sentences.size());
  double worst = 0;
  std::cout << std::fixed << std::setprecision(3);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const auto value = similarities[i][j].item<double>();
      std::cout << std::setw(7) << value;
      if (checks) worst = std::max(worst, std::abs(value - kSimilarities[i][j]));
    }
    std::cout << "  " << sentences[static_cast<size_t>(i)] << '\n';
  }
  if (!checks) return 0;
  std::cout << "largest difference from the reference: " << std::scientific << worst << '\n';
  return worst < 1e-5 ? 0 : 1;
}
