// Days of training in small: three models learn to repeat what they have read, in float64.
//
//     long_run [STEPS]     of each model; 10,000
//
// Fails if at any step the loss or a gradient differs by more than 1e-9 from that of the same model
// by definition, if from the first tenth of the steps on the heap grows by more than 64 KiB, or if
// nothing was learned.

#include <malloc.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/sgd.h>
#include <attzoo/attzoo.hpp>
#include <attzoo/functional/debug.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace attzoo {
namespace {

constexpr int64_t kWidth = 32, kTokens = 8, kPeriod = 10;

/// Bytes that malloc has handed out and not got back.
int64_t heap() {
  const auto all = mallinfo2();
  return static_cast<int64_t>(all.uordblks + all.hblkhd);
}

struct Model : torch::nn::Module {
  explicit Model(const AnyAttention& block) : layers(block) {
    register_module("embed", embed);
    register_module("layers", layers);
    register_module("head", head);
    to(torch::kFloat64);
  }
  torch::Tensor loss(const torch::Tensor& tokens) {
    const auto y = head(layers(embed(tokens.slice(1, 0, -1)), {.causal = true}).output);
    return torch::nn::functional::cross_entropy(y.flatten(0, 1), tokens.slice(1, 1).flatten());
  }

  torch::nn::Embedding embed{kTokens, kWidth};
  Stack layers;
  torch::nn::Linear head{kWidth, kTokens};
};

template <class Attention>
bool run(const char* name, const Attention& attn, int64_t steps) {
  torch::manual_seed(1);
  Model model(transformer_block(attn));
  const auto parameters = model.parameters();
  torch::optim::SGD optimizer(parameters, torch::optim::SGDOptions(0.02).momentum(0.9));
  double first = 0, last = 0, differs = 0;
  int64_t before = 0;
  for (int64_t step = 0; step < steps; ++step) {
    if (step == steps / 10) before = heap();
    const auto tokens = torch::randint(kTokens, {8, kPeriod}).repeat({1, 3});
    optimizer.zero_grad();
    const auto loss = model.loss(tokens);
    loss.backward();
    last = loss.item<double>();
    if (step == 0) first = last;
    {
      const EagerReferenceGuard by_definition;
      const auto wanted = model.loss(tokens);
      const auto grads = torch::autograd::grad({wanted}, parameters);
      differs = std::max(differs, std::abs(last - wanted.item<double>()));
      for (size_t i = 0; i < grads.size(); ++i) {
        differs = std::max(differs, (parameters[i].grad() - grads[i]).abs().max().item<double>());
      }
    }
    optimizer.step();
  }
  const int64_t grown = heap() - before;
  std::printf(
      "%s: %ld steps, loss %.3f -> %.3f, differs by at most %.1e, heap grown by %ld bytes\n", name,
      static_cast<long>(steps), first, last, differs, static_cast<long>(grown));
  std::fflush(stdout);
  return std::isfinite(last) && last < first && differs <= 1e-9 && grown <= 64 * 1024;
}

}  // namespace
}  // namespace attzoo

int main(int argc, char** argv) {
  using namespace attzoo;
  const int64_t steps = argc > 1 ? std::atol(argv[1]) : 10'000;
  bool right = true;
  right &= run("multi_head",
               MultiHeadSelfAttention({.d_model = kWidth, .num_heads = 4, .rope = true}), steps);
  right &=
      run("local",
          LocalSelfAttention({.d_model = kWidth, .num_heads = 4, .window_size = 32, .rope = true}),
          steps);
  right &= run("gated_delta_net", GatedDeltaNet({.d_model = kWidth, .num_heads = 4}), steps);
  return right ? 0 : 1;
}
