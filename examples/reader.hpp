#pragma once
// A reader of long documents, and attzoo's own files to learn from (docs/long_documents.md).

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/adamw.h>
#include <attzoo/attzoo.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

// [model]
struct Reader : torch::nn::Module {
  explicit Reader(int64_t kinds, bool causal = false) : head(kWidth, kinds) {
    attzoo::LongformerSelfAttentionOptions o{.d_model = kWidth, .num_heads = 2, .window_size = 64};
    o.dropout = 0, o.rope = true, o.causal = causal;
    register_module("embed", embed);
    register_module("embed_before", embed_before);
    for (int i = 0; i < 2; ++i) {
      layers->push_back(
          attzoo::transformer_block(attzoo::LongformerSelfAttention(o), {.mlp_hidden = 64}));
    }
    register_module("layers", layers);
    register_module("head", head);
  }
  /// bytes [B, n] -> x [B, 1 + n, 32]: each byte with the one before, behind a first token that is
  /// no byte, but stands for all of them.
  torch::Tensor tokens(const torch::Tensor& bytes) {
    const auto ids = torch::constant_pad_nd(bytes, {2, 0}, 256);
    return embed(ids.slice(1, 1)) + embed_before(ids.slice(1, 0, -1));
  }
  /// x [B, L, 32], is_global [L] or [B, L] -> output [B, L, 32], and the last block's weights.
  attzoo::AttentionResult forward(const torch::Tensor& x, const torch::Tensor& is_global) {
    return layers(x, {.global_attention = is_global});
  }
  /// bytes [B, n] -> logits [B, kinds], by the first token, which is global.
  torch::Tensor classify(const torch::Tensor& bytes) {
    auto x = tokens(bytes);
    return head(forward(x, torch::arange(x.size(1)) == 0).output.select(1, 0));
  }

  static constexpr int64_t kWidth = 32;
  torch::nn::Embedding embed{257, kWidth}, embed_before{257, kWidth};
  attzoo::Stack layers;
  torch::nn::Linear head;
};
// [/model]

/// The files of one kind, one after another: three of four to learn from, the others held out.
struct Kind {
  std::string name;
  std::vector<std::string> folders;
  std::set<std::string> endings;
  std::string learn = {}, held_out = {};

  void load(const std::filesystem::path& root) {
    std::set<std::filesystem::path> files;  // in order
    for (const auto& folder : folders) {
      for (const auto& file : std::filesystem::recursive_directory_iterator(root / folder)) {
        if (endings.count(file.path().extension().string()) > 0) files.insert(file.path());
      }
    }
    for (size_t count = 0; const auto& file : files) {
      std::ifstream in(file, std::ios::binary);
      (count++ % 4 == 3 ? held_out : learn).append(std::istreambuf_iterator<char>(in), {});
    }
  }
};

inline std::vector<Kind> load_kinds(const std::filesystem::path& root) {
  std::vector<Kind> kinds{
      {"library", {"include"}, {".hpp", ".ipp", ".inc"}},
      {"test", {"tests"}, {".hpp", ".cpp"}},
      {"page", {"docs"}, {".md"}},
      {"script", {"bench", "cmake", "docs", "examples", "tests"}, {".py", ".cmake"}}};
  for (auto& kind : kinds) kind.load(root);
  return kinds;
}

/// Bytes [count, n] from anywhere in a text.
inline torch::Tensor documents_of(const std::string& text, int64_t count, int64_t n) {
  const std::vector<uint8_t> bytes(text.begin(), text.end());
  const auto start = torch::randint(static_cast<int64_t>(bytes.size()) - n, {count, 1});
  return torch::tensor(bytes).index({start + torch::arange(n)}).to(torch::kInt64);
}

// [train]
/// Learns from a document of n bytes of each kind at every step; the last steps' mean loss.
inline double train(Reader& model, const std::vector<Kind>& kinds, int64_t n, int steps) {
  torch::optim::AdamW optimizer(model.parameters(), torch::optim::AdamWOptions(3e-3));
  double mean = std::log(kinds.size());  // by chance
  for (int step = 0; step < steps; ++step) {
    std::vector<torch::Tensor> documents;
    for (const auto& kind : kinds) documents.push_back(documents_of(kind.learn, 1, n));
    const auto logits = model.classify(torch::cat(documents));
    auto loss = torch::nn::functional::cross_entropy(logits, torch::arange(logits.size(0)));
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    mean += 0.2 * (loss.item<double>() - mean);
  }
  model.eval();
  return mean;
}
// [/train]

/// The share of `count` held-out documents of each kind, n bytes each, whose kind is found.
inline double accuracy(Reader& model, const std::vector<Kind>& kinds, int64_t n, int64_t count) {
  torch::NoGradGuard no_grad;
  torch::Tensor right = torch::zeros({});
  for (size_t i = 0; i < kinds.size(); ++i) {
    const auto found = model.classify(documents_of(kinds[i].held_out, count, n)).argmax(-1);
    right = right + (found == static_cast<int64_t>(i)).sum();
  }
  return right.item<double>() / static_cast<double>(count * kinds.size());
}
