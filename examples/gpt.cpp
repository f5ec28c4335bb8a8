// Generation from caches: greedy, from drafts that may be rejected, by beam search (docs/gpt.md).

#include "gpt.hpp"

#include <iostream>
#include <string>

using namespace attzoo;

namespace {

// [greedy]
torch::Tensor greedy(Gpt& model, torch::Tensor tokens, int64_t length,
                     const CacheOptions& how = {}) {
  auto cache = model.layers->make_cache(tokens.size(0), length, how);  // of all blocks
  auto next = tokens;  // the prompt at once, then a token at a time
  while (tokens.size(1) < length) {
    next = model.forward(next, cache).slice(1, -1).argmax(-1);
    tokens = torch::cat({tokens, next}, 1);
  }
  return tokens;
}
// [/greedy]

// [drafts]
torch::Tensor from_drafts(Gpt& model, Gpt& small, torch::Tensor tokens, int64_t length) {
  const int64_t ahead = 4;
  auto cache = model.layers->make_cache(1, length + ahead);
  auto drafts = small.layers->make_cache(1, length + ahead);
  model.forward(tokens.slice(1, 0, -1), cache);  // all but the last
  small.forward(tokens.slice(1, 0, -1), drafts);
  while (tokens.size(1) < length) {
    const int64_t known = tokens.size(1);
    for (int64_t i = 0; i < ahead; ++i) {
      auto next = small.forward(tokens.slice(1, -1), drafts).argmax(-1);
      tokens = torch::cat({tokens, next}, 1);
    }
    small.forward(tokens.slice(1, -1), drafts);  // so that both have seen all tokens
    auto said = model.forward(tokens.slice(1, known - 1), cache).argmax(-1);  // [1, ahead + 1]
    auto same = said.slice(1, 0, ahead) == tokens.slice(1, known);
    auto kept = known + same.to(torch::kInt64).cumprod(1).sum().item<int64_t>();
    tokens =
        torch::cat({tokens.slice(1, 0, kept), said.slice(1, kept - known, kept - known + 1)}, 1);
    cache.truncate(kept);  // without what the model would not have said
    drafts.truncate(kept);
  }
  return tokens.slice(1, 0, length);
}
// [/drafts]

// [beams]
std::pair<torch::Tensor, double> beams(Gpt& model, const torch::Tensor& prompt, int64_t length) {
  const int64_t width = 4;
  auto cache = model.layers->make_cache(width, length);
  auto tokens = prompt.expand({width, -1}), next = tokens;
  auto score = torch::tensor({0.0f, -INFINITY, -INFINITY, -INFINITY});  // all are the same yet
  while (tokens.size(1) < length) {
    auto likely = model.forward(next, cache).select(1, -1).log_softmax(-1);  // [width, 128]
    auto [best, index] = (score.unsqueeze(1) + likely).flatten().topk(width);
    auto from = index.div(128, "floor");  // each continues one of them
    cache.reorder(from);
    next = index.remainder(128).unsqueeze(1);
    tokens = torch::cat({tokens.index_select(0, from), next}, 1);
    score = best;
  }
  return {tokens.slice(0, 0, 1), score[0].item<double>()};
}
// [/beams]

}  // namespace

int main() {
  torch::manual_seed(0);
  const std::string line =
      "the cat sat on the mat, the dog lay on the log, the hen hid in the pen; ";
  const auto text = torch::tensor(std::vector<int64_t>(line.begin(), line.end())).repeat({8});
  Gpt model(3, 64), small(1, 32);
  std::cout << "losses: " << train(model, text, 200) << ", " << train(small, text, 60) << '\n';

  // [copy]
  auto copy = std::dynamic_pointer_cast<Gpt>(model.clone());
  copy->train();
  train(*copy, text.flip(0), 1);
  // [/copy]

  torch::NoGradGuard no_grad;
  const auto prompt = text.slice(0, 0, 20).unsqueeze(0);
  const auto written = greedy(model, prompt, 96);
  for (int64_t i = 0; i < 96; ++i) std::cout << static_cast<char>(written[0][i].item<int64_t>());

  // Each of the tokens is what a whole pass says, and those from drafts are the same.
  bool right =
      torch::equal(model.forward(written).argmax(-1).slice(1, 19, -1), written.slice(1, 20));
  right = right && torch::equal(from_drafts(model, small, prompt, 96), written);
  // So are those from keys and values of 8 bits.
  right = right && torch::equal(greedy(model, prompt, 96, {.dtype = torch::kInt8}), written);
  // The beam's score is that of a whole pass.
  const auto [beam, score] = beams(model, prompt, 60);
  const auto likely = model.forward(beam).log_softmax(-1).slice(1, 19, -1);
  const auto sum = likely.gather(2, beam.slice(1, 20).unsqueeze(2)).sum().item<double>();
  std::cout << "\nbeam: " << score << ", in a whole pass " << sum << '\n';

  // [state]
  auto whole = model.layers[0].make_cache(/*batch=*/1, /*capacity=*/4096);
  auto half = model.layers[0].make_cache(1, 4096, {.dtype = torch::kBFloat16});
  auto quarter = model.layers[0].make_cache(1, 4096, {.dtype = torch::kInt8});
  LocalSelfAttention local({.d_model = 64, .window_size = 64, .causal = true});
  auto window = local->make_cache(1);  // no capacity: the stream may be of any length
  std::cout << whole.bytes() << ", " << half.bytes() << ", " << quarter.bytes() << ", "
            << window.bytes() << " bytes\n";
  // [/state]
  return right && std::abs(score - sum) < 1e-3 ? 0 : 1;
}
