// torch.nn.MultiheadAttention in attzoo: its weights, its masks, its weights averaged over heads.

#include <torch/nn/modules/activation.h>

#include <attzoo/attzoo.hpp>
#include <iostream>

int main() {
  constexpr int64_t batch = 2, tokens = 6, d_model = 16, heads = 4;
  torch::nn::MultiheadAttention theirs(torch::nn::MultiheadAttentionOptions(d_model, heads));
  theirs->eval();

  attzoo::MultiHeadSelfAttention ours({.d_model = d_model, .num_heads = heads, .bias = true});
  attzoo::load_state_dict(*ours, attzoo::state_dict(*theirs),
                          attzoo::names::torch_multihead_attention());
  ours->eval();

  // PyTorch's masks: true = masked, true = ignored.
  const auto later = torch::ones({tokens, tokens}, torch::kBool).triu(1);
  const auto padding = torch::zeros({batch, tokens}, torch::kBool);
  padding[1][tokens - 1] = true;

  const auto x = torch::randn({batch, tokens, d_model});
  const auto [output, weights] = ours(x, attzoo::from_torch_masks(later, padding));

  const auto first = x.transpose(0, 1);  // sequence first, as C++ takes it
  const auto added = torch::zeros({tokens, tokens}).masked_fill(later, -INFINITY);
  const auto [their_output, their_weights] =
      theirs->forward(first, first, first, padding, /*need_weights=*/true, added);

  const bool same = torch::allclose(output, their_output.transpose(0, 1), 1e-5, 1e-6) &&
                    torch::allclose(weights.head_mean(), their_weights, 1e-5, 1e-6);
  std::cout << "outputs and weights agree: " << std::boolalpha << same << '\n';

  // The same masks as attzoo means them need no conversion.
  const auto direct = ours(x, {.key_padding_mask = padding.logical_not(), .causal = true}).output;
  std::cout << "without PyTorch's masks, too: " << torch::allclose(direct, output, 1e-5, 1e-6)
            << '\n';
  return same && torch::allclose(direct, output, 1e-5, 1e-6) ? 0 : 1;
}
