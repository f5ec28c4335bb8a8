// Masks: the named ones, composed, and those of a call to a module (docs/masks.md).

#include <attzoo/attzoo.hpp>
#include <iostream>

using namespace attzoo;

namespace {

/// The share of pairs that have weight.
double share(const LazyWeights& weights) {
  return (weights.tensor() > 0).to(torch::kFloat64).mean().item<double>();
}

}  // namespace

int main() {
  torch::NoGradGuard no_grad;
  const int64_t n = 256;
  const auto q = torch::randn({2, 4, n, 32}), k = torch::randn({2, 4, n, 32}),
             v = torch::randn({2, 4, n, 32});

  // [compose]
  auto recent = causal() && window(63, 0);  // the 64 latest tokens
  auto prefix_lm = prefix(32) || causal();  // the first 32 tokens are seen by all
  auto others = !blocks(64);                // all but one's own block
  auto y = attention(q, k, v, recent).output;
  // [/compose]
  const double shares[] = {share(attention(q, k, v, recent).weights),
                           share(attention(q, k, v, prefix_lm).weights),
                           share(attention(q, k, v, others).weights)};
  for (const double s : shares) std::cout << "share of pairs: " << s << '\n';

  // [tensor]
  auto allowed = torch::rand({n, n}) < 0.1;  // bool [L, S], true = attend
  allowed.fill_diagonal_(true);
  auto sparse = block_mask(mask_tensor(allowed), n, n);  // looked at once, for many calls
  auto z = attention(q, k, v, sparse).output;
  // [/tensor]
  const auto same = attention(q, k, v, mask_tensor(allowed)).output;

  // [padding]
  auto real = create_padding_mask(std::vector<int64_t>{256, 100});  // bool [B, S], true = real
  auto p = attention(q, k, v, causal() && mask_tensor(real.view({2, 1, 1, n}))).output;
  // [/padding]

  // [create]
  auto seen = create_mask(recent, 1, 1, n, n);  // bool [1, 1, L, S], true = attend
  auto theirs = torch::scaled_dot_product_attention(q, k, v, seen);
  // [/create]

  // [run_time]
  AnyMask mask = causal();  // a mask of any type, chosen at run time
  if (n > 128) mask = mask && window(128, 128);
  // [/run_time]

  const auto x = torch::randn({2, n, 64});
  // [module]
  MultiHeadSelfAttention attn({.d_model = 64, .num_heads = 4});
  auto padded = attn(x, {.mask = allowed, .key_padding_mask = real, .causal = true});
  // [/module]

  // [pattern]
  auto nearby = attn(x, {.pattern = recent}).output;  // O(n w), as attention(q, k, v, recent)
  auto tilted =
      score_mod([](auto s, auto, auto, auto q, auto kv) { return s - 0.1 * abs(q - kv); });
  auto soft = attn(x, {.causal = true, .score = tilted}).output;
  // [/pattern]
  const auto as_tensor = attn(x, {.mask = seen}).output;

  // [packed]
  auto packed = torch::cat({x[0], x[1].slice(0, 0, 100)}).unsqueeze(0);  // both, without padding
  auto ends = torch::tensor({0, 256, 356});
  auto together = attn(packed, {.documents = {.offsets = ends}}).output;
  // [/packed]
  const bool right = shares[0] < 0.25 && shares[1] > 0.5 && shares[2] == 0.75 &&
                     torch::allclose(z, same, 1e-4, 1e-5) && p.isfinite().all().item<bool>() &&
                     torch::allclose(y, theirs, 1e-4, 1e-5) &&
                     padded.output.isfinite().all().item<bool>() && together.size(1) == 356 &&
                     torch::allclose(nearby, as_tensor, 1e-4, 1e-5) &&
                     soft.isfinite().all().item<bool>() &&
                     attention(q, k, v, mask).output.isfinite().all().item<bool>();
  return right ? 0 : 1;
}
