// A score modifier that learns: which echoes does a room have? From sounds and what is heard of
// them, a number for each distance is learned, and the softmax over the distances is the answer
// (docs/core.md).
// `example_learned_modifier [SEED]`, default 0

#include <torch/optim/adam.h>
#include <attzoo/attzoo.hpp>
#include <cstdlib>
#include <iostream>

using namespace attzoo;

int main(int argc, char** argv) {
  torch::manual_seed(argc > 1 ? std::atoi(argv[1]) : 0);
  // Two rooms, one for each head: how loud what sounded d steps ago is now.
  const int64_t n = 256, reach = 32;
  auto room = torch::zeros({2, reach});
  room[0][3] = 0.6, room[0][11] = 0.3, room[0][29] = 0.1;
  room[1][0] = 0.5, room[1][7] = 0.5;
  const auto heard = [&](const torch::Tensor& sound) {  // by definition, [1, 2, n, 1]
    auto sum = torch::zeros_like(sound);
    for (int64_t d = 0; d < reach; ++d) {
      sum.slice(2, d) += room.select(1, d).view({2, 1, 1}) * sound.slice(2, 0, n - d);
    }
    return sum;
  };

  // [train]
  auto learned = torch::zeros({2, reach}, torch::requires_grad());  // all distances alike
  auto weight = table(learned);  // holds the tensor itself, so that it sees every step
  auto score = score_mod([=](auto s, auto, auto h, auto q, auto kv) {
    return s + weight(h, clamp(q - kv, 0, reach - 1));
  });
  auto mask = causal() && window(reach - 1, 0);
  auto same = torch::zeros({1, 2, n, 1});  // queries and keys: nothing but the distance counts

  torch::optim::Adam optimizer({learned}, torch::optim::AdamOptions(0.1));
  for (int step = 0; step <= 300; ++step) {
    auto sound = torch::randn({1, 2, n, 1});
    auto guess = attention(same, same, sound, mask, score).output;
    auto loss = torch::mse_loss(guess.slice(2, reach), heard(sound).slice(2, reach));
    if (step % 50 == 0) std::cout << "step " << step << ": loss " << loss.item<float>() << '\n';
    optimizer.zero_grad();
    loss.backward();  // through the fused kernel, into the table
    optimizer.step();
  }
  auto found = learned.softmax(-1);  // [2, reach]: the weights of every row, by distance
  // [/train]

  for (int64_t h = 0; h < 2; ++h) {
    std::cout << "room " << h << ':';
    const auto [loudness, distance] = found[h].topk(3 - h);
    for (int64_t i = 0; i < 3 - h; ++i) {
      std::cout << (i > 0 ? ", " : " ") << loudness[i].item<float>() << " of what sounded "
                << distance[i].item<int64_t>() << " steps ago";
    }
    std::cout << '\n';
  }
  const double error = (found - room).abs().max().item<double>();
  std::cout << "what it found differs from the rooms by " << error << " at most\n";
  return error < 0.03 ? 0 : 1;
}
