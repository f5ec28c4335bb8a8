// The quick start of the README: weights that cost nothing until they are asked for.

#include <attzoo/attzoo.hpp>
#include <iostream>

int main() {
  // [call]
  attzoo::MultiHeadSelfAttention attn({.d_model = 128, .num_heads = 8});
  auto x = torch::randn({4, 512, 128});
  auto [out, weights] = attn(x);
  // [/call]
  std::cout << out.sizes() << weights.sizes() << '\n';  // [4, 512, 128] [4, 8, 512, 512]
  torch::Tensor w = weights;                            // computed only now, differentiable
  torch::Tensor first = weights.rows(0, 16);  // rows 0..15 alone: [4, 8, 16, 512], O(16 n)
  std::cout << w.sizes() << first.sizes() << '\n';
}
