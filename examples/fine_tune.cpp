// A model of bytes learns prose, and then code by LoRA, while its weights stay
// (docs/fine_tuning.md).

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <algorithm>
#include <attzoo/attzoo.hpp>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

using namespace attzoo;
namespace fs = std::filesystem;

namespace {

constexpr int64_t kWidth = 64, kBytes = 256, kLength = 96;

/// A Llama of two layers.
struct Model : torch::nn::Module {
  // [model]
  Model() {
    for (int i = 0; i < 2; ++i) {
      GroupedSelfAttention attn({.d_model = kWidth,
                                 .num_query_heads = 4,
                                 .num_kv_heads = 2,
                                 .rope = true,
                                 .causal = true});
      layers->push_back(transformer_block(attn, {.mlp_hidden = 160,
                                                 .norm = NormKind::kRMSNorm,
                                                 .activation = Activation::kSilu,
                                                 .mlp_gated = true,
                                                 .mlp_bias = false}));
    }
    register_module("embed", embed);
    register_module("layers", layers);
    register_module("norm", norm);
    register_module("lm_head", lm_head);
  }
  /// Bytes [B, L] -> logits [B, L, 256].
  torch::Tensor forward(const torch::Tensor& bytes) {
    return lm_head(norm(layers(embed(bytes)).output));
  }
  // [/model]

  torch::nn::Embedding embed{kBytes, kWidth};
  Stack layers;
  RMSNorm norm{kWidth};
  torch::nn::Linear lm_head{torch::nn::LinearOptions(kWidth, kBytes).bias(false)};
};

struct Text {
  torch::Tensor train, held_out;  // bytes [N]
};

/// All files of a folder of attzoo that end with `ending`; of every tenth part nothing is learned.
Text text_of(const std::string& folder, const std::string& ending) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(fs::path(ATTZOO_SOURCE_DIR) / folder)) {
    if (entry.path().extension() == ending) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  std::string all;
  for (const auto& path : files) {
    std::ifstream file(path, std::ios::binary);
    all.append(std::istreambuf_iterator<char>(file), {});
  }
  const auto bytes = torch::from_blob(all.data(), {static_cast<int64_t>(all.size())}, torch::kUInt8)
                         .to(torch::kInt64);
  const int64_t first = bytes.size(0) * 9 / 10;
  return {bytes.slice(0, 0, first), bytes.slice(0, first)};
}

/// The mean loss of the next byte in windows [B, kLength + 1].
torch::Tensor loss_of(Model& model, const torch::Tensor& windows) {
  const auto logits = model.forward(windows.slice(1, 0, -1));
  return torch::nn::functional::cross_entropy(logits.flatten(0, 1), windows.slice(1, 1).flatten());
}

double held_out_loss(Model& model, const Text& text) {
  const torch::NoGradGuard no_grad;
  model.eval();
  const auto windows = text.held_out.unfold(0, kLength + 1, kLength);
  return loss_of(model, windows.slice(0, 0, 64)).item<double>();
}

// [train]
/// Trains what learns.
void train(Model& model, const Text& text, int steps, double rate) {
  std::vector<torch::Tensor> learning;
  for (const auto& t : model.parameters()) {
    if (t.requires_grad()) learning.push_back(t);
  }
  torch::optim::AdamW optimizer(learning, torch::optim::AdamWOptions(rate));
  model.train();
  for (int step = 0; step < steps; ++step) {
    const auto places = torch::randint(text.train.size(0) - kLength, {8, 1});
    const auto loss = loss_of(model, text.train.index({places + torch::arange(kLength + 1)}));
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
  }
}
// [/train]

int64_t learning(const Model& model) {
  int64_t numbers = 0;
  for (const auto& t : model.parameters()) numbers += t.requires_grad() ? t.numel() : 0;
  return numbers;
}

bool near(double a, double b) { return std::abs(a - b) < 1e-4; }

}  // namespace

int main() {
  torch::manual_seed(0);
  const auto start = std::chrono::steady_clock::now();
  const auto prose = text_of("docs", ".md"), code = text_of("include/attzoo/module", ".hpp");
  const auto folder = fs::temp_directory_path() / "attzoo_fine_tune";
  fs::create_directories(folder);

  // [base]
  Model model;
  train(model, prose, 600, 3e-3);
  save_state_dict(model, folder / "model.safetensors", names::llama());
  // [/base]
  const double prose_loss = held_out_loss(model, prose), before = held_out_loss(model, code);
  std::cout << learning(model) << " weights learn prose: loss " << prose_loss << ", of code "
            << before << '\n';

  // [lora]
  add_lora(model, {.rank = 8,
                   .alpha = 16,
                   .targets = {"w_q", "w_k", "w_v", "w_o", "mlp_in", "mlp_gate", "mlp_out"}});
  train(model, code, 300, 3e-3);
  save_lora(model, folder / "code", names::llama());
  // [/lora]
  const double after = held_out_loss(model, code);
  std::cout << learning(model) << " weights learn code: loss " << after << '\n';

  // [load]
  Model fresh;
  load_state_dict(fresh, folder, names::llama());
  load_lora(fresh, folder / "code", names::llama());
  // [/load]
  const double loaded = held_out_loss(fresh, code);
  // [merge]
  merge_lora(fresh);
  save_state_dict(fresh, folder / "merged.safetensors", names::llama());
  // [/merge]
  const double merged = held_out_loss(fresh, code);
  remove_lora(model);
  const double removed = held_out_loss(model, prose);
  std::cout << "loaded " << loaded << ", merged " << merged << "; without it, prose " << removed
            << '\n';

  // [freeze]
  freeze(model);
  unfreeze(model, {"layers.1.*", "norm.*"});  // the last block and the last norm
  train(model, code, 100, 1e-3);
  // [/freeze]
  const double last_block = held_out_loss(model, code);
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  std::cout << learning(model) << " weights of the last block learn code: loss " << last_block
            << "; " << spent.count() << " s\n";
  fs::remove_all(folder);
  const bool learned = after < before - 0.2 && last_block < before;
  return learned && near(loaded, after) && near(merged, after) && near(removed, prose_loss) ? 0 : 1;
}
