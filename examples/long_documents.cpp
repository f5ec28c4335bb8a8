// What kind of file is this? Longformer reads 4,096 bytes and answers by one global token
// (docs/long_documents.md). `example_long_documents [SEED]`, default 0

#include <torch/autograd.h>
#include <cstdlib>
#include <iomanip>
#include <iostream>
#include <support/peak_memory.hpp>

#include "reader.hpp"

using namespace attzoo;

namespace {

/// How much token `to`'s output changes with token `from`.
double effect(Reader& reader, const torch::Tensor& x, const torch::Tensor& is_global, int64_t from,
              int64_t to) {
  const auto input = x.detach().requires_grad_();
  const auto y = reader.forward(input, is_global).output[0][to].sum();
  return torch::autograd::grad({y}, {input})[0][0][from].norm().item<double>();
}

/// The bytes around token i, on one line.
std::string around(const torch::Tensor& bytes, int64_t i) {
  std::string text;
  for (int64_t j = std::max<int64_t>(i - 12, 0); j < std::min(i + 12, bytes.size(1)); ++j) {
    const auto c = static_cast<char>(bytes[0][j].item<int64_t>());
    text += c == '\n' ? ' ' : c;
  }
  return text;
}

}  // namespace

int main(int argc, char** argv) {
  torch::manual_seed(argc > 1 ? std::atoi(argv[1]) : 0);
  // [learn]
  const auto kinds = load_kinds(ATTZOO_SOURCE_DIR);  // library, test, page, script
  const int64_t n = 4096;
  Reader reader(4);
  std::cout << "before: " << 100 * accuracy(reader, kinds, n, 8) << " % of 32 are right\n";
  std::cout << "mean loss of the last steps: " << train(reader, kinds, n, 60) << '\n';
  const double right = accuracy(reader, kinds, n, 16);
  std::cout << "after: " << 100 * right << " % of 64 in files never seen, by chance 25 %\n";
  // [/learn]

  // [rows]
  auto document = documents_of(kinds[1].held_out, 1, n);  // from a test
  auto x = reader.tokens(document);                       // [1, 1 + n, 32]
  auto is_global = torch::arange(n + 1) == 0;             // [L] or [B, L]
  auto [y, weights] = reader.forward(x, is_global);
  auto row = weights.rows(0, 1);                         // [1, 2, 1, 1 + n], not (1 + n)^2
  auto [strength, token] = row.mean({0, 1, 2}).topk(3);  // where the first token looks
  // [/rows]
  for (int64_t i = 0; i < 3; ++i) {
    const auto at = token[i].item<int64_t>();
    std::cout << "it looks at byte " << at << ", " << strength[i].item<double>() * double(n)
              << " times the mean: " << around(document, at) << '\n';
  }

  // [reach]
  const double far = effect(reader, x, is_global, 500, 4000);
  const double without = effect(reader, x, torch::zeros({n + 1}), 500, 4000);
  std::cout << "byte 500 on byte 4000: " << far << ", without a global token " << without << '\n';
  // [/reach]

  // [memory]
  std::vector<int64_t> peaks;
  auto longer = reader.tokens(documents_of(kinds[0].learn, 1, 16384));
  for (const int64_t length : {4096, 8192, 16384}) {
    auto part = longer.slice(1, 0, length).detach().requires_grad_();
    attzoo::testing::PeakMemory memory;
    reader.forward(part, torch::arange(length) == 0).output.sum().backward();
    peaks.push_back(memory.peak());
    std::cout << length << " tokens, forward and backward: " << peaks.back() / 1000000 << " MB\n";
  }
  // [/memory]

  // [pieces]
  torch::NoGradGuard no_grad;
  Reader stream(4, /*causal=*/true);
  auto cache = stream.layers->make_cache(/*batch=*/1);  // no capacity
  std::vector<torch::Tensor> pieces;
  auto is_first = torch::arange(longer.size(1)) == 0;
  for (int64_t i = 0; i < longer.size(1); i += 1024) {
    auto global = is_first.slice(0, i, i + 1024);
    auto part = longer.slice(1, i, i + 1024);
    pieces.push_back(stream.layers(part, {.global_attention = global, .cache = cache}).output);
  }
  std::cout << "state: " << cache.bytes() << " bytes\n";
  // [/pieces]
  const auto whole = stream.forward(longer, is_first).output;
  const double error = (torch::cat(pieces, 1) - whole).abs().max().item<double>();
  std::cout << "in pieces and at once differ by " << error << '\n';
  return right > 0.4 && far > 0 && without == 0 && peaks[2] < 5 * peaks[0] && error < 1e-4 ? 0 : 1;
}
