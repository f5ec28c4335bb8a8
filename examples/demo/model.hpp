#pragma once
// The language model, and the mechanisms that it is built with.

#include <torch/nn/init.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/normalization.h>

#include <functional>
#include <string>
#include <vector>

#include "options.hpp"
#include "support/mechanisms.hpp"

namespace demo {

/// A mechanism of the zoo: how to make it, alone or in a transformer block. `layer` counts from 0.
struct Mechanism {
  using Make = std::function<torch::nn::AnyModule(const Options&, int64_t layer)>;
  std::string name;
  Make block, attention;
  bool quadratic;  // costs n^2, whatever its constant
};

/// What the options ask of a mechanism. Another rate of dilation in every layer, so that residues
/// mix.
inline attzoo::testing::Size size_of(const Options& o, int64_t layer) {
  return {.width = o.width,
          .heads = o.heads,
          .span = 32,
          .dilation = 2 + layer,
          .hashes = 2,
          .overlap = true,
          .causal = true};
}

inline std::vector<Mechanism> all_mechanisms() {
  using namespace attzoo::testing;
  std::vector<Mechanism> all;
  for_each_mechanism([&](const char* name, Cost cost, auto make) {
    all.push_back({name,
                   [make](const Options& o, int64_t layer) {
                     auto block = attzoo::transformer_block(make(size_of(o, layer)));
                     return torch::nn::AnyModule(block);
                   },
                   [make](const Options& o, int64_t layer) {
                     return torch::nn::AnyModule(make(size_of(o, layer)));
                   },
                   cost == Cost::kQuadratic});
  });
  return all;
}

/// Bytes in, logits of the next byte out. A token's embedding is that of its byte, of the byte
/// before it, and of its position, so that a mechanism that never looks at its direct neighbour
/// (dilated) still reads pairs.
class LanguageModel : public torch::nn::Module {
 public:
  LanguageModel(const Mechanism& mechanism, const Options& o) {
    using namespace torch::nn;
    const auto embedding = [&](const char* name, int64_t count) {
      auto e = register_module(name, Embedding(count, o.width));
      init::normal_(e->weight, 0.0, 0.02);
      return e;
    };
    byte_ = embedding("byte", 256);
    previous_ = embedding("previous", 256);
    position_ = embedding("position", o.seq_len);
    for (int64_t i = 0; i < o.layers; ++i) {
      blocks_.push_back(mechanism.block(o, i));
      register_module("block" + std::to_string(i), blocks_.back().ptr());
    }
    norm_ = register_module("norm", LayerNorm(LayerNormOptions({o.width})));
    head_ = register_module("head", Linear(o.width, 256));
  }

  /// tokens [B, L] -> logits [B, L, 256]. If `patterns` is given, it receives the attention weights
  /// of the last block.
  torch::Tensor forward(const torch::Tensor& tokens, attzoo::LazyWeights* patterns = nullptr) {
    const auto shifted = torch::constant_pad_nd(tokens.slice(1, 0, -1), {1, 0}, 0);
    const auto positions = torch::arange(tokens.size(1), tokens.options());
    auto x = byte_(tokens) + previous_(shifted) + position_(positions);
    for (auto& block : blocks_) {
      auto result = block.forward<attzoo::AttentionResult>(x);
      x = result.output;
      if (patterns) *patterns = result.weights;
    }
    return head_(norm_(x));
  }

  int64_t parameter_count() const {
    int64_t n = 0;
    for (const auto& p : parameters()) n += p.numel();
    return n;
  }

 private:
  torch::nn::Embedding byte_{nullptr}, previous_{nullptr}, position_{nullptr};
  std::vector<torch::nn::AnyModule> blocks_;
  torch::nn::LayerNorm norm_{nullptr};
  torch::nn::Linear head_{nullptr};
};

}  // namespace demo
