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
  using Make = std::function<attzoo::AnyAttention(const Options&, int64_t layer)>;
  std::string name;
  Make block, attention;
  bool quadratic;  // costs n^2, whatever its constant
};

/// What the options ask of a mechanism. Another rate of dilation in every layer, so that residues
/// mix; buckets that do not depend on how much of a sequence is there, so that a cache's steps are
/// the whole pass.
inline attzoo::testing::Size size_of(const Options& o, int64_t layer) {
  constexpr int64_t kSpan = 32;
  return {.width = o.width,
          .heads = o.heads,
          .span = kSpan,
          .dilation = 2 + layer,
          .hashes = 2,
          .overlap = true,
          .causal = true,
          .buckets = 1 + (o.seq_len - 1) / (kSpan / 2)};
}

inline std::vector<Mechanism> all_mechanisms() {
  using namespace attzoo::testing;
  std::vector<Mechanism> all;
  for_each_mechanism([&](const char* name, Cost cost, auto make) {
    if (!make(Size{})->takes().causal) return;  // a language model sees no later bytes
    all.push_back({name,
                   [make](const Options& o, int64_t layer) {
                     return attzoo::transformer_block(make(size_of(o, layer)));
                   },
                   [make](const Options& o, int64_t layer) { return make(size_of(o, layer)); },
                   cost == Cost::kQuadratic});
  });
  return all;
}

/// What the model keeps of the bytes before, at most seq_len of them.
struct State {
  attzoo::Cache cache;   // of the blocks
  torch::Tensor latest;  // the last byte, [B, 1]
};

/// Bytes in, logits of the next byte out. A token's embedding is that of its byte, of the byte
/// before it, and of its position, so that a mechanism that never looks at its direct neighbour
/// (dilated) still reads pairs.
class LanguageModel : public torch::nn::Module {
 public:
  LanguageModel(const Mechanism& mechanism, const Options& o) : seq_len_(o.seq_len) {
    using namespace torch::nn;
    const auto embedding = [&](const char* name, int64_t count) {
      auto e = register_module(name, Embedding(count, o.width));
      init::normal_(e->weight, 0.0, 0.02);
      return e;
    };
    byte_ = embedding("byte", 256);
    previous_ = embedding("previous", 256);
    position_ = embedding("position", o.seq_len);
    for (int64_t i = 0; i < o.layers; ++i) layers_->push_back(mechanism.block(o, i));
    register_module("layers", layers_);
    norm_ = register_module("norm", LayerNorm(LayerNormOptions({o.width})));
    head_ = register_module("head", Linear(o.width, 256));
  }

  /// tokens [B, L] -> logits [B, L, 256]. If `patterns` is given, it receives the attention weights
  /// of the last block.
  torch::Tensor forward(const torch::Tensor& tokens, attzoo::LazyWeights* patterns = nullptr) {
    return run(tokens, nullptr, patterns);
  }
  /// The same for the next tokens [B, L >= 1] after those that `state` has seen; it takes them up.
  torch::Tensor forward(const torch::Tensor& tokens, State& state) {
    return run(tokens, &state, nullptr);
  }
  State make_state(int64_t batch) const {
    return {layers_->make_cache(batch, seq_len_),
            torch::zeros({batch, 1}, head_->weight.options().dtype(torch::kInt64))};
  }

  int64_t parameter_count() const {
    int64_t n = 0;
    for (const auto& p : parameters()) n += p.numel();
    return n;
  }

 private:
  torch::Tensor run(const torch::Tensor& tokens, State* state, attzoo::LazyWeights* patterns) {
    const int64_t seen = state ? state->cache.length() : 0;
    const auto before = state ? state->latest : torch::zeros_like(tokens.slice(1, 0, 1));
    const auto shifted = torch::cat({before, tokens.slice(1, 0, -1)}, 1);
    const auto positions = torch::arange(seen, seen + tokens.size(1), tokens.options());
    const auto x = byte_(tokens) + previous_(shifted) + position_(positions);
    const auto result = layers_(x, {.cache = state ? state->cache : attzoo::Cache()});
    if (patterns) *patterns = result.weights;
    if (state) state->latest = tokens.slice(1, -1);
    return head_(norm_(result.output));
  }

  int64_t seq_len_;
  torch::nn::Embedding byte_{nullptr}, previous_{nullptr}, position_{nullptr};
  attzoo::Stack layers_;
  torch::nn::LayerNorm norm_{nullptr};
  torch::nn::Linear head_{nullptr};
};

}  // namespace demo
