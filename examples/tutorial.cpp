// From a softmax to a mask of one's own, and a model that is trained with it (docs/tutorial.md):
// example_tutorial [FOLDER], into which the pictures of the page go.

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/embedding.h>
#include <torch/optim/adamw.h>
#include <attzoo/attzoo.hpp>
#include <iostream>

#include "examples/heat_map.hpp"

using namespace attzoo;

namespace {

// [board]
constexpr int64_t kWidth = 8;                // a board of 8 x 8 cells, row by row:
constexpr int64_t kCells = kWidth * kWidth;  // 64 tokens

/// The cells around a cell, and itself; what leaves the board comes back on the other side.
auto around() {
  return mask_mod([](auto, auto, auto q, auto kv) {
    auto down = q / kWidth - kv / kWidth, right = q % kWidth - kv % kWidth;
    return (down + kWidth + 1) % kWidth <= 2 && (right + kWidth + 1) % kWidth <= 2;
  });
}
// [/board]

// [rule]
/// Conway's Game of Life: boards [B, 64] of 0 and 1, and what they are a step later. A cell lives
/// if three of its neighbours do, or two and it lived.
torch::Tensor step(const torch::Tensor& board) {
  const auto square = board.view({-1, kWidth, kWidth});
  auto sum = torch::zeros_like(square);  // of the nine
  for (const int64_t down : {-1, 0, 1}) {
    for (const int64_t right : {-1, 0, 1}) sum += square.roll({down, right}, {1, 2});
  }
  return ((sum == 3) | ((sum == 4) & (square == 1))).to(torch::kInt64).view({-1, kCells});
}
// [/rule]

// [model]
struct Life : torch::nn::Module {
  Life() {
    register_module("embed", embed);
    register_module("block", block);
    register_module("head", head);
  }
  torch::Tensor forward(const torch::Tensor& board, const AnyMask& pattern) {  // logits [B, 64, 2]
    return head(block(embed(board), {.pattern = pattern}).output);
  }

  torch::nn::Embedding embed{2, 32};  // dead or alive; of its place a cell knows nothing
  TransformerBlock<MultiHeadSelfAttentionImpl> block{
      MultiHeadSelfAttention({.d_model = 32, .num_heads = 2, .dropout = 0.0}), {.dropout = 0.0}};
  torch::nn::Linear head{32, 2};
};
// [/model]

// [train]
/// The share of cells that the model gets wrong after 150 steps of training.
double train(Life& life, const AnyMask& pattern) {
  torch::optim::AdamW optimizer(life.parameters(), torch::optim::AdamWOptions(1e-2));
  life.train();
  for (int i = 0; i < 150; ++i) {
    const auto board = torch::randint(2, {64, kCells});
    const auto logits = life.forward(board, pattern);
    auto loss = torch::nn::functional::cross_entropy(logits.flatten(0, 1), step(board).flatten());
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    if (i % 50 == 0 || i == 149) std::cout << "  loss " << loss.item<float>() << '\n';
  }
  torch::NoGradGuard no_grad;
  life.eval();
  const auto board = torch::randint(2, {256, kCells});
  const auto guess = life.forward(board, pattern).argmax(-1);
  return (guess != step(board)).to(torch::kFloat64).mean().item<double>();
}
// [/train]

}  // namespace

int main(int argc, char** argv) {
  torch::manual_seed(0);
  const int64_t n = 32;

  // [softmax]
  auto q = torch::randn({1, 1, n, 16}), k = torch::randn({1, 1, n, 16}),
       v = torch::randn({1, 1, n, 16});
  auto scores = torch::matmul(q, k.transpose(-2, -1)) / std::sqrt(16.0);  // [1, 1, 32, 32]
  auto weights = torch::softmax(scores, -1);  // who hears whom; rows sum to 1
  auto by_hand = torch::matmul(weights, v);
  // [/softmax]

  // [call]
  auto r = attention(q, k, v);  // the same, and no [32, 32] in memory
  auto largest_error = (r.output - by_hand).abs().max();
  // [/call]
  std::cout << "attention() differs from the softmax by " << largest_error.item<double>() << '\n';
  bool right = largest_error.item<double>() < 1e-5;

  // [window]
  auto near = attention(q, k, v, causal() && window(8, 0));  // itself and the 8 before
  torch::Tensor seen = near.weights;                         // computed now, for the picture
  // [/window]

  // [module]
  MultiHeadSelfAttention attn({.d_model = 64, .num_heads = 4});
  auto x = torch::randn({1, kCells, 64});
  auto y = attn(x, {.pattern = around()}).output;
  // [/module]
  right = right && y.sizes() == x.sizes();

  // [run]
  Life with, without;
  std::cout << "who sees the cells around it:\n";
  const double few = train(with, around());
  std::cout << "who sees all cells:\n";
  const double many = train(without, full());
  std::cout << "wrong cells: " << 100 * few << " % and " << 100 * many << " %\n";
  // [/run]

  if (argc > 1) {
    const std::filesystem::path folder = argv[1];
    const auto board = torch::arange(kCells).view({1, 1, kCells, 1}).to(torch::kFloat32);
    const torch::Tensor grid = attention(board * 0, board * 0, board, around()).weights;
    example::write_heat_map(folder / "tutorial_softmax.svg", "softmax", weights[0][0], 7);
    example::write_heat_map(folder / "tutorial_window.svg", "causal() && window(8, 0)", seen[0][0],
                            7);
    example::write_heat_map(folder / "tutorial_around.svg", "around()", grid[0][0], 4);
  }
  return right && few < 0.01 && many > 0.1 ? 0 : 1;
}
