// Attention with a mask and a score of your own, in a module and without one.

#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>
#include <attzoo/multi_head.hpp>
#include <iostream>

int main() {
  torch::manual_seed(0);
  auto third = attzoo::mask_mod([](auto, auto, auto q, auto kv) { return (q - kv) % 3 == 0; });
  auto fade =
      attzoo::score_mod([](auto s, auto, auto, auto q, auto kv) { return s - 0.1 * abs(q - kv); });

  auto q = torch::randn({1, 8, 1024, 64}).requires_grad_(), k = torch::randn({1, 8, 1024, 64}),
       v = torch::randn({1, 8, 1024, 64});
  auto y = attzoo::attention(q, k, v, third && attzoo::causal(), fade).output;  // [1, 8, 1024, 64]
  y.square().sum().backward();                                                  // fused, too
  std::cout << y.sizes() << ", gradient " << q.grad().norm().item<float>() << '\n';
  std::cout << attzoo::explain(q, k, v, third && attzoo::causal(), fade);

  attzoo::MultiHeadSelfAttention attn({.d_model = 128, .num_heads = 8});
  auto x = torch::randn({2, 100, 128});
  auto z = attn(x, {.causal = true, .pattern = third}).output;  // [2, 100, 128]
  std::cout << attn << '\n' << z.sizes() << '\n';
}
