// The demo's model generates through caches what it would from the whole text.

#include <gtest/gtest.h>

#include "examples/demo/train.hpp"

namespace demo {
namespace {

const Options kOptions{.seq_len = 72, .width = 32, .heads = 4, .layers = 2};

/// In float64, so that rounding changes no byte that is drawn.
LanguageModel make_model(const Mechanism& mechanism) {
  torch::manual_seed(1);
  LanguageModel model(mechanism, kOptions);
  model.to(torch::kFloat64);
  model.eval();
  return model;
}

TEST(Demo, StepsAreTheWholePass) {
  const torch::NoGradGuard no_grad;
  const auto tokens = torch::randint(256, {2, kOptions.seq_len});
  for (const auto& mechanism : all_mechanisms()) {
    auto model = make_model(mechanism);
    auto state = model.make_state(2);
    std::vector<torch::Tensor> steps;
    for (int64_t at = 0, end = 7; at < kOptions.seq_len; at = end++) {
      steps.push_back(model.forward(tokens.slice(1, at, end), state));
    }
    EXPECT_EQ(state.cache.length(), kOptions.seq_len);
    // Overlapping blocks fade to the end of a sequence; those of a cache go on.
    const int64_t same = kOptions.seq_len - (mechanism.name == "block" ? 32 : 0);
    const auto got = torch::cat(steps, 1).slice(1, 0, same),
               want = model.forward(tokens).slice(1, 0, same);
    EXPECT_TRUE(torch::allclose(got, want, 1e-9, 1e-10))
        << mechanism.name << ": largest difference " << (got - want).abs().max().item<double>();
  }
}

TEST(Demo, SamplesBeyondItsPositions) {
  const torch::NoGradGuard no_grad;
  const auto start = torch::randint(256, {40});
  auto model = make_model(all_mechanisms().front());
  const auto got = sample(model, start, 80, kOptions, torch::kCPU);
  torch::manual_seed(static_cast<uint64_t>(kOptions.seed));
  auto window = start.unsqueeze(0);
  std::string want;
  for (int64_t i = 0; i < 80; ++i) {
    const auto next = draw(model.forward(window));
    want += static_cast<char>(next.item<int64_t>());
    if (window.size(1) == kOptions.seq_len) window = window.slice(1, 1 - kOptions.seq_len / 2);
    window = torch::cat({window, next}, 1);
  }
  EXPECT_EQ(got, want);
}

}  // namespace
}  // namespace demo
