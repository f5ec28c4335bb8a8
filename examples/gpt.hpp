#pragma once
// A GPT over bytes, and its training (docs/gpt.md).

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/adamw.h>
#include <attzoo/attzoo.hpp>

#include <vector>

// [model]
struct Gpt : torch::nn::Module {
  Gpt(int64_t depth, int64_t width) : embed(128, width), norm(width), lm_head(width, 128) {
    for (int64_t i = 0; i < depth; ++i) {
      blocks.push_back(attzoo::transformer_block(attzoo::MultiHeadSelfAttention(
          {.d_model = width, .num_heads = 4, .dropout = 0, .rope = true, .causal = true})));
      layers->push_back(blocks.back().ptr());
    }
    register_module("embed", embed);
    register_module("layers", layers);
    register_module("norm", norm);
    register_module("lm_head", lm_head);
  }
  /// The tokens [B, L], or with caches the next ones -> logits [B, L, 128].
  torch::Tensor forward(const torch::Tensor& tokens,
                        const std::vector<attzoo::Cache>& caches = {}) {
    auto x = embed(tokens);
    for (size_t i = 0; i < blocks.size(); ++i) {
      x = blocks[i](x, {.cache = caches.empty() ? attzoo::Cache() : caches[i]}).output;
    }
    return attzoo::apply_linear(norm(x), lm_head);  // lm_head(norm(x)), read by all threads
  }
  /// One for each block.
  std::vector<attzoo::Cache> make_caches(int64_t batch, int64_t capacity) {
    std::vector<attzoo::Cache> caches;
    for (auto& block : blocks) caches.push_back(block.make_cache(batch, capacity));
    return caches;
  }

  torch::nn::Embedding embed;
  std::vector<attzoo::AnyAttention> blocks;  // of any mechanism, also of several
  torch::nn::ModuleList layers;
  attzoo::RMSNorm norm;
  torch::nn::Linear lm_head;
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
