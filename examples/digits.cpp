// Handwritten digits, classified by a transformer whose pixels see their neighbours on the image
// alone (neighborhood.hpp). Training is saved in the middle, and goes on in a new model as if it
// had not stopped.
//
//   python3 examples/get_digits.py   # once: brings models/digits.csv
//   example_digits [EPOCHS]          # default 4

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <torch/serialize.h>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "neighborhood.hpp"

using namespace attzoo;
using example::Neighborhood, example::NeighborhoodImpl;

constexpr int64_t kSide = 8, kPixels = kSide * kSide, kTrain = 1400;

struct Classifier : torch::nn::Module {
  Classifier() {
    register_module("embed", embed);
    register_module("first", first);
    register_module("second", second);
    register_module("head", head);
    places = register_parameter("places", 0.1 * torch::randn({kPixels, 32}));
  }
  /// images [B, 64] -> logits [B, 10]
  torch::Tensor forward(const torch::Tensor& images) {
    const auto x = embed(images.unsqueeze(-1)) + places;
    return head(second(first(x).output).output.flatten(1));
  }
  static TransformerBlock<NeighborhoodImpl> block() {
    return transformer_block(Neighborhood({.d_model = 32, .side = kSide, .radius = 2}));
  }
  torch::nn::Linear embed{1, 32}, head{kPixels * 32, 10};
  TransformerBlock<NeighborhoodImpl> first = block(), second = block();
  torch::Tensor places;
};

/// A model in training: all that must be saved.
struct Training {
  std::shared_ptr<Classifier> model = std::make_shared<Classifier>();
  torch::optim::AdamW optimizer{model->parameters(), torch::optim::AdamWOptions(2e-3)};

  void epoch(const torch::Tensor& images, const torch::Tensor& digits, int number) {
    torch::manual_seed(number);  // of the order and of dropout: the same after a restart
    model->train();
    for (const auto& batch : torch::randperm(kTrain).split(50)) {
      const auto logits = model->forward(images.index_select(0, batch));
      optimizer.zero_grad();
      torch::nn::functional::cross_entropy(logits, digits.index_select(0, batch)).backward();
      optimizer.step();
    }
  }
  /// Of the digits that are not trained with, in percent.
  double accuracy(const torch::Tensor& images, const torch::Tensor& digits) {
    torch::NoGradGuard no_grad;
    model->eval();
    const auto right =
        model->forward(images.slice(0, kTrain)).argmax(-1) == digits.slice(0, kTrain);
    return 100 * right.to(torch::kFloat64).mean().item<double>();
  }
};

int main(int argc, char** argv) {
  std::ifstream file("models/digits.csv");
  if (!file) {
    std::cerr << "no models/digits.csv here: python3 examples/get_digits.py brings it\n";
    return 77;  // skipped
  }
  std::vector<float> numbers;  // 65 a line
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    for (std::string n; std::getline(fields, n, ',');) numbers.push_back(std::stof(n));
  }
  const auto lines = torch::tensor(numbers).view({-1, kPixels + 1});
  const auto images = lines.slice(1, 0, kPixels) / 16;
  const auto digits = lines.select(1, kPixels).to(torch::kInt64);

  const int epochs = argc > 1 ? std::atoi(argv[1]) : 4;
  torch::manual_seed(0);
  Training training;
  std::stringstream model, optimizer;  // files would do as well
  for (int i = 0; i < epochs; ++i) {
    if (i == epochs / 2) {
      torch::save(training.model, model);
      torch::save(training.optimizer, optimizer);
    }
    training.epoch(images, digits, i);
    std::cout << "epoch " << i + 1 << ": " << training.accuracy(images, digits) << " % right\n";
  }

  Training resumed;
  torch::load(resumed.model, model);
  torch::load(resumed.optimizer, optimizer);
  for (int i = epochs / 2; i < epochs; ++i) resumed.epoch(images, digits, i);
  bool same = true;
  for (const auto& p : training.model->named_parameters()) {
    same &= torch::equal(p.value(), resumed.model->named_parameters()[p.key()]);
  }
  std::cout << "resumed after epoch " << epochs / 2 << ": the same weights? "
            << (same ? "yes" : "no") << '\n';
  return same && training.accuracy(images, digits) > 80 ? 0 : 1;
}
