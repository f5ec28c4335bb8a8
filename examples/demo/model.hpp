#pragma once
// The language model, and the list of mechanisms that it is built with.

#include <attzoo/attzoo.hpp>

#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/normalization.h>

#include <functional>
#include <string>
#include <vector>

#include "options.hpp"

namespace demo {

/// A mechanism of the zoo: how to make one transformer block with it. `layer` counts from 0.
struct Mechanism {
  std::string name;
  std::function<torch::nn::AnyModule(const Options&, int64_t layer)> block;
  std::function<torch::nn::AnyModule(const Options&, int64_t layer)> attention;
  bool quadratic;  // costs n^2, whatever its constant
};

enum class Cost { kQuadratic, kLess };

template <class Make>
Mechanism mechanism(std::string name, Cost cost, Make make) {
  return {std::move(name),
          [make](const Options& o, int64_t layer) {
            return torch::nn::AnyModule(attzoo::transformer_block(make(o, layer)));
          },
          [make](const Options& o, int64_t layer) { return torch::nn::AnyModule(make(o, layer)); },
          cost == Cost::kQuadratic};
}

inline std::vector<Mechanism> all_mechanisms() {
  using namespace attzoo;
  const auto multi_head = [](const Options& o) {
    return MultiHeadSelfAttention(
        {.d_model = o.width, .num_heads = o.heads, .dropout = 0, .causal = true});
  };
  const auto local = [](const Options& o) {
    return LocalSelfAttention({.d_model = o.width,
                               .window_size = 32,
                               .num_heads = o.heads,
                               .dropout = 0,
                               .causal = true});
  };
  return {
      mechanism("vanilla", Cost::kQuadratic,
                [](const Options& o, int64_t) {
                  return VanillaSelfAttention({.d_model = o.width, .dropout = 0, .causal = true});
                }),
      mechanism("multi_head", Cost::kQuadratic,
                [=](const Options& o, int64_t) { return multi_head(o); }),
      mechanism("grouped", Cost::kQuadratic,
                [](const Options& o, int64_t) {
                  return GroupedSelfAttention({.d_model = o.width,
                                               .num_query_heads = o.heads,
                                               .num_kv_heads = o.heads % 2 == 0 ? o.heads / 2 : 1,
                                               .dropout = 0,
                                               .causal = true});
                }),
      mechanism("local", Cost::kLess, [=](const Options& o, int64_t) { return local(o); }),
      mechanism("dilated", Cost::kQuadratic,  // another rate in every layer, so that residues mix
                [](const Options& o, int64_t layer) {
                  return DilatedSelfAttention({.d_model = o.width,
                                               .dilation_rate = 2 + layer,
                                               .num_heads = o.heads,
                                               .dropout = 0,
                                               .causal = true});
                }),
      mechanism("block", Cost::kLess,
                [](const Options& o, int64_t) {
                  return BlockSelfAttention({.d_model = o.width,
                                             .block_size = 32,
                                             .num_heads = o.heads,
                                             .dropout = 0,
                                             .overlap = true,
                                             .causal = true});
                }),
      mechanism("alibi", Cost::kQuadratic,
                [](const Options& o, int64_t) {
                  return ALiBiSelfAttention(
                      {.d_model = o.width, .num_heads = o.heads, .dropout = 0, .causal = true});
                }),
      mechanism("linear", Cost::kLess,
                [](const Options& o, int64_t) {
                  return LinearSelfAttention(
                      {.d_model = o.width, .dropout = 0, .causal = true, .num_heads = o.heads});
                }),
      mechanism("lsh", Cost::kLess,
                [](const Options& o, int64_t) {
                  return LSHSelfAttention({.d_model = o.width,
                                           .num_heads = o.heads,
                                           .bucket_size = 16,
                                           .num_hashes = 2,
                                           .dropout = 0,
                                           .causal = true});
                }),
      mechanism("longformer", Cost::kLess,
                [](const Options& o, int64_t) {
                  return LongformerSelfAttention({.d_model = o.width,
                                                  .num_heads = o.heads,
                                                  .window_size = 32,
                                                  .dropout = 0,
                                                  .causal = true});
                }),
      mechanism("gated", Cost::kQuadratic,
                [=](const Options& o, int64_t) { return gated(multi_head(o)); }),
      mechanism("combined", Cost::kQuadratic,
                [=](const Options& o, int64_t) { return combined(local(o), multi_head(o)); }),
  };
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
