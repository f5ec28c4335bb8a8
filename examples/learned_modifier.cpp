// A score modifier that learns: from a sound and its echoes, which echoes are there? A weight for
// each distance, and attention's softmax over the distances is the answer (docs/core.md).
// `example_learned_modifier [SEED]`, default 0

#include <torch/nn/functional/loss.h>
#include <torch/optim/adam.h>
#include <attzoo/attzoo.hpp>
#include <cstdlib>
#include <iostream>

using namespace attzoo;

int main(int argc, char** argv) {
  torch::manual_seed(argc > 1 ? std::atoi(argv[1]) : 0);
  // Two walls, one for each head: how loud what was heard d steps ago is now.
  const int64_t n = 512, reach = 32;
  auto room = torch::zeros({2, reach});
  room[0][3] = 0.6, room[0][11] = 0.3, room[0][29] = 0.1;
  room[1][0] = 0.5, room[1][7] = 0.5;

  auto echoes = [&](const torch::Tensor& sound) {  // [1, 2, n, 1], by definition
    auto heard = torch::zeros_like(sound);
    for (int64_t d = 0; d < reach; ++d) {
      heard.slice(2, d) += room.select(1, d).view({2, 1, 1}) * sound.slice(2, 0, n - d);
    }
    return heard;
  };

  // [train]
  auto learned = torch::zeros({2, reach}, torch::requires_grad());  // all distances alike
  auto weight = table(learned);  // [H, distances], by reference: it sees every step
  auto score = score_mod([=](auto s, auto, auto h, auto q, auto kv) {
    return s + weight(h, clamp(q - kv, 0, reach - 1));
  });
  auto mask = causal() && window(reach - 1, 0);
  auto zeros = torch::zeros({1, 2, n, 1});  // queries and keys: the sound itself does not matter

  torch::optim::Adam optimizer({learned}, torch::optim::AdamOptions(0.1));
  for (int step = 0; step < 300; ++step) {
    auto sound = torch::randn({1, 2, n, 1});
    auto guess = attention(zeros, zeros, sound, mask, score).output;
    auto loss = torch::mse_loss(guess.slice(2, reach), echoes(sound).slice(2, reach));
    optimizer.zero_grad();
    loss.backward();  // through the fused kernel, into the table
    optimizer.step();
    if (step % 50 == 0 || step == 299) {
      std::cout << "step " << step << ": loss " << loss.item<float>() << '\n';
    }
  }
  auto found = learned.softmax(-1);  // [2, reach]: what every row's weights are
  // [/train]

  for (int64_t h = 0; h < 2; ++h) {
    const auto [loud, distance] = found[h].topk(3);
    std::cout << "head " << h << ": distances " << distance[0].item<int64_t>();
    for (int64_t i = 0; i < 3; ++i) {
      std::cout << (i == 0 ? ": " : ", ") << loud[i].item<float>() << " of what was heard "
                << distance[i].item<int64_t>() << " steps before";
    }
    std::cout << '\n';
  }
  const double error = (found - room).abs().max().item<double>();
  std::cout << "the room's own loudness differs by " << error << " at most\n";
  return error < 0.02 ? 0 : 1;
}
