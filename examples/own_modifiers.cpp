// Attention of one's own in a line: masks and score modifiers from lambdas (docs/core.md).

#include <torch/autograd.h>
#include <attzoo/attzoo.hpp>
#include <iostream>

using namespace attzoo;

namespace {

bool right = true;

/// What runs fused must be what the definition says.
void compare(const char* name, const std::function<torch::Tensor()>& run) {
  const auto fused = run();
  EagerReferenceGuard eager;
  const double error = (fused - run()).abs().max().item<double>();
  std::cout << name << ": differs from its definition by " << error << '\n';
  right = right && error < 1e-4;
}

}  // namespace

int main() {
  torch::manual_seed(0);
  const int64_t n = 192;
  const auto q = torch::randn({2, 4, n, 32}), k = torch::randn({2, 4, n, 32}),
             v = torch::randn({2, 4, n, 32});

  // [strided]
  auto strided = mask_mod([](auto, auto, auto q, auto kv) { return (q - kv) % 3 == 0; });
  auto y = attention(q, k, v, strided).output;
  // [/strided]
  compare("strided", [&] { return attention(q, k, v, strided).output; });

  // [image]
  const int64_t width = 16;  // of an image, whose pixels stand row by row
  auto neighbours = mask_mod([=](auto, auto, auto q, auto kv) {
    return abs(q / width - kv / width) <= 1 && abs(q % width - kv % width) <= 1;
  });
  auto image = attention(q, k, v, neighbours).output;
  // [/image]
  compare("image", [&] { return attention(q, k, v, neighbours).output; });

  // [speakers]
  auto speaker = table(torch::randint(3, {2, n}));  // [B, S] integers: who says what
  auto own =
      mask_mod([=](auto b, auto, auto q, auto kv) { return speaker(b, q) == speaker(b, kv); });
  auto spoken = attention(q, k, v, own && causal()).output;
  // [/speakers]
  compare("speakers", [&] { return attention(q, k, v, own && causal()).output; });

  // [capped]
  auto capped = score_mod([](auto s, auto, auto, auto q, auto kv) {
    return 20.0 * tanh(s / 20.0) - 0.1 * min(abs(q - kv), 8);
  });
  auto calm = attention(q, k, v, causal(), capped).output;
  // [/capped]
  compare("capped", [&] { return attention(q, k, v, causal(), capped).output; });

  // [learned]
  auto learned = torch::zeros({4, 2 * n}, torch::requires_grad());  // a number for each distance
  auto bias = table(learned);
  auto relative =
      score_mod([=](auto s, auto, auto h, auto q, auto kv) { return s + bias(h, q - kv + n); });
  attention(q, k, v, causal(), relative).output.square().sum().backward();  // fills learned.grad()
  // [/learned]
  compare("learned", [&] {
    const auto loss = attention(q, k, v, causal(), relative).output.square().sum();
    return torch::autograd::grad({loss}, {learned})[0];
  });

  // [aligned]
  auto last = q.slice(2, n - 8);  // 8 queries, the last of n tokens
  auto before = [](auto, auto, auto q, auto kv) { return kv <= q && q - kv < 64; };
  auto raw = attention(last, k, v, mask_mod(before)).output;  // as if they were the first 8
  auto end = attention(last, k, v, mask_mod(before, aligned)).output;  // as causal() counts
  // [/aligned]
  const auto whole = attention(q, k, v, mask_mod(before)).output.slice(2, n - 8);
  right = right && torch::allclose(end, whole, 1e-4, 1e-5) && !torch::allclose(raw, whole);
  return right ? 0 : 1;
}
