#pragma once
// What every consumer project runs: attention of attzoo against its definition.

#include <attzoo/attzoo.hpp>
#include <cstdio>

inline bool attention_is_right(const attzoo::MultiHeadSelfAttention& module) {
  auto attn = module;
  attn->eval();
  const auto x = torch::randn({2, 9, 16});
  const auto [out, weights] = attn(x, {.causal = true});
  const torch::Tensor w = weights;  // [2, 4, 9, 9]
  const auto v = attn->w_v(x).view({2, 9, 4, 4}).transpose(1, 2);
  const auto want = attn->w_o(torch::matmul(w, v).transpose(1, 2).flatten(2));
  const bool causal = (w.triu(1) == 0).all().item<bool>();
  const bool right = causal && torch::allclose(out, want, 1e-5, 1e-6) &&
                     torch::allclose(w.sum(-1), torch::ones({2, 4, 9}));
  std::printf("attention is %s\n", right ? "right" : "WRONG");
  return right;
}
