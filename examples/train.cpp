// Training as in any LibTorch program: a two-block stack learns to reverse short sequences.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/adamw.h>
#include <attzoo/attzoo.hpp>
#include <iostream>

struct Reverser : torch::nn::Module {
  Reverser() {
    register_module("embed", embed);
    register_module("first", first);
    register_module("second", second);
    register_module("head", head);
  }
  torch::Tensor forward(const torch::Tensor& tokens) {
    const auto positions = torch::arange(tokens.size(1)) + 10;
    const auto x = embed(tokens) + embed(positions);
    return head(second(first(x).output).output);
  }
  static attzoo::MultiHeadSelfAttention attention() {
    return attzoo::MultiHeadSelfAttention({.d_model = 64, .num_heads = 4, .dropout = 0.0});
  }

  torch::nn::Embedding embed{torch::nn::EmbeddingOptions(10 + 12, 64)};
  attzoo::TransformerBlock<attzoo::MultiHeadSelfAttentionImpl> first{attention()},
      second{attention()};
  torch::nn::Linear head{64, 10};
};

int main() {
  torch::manual_seed(0);
  Reverser model;
  torch::optim::AdamW optimizer(model.parameters(), torch::optim::AdamWOptions(2e-3));
  float loss = 0;
  for (int step = 0; step < 300; ++step) {
    const auto tokens = torch::randint(10, {64, 12});
    const auto logits = model.forward(tokens);
    auto l = torch::nn::functional::cross_entropy(logits.flatten(0, 1), tokens.flip(1).flatten());
    optimizer.zero_grad();
    l.backward();
    optimizer.step();
    loss = l.item<float>();
    if (step % 50 == 0 || step == 299) std::cout << "step " << step << ": loss " << loss << '\n';
  }
  return loss < 0.5 ? 0 : 1;  // chance is ln 10 = 2.3
}
