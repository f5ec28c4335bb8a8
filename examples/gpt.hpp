#pragma once
// A GPT over bytes, and its training (docs/gpt.md).

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/adamw.h>
#include <attzoo/attzoo.hpp>

// [model]
struct Gpt : torch::nn::Cloneable<Gpt> {
  Gpt(int64_t depth, int64_t width) : depth_(depth), width_(width) { reset(); }
  void reset() override {
    embed = register_module("embed", torch::nn::Embedding(128, width_));
    layers = register_module("layers", attzoo::Stack());
    for (int64_t i = 0; i < depth_; ++i) {
      layers->push_back(attzoo::transformer_block(attzoo::MultiHeadSelfAttention(
          {.d_model = width_, .num_heads = 4, .dropout = 0, .rope = true, .causal = true})));
    }
    norm = register_module("norm", attzoo::RMSNorm(width_));
    lm_head = register_module("lm_head", torch::nn::Linear(width_, 128));
  }
  /// The tokens [B, L], or with a cache the next ones -> logits [B, L, 128].
  torch::Tensor forward(const torch::Tensor& tokens, const attzoo::Cache& cache = {}) {
    const auto x = layers(embed(tokens), {.cache = cache}).output;
    return attzoo::apply_linear(norm(x), lm_head);  // lm_head(norm(x)), read by all threads
  }

  torch::nn::Embedding embed{nullptr};
  attzoo::Stack layers{nullptr};  // of any mechanism, also of several
  attzoo::RMSNorm norm{nullptr};
  torch::nn::Linear lm_head{nullptr};

 private:
  int64_t depth_, width_;
};
// [/model]

// [train]
inline float train(Gpt& model, const torch::Tensor& text, int steps) {
  torch::optim::AdamW optimizer(model.parameters(), torch::optim::AdamWOptions(3e-3));
  torch::Tensor loss;
  for (int step = 0; step < steps; ++step) {
    auto places = torch::randint(text.size(0) - 96, {8, 1}) + torch::arange(97);
    auto batch = text.index({places});                   // [8, 97]
    auto logits = model.forward(batch.slice(1, 0, -1));  // each token says the next
    loss = torch::nn::functional::cross_entropy(logits.flatten(0, 1), batch.slice(1, 1).flatten());
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
  }
  model.eval();
  return loss.item<float>();
}
// [/train]
