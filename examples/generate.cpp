// Generation token by token: every block keeps what it needs of the tokens before in a cache.

#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <attzoo/attzoo.hpp>
#include <chrono>
#include <iostream>

using namespace attzoo;

int main() {
  torch::manual_seed(0);
  torch::nn::Embedding embed(256, 128);
  Stack layers(transformer_block(LocalSelfAttention(
                   {.d_model = 128, .num_heads = 4, .window_size = 64, .causal = true})),
               transformer_block(MultiHeadSelfAttention(
                   {.d_model = 128, .num_heads = 4, .rope = true, .causal = true})));
  torch::nn::Linear head(128, 256);
  layers->eval();
  const auto start = std::chrono::steady_clock::now();

  torch::NoGradGuard no_grad;
  auto cache = layers->make_cache(/*batch=*/1, /*capacity=*/512);
  auto tokens = torch::randint(256, {1, 100}), next = tokens;  // the prompt
  while (tokens.size(1) < 512) {
    auto x = layers(embed(next), {.cache = cache}).output;  // the prompt, then a token each time
    next = head(x.slice(1, -1)).argmax(-1);                 // the likeliest
    tokens = torch::cat({tokens, next}, 1);
  }

  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  std::cout << 412 / spent.count() << " tokens/s; state: " << cache.bytes() << " bytes\n";

  // The last token is that of a whole pass.
  const auto x = embed(tokens.slice(1, 0, -1));
  const auto y = layers(x).output;
  return torch::equal(head(y.slice(1, -1)).argmax(-1), next) ? 0 : 1;
}
