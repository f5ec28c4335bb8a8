// Where a long text is read: some rows of its attention weights, drawn without the others. Three
// heads look for what stood after the same bytes before, and learn in seconds how much each of
// these bytes matters (docs/long_documents.md).
//
//   example_attention_rows [TEXT [PICTURE.svg [SEED]]]   # docs/design.md attention_rows.svg 0

#include <torch/nn/functional/normalization.h>
#include <torch/optim/adam.h>
#include <attzoo/attzoo.hpp>
#include <cstdlib>
#include <iostream>
#include <support/peak_memory.hpp>

#include "demo/text.hpp"
#include "heat_map.hpp"

using namespace attzoo;

namespace {

constexpr int64_t kHeads = 3, kBefore = 6, kLength = 8192;

// [model]
struct Searcher : torch::nn::Module {
  /// text [B, n] -> output [B, H, n, 256]: what each head takes to be the chances of the next byte
  AttentionResult forward(const torch::Tensor& text) {
    const auto padded = torch::constant_pad_nd(text, {kBefore, 0}, 256);
    const auto codes = torch::nn::functional::normalize(code);        // [257, 16]
    const auto before = codes.index({padded.unfold(1, kBefore, 1)});  // [B, n + 1, 6, 16]
    const auto q = before.slice(1, 1).unsqueeze(1) * importance;      // the bytes up to this one
    const auto k = before.slice(1, 0, -1).unsqueeze(1);               // those before each
    const auto v = torch::one_hot(text, 256).to(k.dtype());           // and the byte itself
    return attention(q.flatten(3), k.flatten(3), v.unsqueeze(1), causal(), {.scale = 1});
  }
  /// Bits per byte, the heads mixed.
  torch::Tensor bits(const torch::Tensor& text) {
    const auto p = (forward(text).output * mix.softmax(0)).sum(1) * 0.99 + 0.01 / 256;
    return -p.slice(1, 0, -1).gather(2, text.slice(1, 1).unsqueeze(2)).log2().mean();
  }
  torch::Tensor code = register_parameter("code", torch::randn({257, 16}));  // of each byte
  torch::Tensor importance = register_parameter(
      "importance", torch::tensor({0.5, 1.2, 2.0}).view({-1, 1, 1, 1}).repeat({1, 1, kBefore, 1}));
  torch::Tensor mix = register_parameter("mix", torch::zeros({kHeads, 1, 1}));
};
// [/model]

std::string show(const torch::Tensor& text, int64_t begin, int64_t end) {
  std::string shown;
  for (auto i = std::max<int64_t>(begin, 0); i < end; ++i)
    shown += static_cast<char>(text[0][i].item<int64_t>());
  std::replace(shown.begin(), shown.end(), '\n', ' ');
  return "'" + shown + "'";
}

}  // namespace

int main(int argc, char** argv) {
  const std::string file = argc > 1 ? argv[1] : ATTZOO_SOURCE_DIR "/docs/design.md";
  const std::string picture = argc > 2 ? argv[2] : "attention_rows.svg";
  torch::manual_seed(argc > 3 ? std::atoi(argv[3]) : 0);
  std::ifstream in(file, std::ios::binary);
  const std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(in), {}};
  TORCH_CHECK_VALUE(bytes.size() >= kLength, file, ": needs ", kLength, " bytes");
  const auto text = torch::tensor(bytes).to(torch::kInt64).slice(0, 0, kLength).unsqueeze(0);

  auto others = demo::project_files(ATTZOO_SOURCE_DIR);  // attzoo's own, but for this file
  std::erase_if(others, [&](const auto& f) { return std::filesystem::equivalent(f, file); });
  const auto learn = demo::load_text(others).train;
  Searcher model;
  const double before = model.bits(text).item<double>();
  torch::optim::Adam optimizer(model.parameters(), torch::optim::AdamOptions(0.05));
  for (int step = 0; step < 50; ++step) {
    const auto start = torch::randint(learn.size(0) - 1024, {2, 1});
    optimizer.zero_grad();
    model.bits(learn.index({start + torch::arange(1024)})).backward();
    optimizer.step();
  }

  torch::NoGradGuard no_grad;
  const double after = model.bits(text).item<double>();
  std::cout << file << ", bits per byte: " << before << ", when trained " << after << '\n';
  std::cout << "how much each byte matters to the last head, the nearest last:";
  for (int64_t i = 0; i < kBefore; ++i) std::cout << ' ' << model.importance[2][0][i].item<float>();

  // [rows]
  auto [output, weights] = model.forward(text);  // weights [1, 3, 8192, 8192], not computed
  attzoo::testing::PeakMemory memory;
  auto rows = weights.rows(kLength - 64, kLength)[0][2];  // [64, 8192], the last head's
  std::cout << "\n64 rows: " << memory.peak() / 1000000 << " MB; all would be 805 MB\n";
  auto most = rows.unflatten(1, {-1, 64}).amax(-1);  // [64, 128], the most of each 64 bytes
  auto visible = most.where(most > 0.2 * most.amax(1, true), 0);
  example::write_heat_map(picture, "the last 64 bytes by all 8,192, a cell for 64", visible);
  // [/rows]
  std::cout << "drawn: " << picture << '\n';
  for (int64_t i = 7; i < 64; i += 8) {
    const int64_t at = kLength - 64 + i, best = rows[i].argmax().item<int64_t>();
    std::cout << "after " << show(text, at - 11, at + 1) << " it reads "
              << show(text, best - 12, best) << ' ' << show(text, best, best + 1) << ", "
              << at - best << " bytes before\n";
  }
  // The rows are those that made the output.
  const auto made = rows.matmul(torch::one_hot(text[0], 256).to(rows.dtype()));
  const double error = (made - output[0][2].slice(0, kLength - 64)).abs().max().item<double>();
  return after < before - 0.2 && error < 1e-4 && memory.peak() < 50e6 ? 0 : 1;
}
