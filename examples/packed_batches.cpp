// Sequences of several lengths: one packed row beside a padded batch (docs/packed_batches.md).

#include <torch/autograd.h>
#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/utils/rnn.h>
#include <attzoo/attzoo.hpp>
#include <iostream>

using namespace attzoo;

namespace {

bool right = true;

void check(const char* what, const torch::Tensor& a, const torch::Tensor& b) {
  const double error = (a - b).abs().max().item<double>();
  std::cout << what << ": differ by " << error << '\n';
  right = right && error < 1e-10;
}

/// Outputs and gradients of a mechanism, as a packed row and as a padded batch.
template <class Module>
void compare(const char* name, Module attn, const std::vector<torch::Tensor>& texts,
             const torch::Tensor& lengths) {
  auto block = transformer_block(attn);
  block->to(torch::kFloat64);
  block->eval();  // no dropout
  // [packed]
  auto row = torch::cat(texts).unsqueeze(0);                        // [1, 600, 64]
  auto ends = torch::constant_pad_nd(lengths.cumsum(0), {1, 0});    // 0, 300, 500, 590, 600
  auto y = block(row, {.documents = {.offsets = ends}}).output[0];  // [600, 64]
  // [/packed]
  // [padded]
  auto rows = torch::nn::utils::rnn::pad_sequence(texts, true);           // [4, 300, 64]
  auto real = create_padding_mask(lengths);                               // bool [4, 300]
  auto z = block(rows, {.key_padding_mask = real}).output.index({real});  // [600, 64]
  // [/padded]
  check(name, y, z);
  const auto a = torch::autograd::grad({y.square().sum()}, block->parameters());
  const auto b = torch::autograd::grad({z.square().sum()}, block->parameters());
  for (size_t i = 0; i < a.size(); ++i) right = right && torch::allclose(a[i], b[i], 1e-8, 1e-8);
}

}  // namespace

int main() {
  torch::manual_seed(0);
  const auto lengths = torch::tensor({300, 200, 90, 10});
  std::vector<torch::Tensor> texts;
  for (const int64_t n : {300, 200, 90, 10})
    texts.push_back(torch::randn({n, 64}, torch::kFloat64));
  compare("multi-head, RoPE", MultiHeadSelfAttention({.d_model = 64, .num_heads = 4, .rope = true}),
          texts, lengths);
  compare("ALiBi", ALiBiSelfAttention({.d_model = 64, .num_heads = 4, .causal = true}), texts,
          lengths);
  compare("local", LocalSelfAttention({.d_model = 64, .window_size = 32}), texts, lengths);
  compare("blocks", BlockSelfAttention({.d_model = 64, .block_size = 32}), texts, lengths);
  compare("linear", LinearSelfAttention({.d_model = 64, .causal = true}), texts, lengths);

  // [work]
  auto packed = lengths.square().sum(), padded = lengths.numel() * lengths.max().square();
  std::cout << "pairs: " << packed.item() << " packed, " << padded.item()
            << " padded; tokens: " << lengths.sum().item() << " and "
            << (lengths.numel() * lengths.max()).item() << '\n';
  // [/work]

  // [rows]
  auto x = torch::randn({2, 512, 64});  // two rows, each with documents of its own
  auto ids = torch::zeros({2, 512}, torch::kInt64);
  ids[0].slice(0, 300) = 1;  // row 0: 300 and 212 tokens
  ids[1].slice(0, 100) = 1;  // row 1: 100, 350 and 62, the last of which are padding
  ids[1].slice(0, 450) = 2;
  MultiHeadSelfAttention attn({.d_model = 64, .num_heads = 4, .dropout = 0, .rope = true});
  auto both = attn(x, {.causal = true, .documents = {.ids = ids}}).output;
  // [/rows]
  const auto alone = attn(x.slice(0, 1).slice(1, 100, 450), {.causal = true}).output;
  right = right && torch::allclose(both[1].slice(0, 100, 450), alone[0], 1e-4, 1e-5);

  // [functional]
  auto q = torch::randn({2, 4, 512, 16}), k = torch::randn({2, 4, 512, 16});
  auto o = attention(q, k, k, causal() && documents({.ids = ids})).output;
  // [/functional]

  // [loss]
  auto tokens = torch::randint(64, {1, 600});
  auto ends = torch::constant_pad_nd(lengths.cumsum(0), {1, 0});
  torch::nn::Embedding embed(64, 64);
  auto logits = attn(embed(tokens), {.causal = true, .documents = {.offsets = ends}}).output;
  auto targets = tokens.roll(-1, 1);                   // each token's next
  targets.index_fill_(1, ends.slice(0, 1) - 1, -100);  // the last of a document has none
  auto loss = torch::nn::functional::cross_entropy(logits[0], targets[0]);  // ignores -100
  // [/loss]
  return right && o.isfinite().all().item<bool>() && loss.item<float>() > 0 ? 0 : 1;
}
