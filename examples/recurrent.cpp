// Gated DeltaNet learns to recall: pairs of a key and a value, then keys again, each of which asks
// for the value that it came with last. Afterwards it answers token by token from its cache, whose
// size does not depend on how much it has read.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/adamw.h>
#include <attzoo/attzoo.hpp>

#include <iostream>

using namespace attzoo;

namespace {

constexpr int64_t kKeys = 8, kValues = 8, kPairs = 12, kQuestions = 8, kWidth = 64;
constexpr int64_t kTokens = kKeys + kValues;

/// Tokens [B, 2 pairs + questions], and answers [B, questions].
struct Task {
  torch::Tensor tokens, answers;
};

Task make_task(int64_t batch, int64_t pairs) {
  const auto keys = torch::randint(kKeys, {batch, pairs});
  const auto values = torch::randint(kValues, {batch, pairs});
  // Of a key that comes more than once, the last pair counts.
  const auto chosen = torch::randint(pairs, {batch, kQuestions});
  const auto questions = keys.gather(1, chosen);
  const auto same = questions.unsqueeze(2) == keys.unsqueeze(1);  // [B, questions, pairs]
  const auto last = (same * torch::arange(1, pairs + 1)).argmax(2);
  return {torch::cat({torch::stack({keys, values + kKeys}, 2).flatten(1), questions}, 1),
          values.gather(1, last)};
}

struct RecallerImpl : torch::nn::Module {
  // [model]
  RecallerImpl() {
    for (int64_t i = 0; i < 2; ++i) {
      GatedDeltaNet attn({.d_model = kWidth, .num_heads = 2, .head_dim = 16, .value_head_dim = 32});
      layers->push_back(transformer_block(attn, {.mlp_hidden = 2 * kWidth}));
    }
    register_module("token", token);
    register_module("layers", layers);
    register_module("head", head);
  }
  /// tokens [B, L] -> logits [B, L, values]
  torch::Tensor forward(const torch::Tensor& tokens, const Cache& cache = {}) {
    return head(layers(token(tokens), {.cache = cache}).output);
  }
  // [/model]
  torch::nn::Embedding token{kTokens, kWidth};
  Stack layers;
  torch::nn::Linear head{kWidth, kValues};
};
TORCH_MODULE(Recaller);

torch::Tensor right_answers(const torch::Tensor& logits, const torch::Tensor& answers) {
  return (logits.argmax(-1) == answers).to(torch::kFloat32).mean();
}

}  // namespace

int main() {
  torch::manual_seed(0);
  Recaller model;
  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(3e-3));
  constexpr int64_t kSteps = 200;
  for (int64_t step = 1; step <= kSteps; ++step) {
    const auto [tokens, answers] = make_task(64, kPairs);
    const auto logits = model(tokens).slice(1, -kQuestions);
    auto loss = torch::nn::functional::cross_entropy(logits.flatten(0, 1), answers.flatten());
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    if (step % 50 == 0) {
      std::cout << "step " << step << ": loss " << loss.item<float>() << ", right "
                << right_answers(logits, answers).item<float>() << '\n';
    }
  }

  const torch::NoGradGuard no_grad;
  model->eval();
  double right = 0;
  std::cout << "\nanswers from the cache:\n";
  for (const int64_t pairs : {12, 100, 1000}) {
    const auto [tokens, answers] = make_task(16, pairs);
    // [decode]
    auto cache = model->layers->make_cache(/*batch=*/16);
    model(tokens.slice(1, 0, -kQuestions), cache);  // all pairs at once
    std::vector<torch::Tensor> steps;
    for (int64_t i = -kQuestions; i < 0; ++i)  // a question at a time
      steps.push_back(model(tokens.narrow(1, tokens.size(1) + i, 1), cache));
    // [/decode]
    const double of_pairs = right_answers(torch::cat(steps, 1), answers).item<double>();
    if (pairs == kPairs) right = of_pairs;
    const int64_t keys_and_values = 2 * 2 * tokens.numel() * kWidth * 4;  // of two blocks, float32
    std::cout << pairs << " pairs: right " << of_pairs << ", cache " << cache.bytes() / 1024
              << " KiB; keys and values of as many tokens " << keys_and_values / 1024 << " KiB\n";
  }
  return right > 0.9 ? 0 : 1;
}
