// A local mechanism on a padded and on a packed batch, and a learned mixture of two mechanisms.

#include <attzoo/attzoo.hpp>
#include <iostream>

int main() {
  attzoo::LocalSelfAttention local(
      {.d_model = 256, .num_heads = 8, .window_size = 64, .causal = true});
  auto x = torch::randn({3, 200, 256});
  auto lengths_mask = attzoo::create_padding_mask(std::vector<int64_t>{200, 150, 7});
  auto y = local(x, {.key_padding_mask = lengths_mask}).output;

  // The same three sequences without padding: one row, and where each of them ends.
  auto packed = torch::cat({x[0], x[1].slice(0, 0, 150), x[2].slice(0, 0, 7)}).unsqueeze(0);
  local->eval();
  auto p = local(packed, {.documents = {.offsets = torch::tensor({0, 200, 350, 357})}}).output;
  auto same = local(x, {.key_padding_mask = lengths_mask}).output[1].slice(0, 0, 150);
  std::cout << "packed and padded differ by "
            << (p[0].slice(0, 200, 350) - same).abs().max().item<double>() << '\n';

  auto mix = attzoo::combined(local, attzoo::MultiHeadSelfAttention(256, 8));
  auto z = mix(x).output;
  std::cout << y.sizes() << z.sizes() << '\n';
}
