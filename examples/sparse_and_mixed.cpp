// A local mechanism on a padded batch, and a learned mixture of two mechanisms.

#include <attzoo/attzoo.hpp>
#include <iostream>

int main() {
  attzoo::LocalSelfAttention local(
      {.d_model = 256, .window_size = 64, .num_heads = 8, .causal = true});
  auto x = torch::randn({3, 200, 256});
  auto lengths_mask = attzoo::create_padding_mask(std::vector<int64_t>{200, 150, 7});
  auto y = local(x, {.key_padding_mask = lengths_mask}).output;

  attzoo::CombinedAttention mix(local, attzoo::MultiHeadSelfAttention(256, 8));
  auto z = mix(x).output;
  std::cout << y.sizes() << z.sizes() << '\n';
}
