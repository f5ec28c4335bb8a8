// A GPT: trained, then generating from caches, with drafts that are rejected, and by beam search
// (docs/gpt.md).

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/adamw.h>
#include <attzoo/attzoo.hpp>
#include <iostream>

using namespace attzoo;

namespace {

// [model]
using Block = TransformerBlock<GroupedSelfAttentionImpl>;
using Caches = std::vector<Cache>;  // one for each block

struct Gpt : torch::nn::Module {
  Gpt(int64_t layers, int64_t width) : embed(128, width), norm(width), head(width, 128) {
    register_module("embed", embed);
    for (int64_t i = 0; i < layers; ++i) {
      GroupedSelfAttention attn({.d_model = width,
                                 .num_query_heads = 4,
                                 .num_kv_heads = 2,
                                 .dropout = 0,
                                 .rope = true,
                                 .causal = true});
      blocks.push_back(register_module("block" + std::to_string(i), transformer_block(attn)));
    }
    register_module("norm", norm);
    register_module("head", head);
  }
  /// Tokens [B, L] -> logits [B, L, 128]. With caches, the tokens are the next ones.
  torch::Tensor forward(const torch::Tensor& tokens, const Caches& caches = {}) {
    auto x = embed(tokens);
    for (size_t i = 0; i < blocks.size(); ++i) {
      x = blocks[i](x, {.cache = caches.empty() ? Cache() : caches[i]}).output;
    }
    return head(norm(x));
  }
  Caches make_caches(int64_t batch, int64_t capacity) const {
    Caches caches;
    for (const auto& block : blocks) caches.push_back(block->make_cache(batch, capacity));
    return caches;
  }

  torch::nn::Embedding embed;
  std::vector<Block> blocks;
  RMSNorm norm;
  torch::nn::Linear head;
};
// [/model]
}  // namespace
int main() {
  Gpt g(2, 64);
  std::cout << g.forward(torch::randint(128, {2, 5})).sizes();
}
