// A long document and a question about it: a window and global tokens (docs/long_documents.md).

#include <torch/autograd.h>
#include <attzoo/attzoo.hpp>
#include <iostream>
#include <support/peak_memory.hpp>

using namespace attzoo;

namespace {

// [model]
struct Reader : torch::nn::Module {
  explicit Reader(bool causal = false) {
    LongformerSelfAttentionOptions o{.d_model = 64, .num_heads = 4, .window_size = 256};
    o.dropout = 0, o.rope = true, o.causal = causal;
    for (const char* name : {"first", "second"}) {
      blocks.push_back(register_module(name, transformer_block(LongformerSelfAttention(o))));
    }
  }
  AttentionResult forward(const torch::Tensor& x, const torch::Tensor& is_global) {
    auto h = blocks[0](x, {.global_attention = is_global}).output;
    return blocks[1](h, {.global_attention = is_global});
  }
  std::vector<TransformerBlock<LongformerSelfAttentionImpl>> blocks;
};
// [/model]

/// How much token `to`'s output changes with token `from`.
double effect(Reader& reader, const torch::Tensor& x, const torch::Tensor& is_global, int64_t from,
              int64_t to) {
  const auto input = x.detach().requires_grad_();
  const auto y = reader.forward(input, is_global).output[0][to].sum();
  return torch::autograd::grad({y}, {input})[0][0][from].norm().item<double>();
}

}  // namespace

int main() {
  torch::manual_seed(0);
  Reader reader;

  // [read]
  const int64_t n = 8192, question = 16;
  auto x = torch::randn({1, n, 64});             // the question's tokens, then the document's
  auto is_global = torch::arange(n) < question;  // [L] or [B, L]
  auto [y, weights] = reader.forward(x, is_global);
  // [/read]

  // [reach]
  const double far = effect(reader, x, is_global, 500, 8000);
  const double without = effect(reader, x, torch::zeros({n}), 500, 8000);
  std::cout << "token 500 on token 8000: " << far << ", without global tokens " << without << '\n';
  // [/reach]

  // [rows]
  auto rows = weights.rows(0, question);                  // [1, 4, 16, 8192], not 8192^2
  auto [strength, token] = rows.mean({0, 1, 2}).topk(5);  // where the question looks
  std::cout << "the question looks at " << token << "\nwith " << strength << '\n';
  // [/rows]

  // [memory]
  std::vector<int64_t> peaks;
  for (const int64_t length : {2048, 4096, 8192}) {
    auto part = x.slice(1, 0, length).detach().requires_grad_();
    attzoo::testing::PeakMemory memory;
    reader.forward(part, is_global.slice(0, 0, length)).output.sum().backward();
    peaks.push_back(memory.peak());
    std::cout << length << " tokens, forward and backward: " << peaks.back() / 1000000 << " MB\n";
  }
  // [/memory]

  // [pieces]
  torch::NoGradGuard no_grad;
  Reader stream(/*causal=*/true);
  auto a = stream.blocks[0]->make_cache(1), b = stream.blocks[1]->make_cache(1);  // no capacity
  std::vector<torch::Tensor> pieces;
  for (int64_t i = 0; i < n; i += 1024) {
    auto global = is_global.slice(0, i, i + 1024);
    auto h = stream.blocks[0](x.slice(1, i, i + 1024), {.global_attention = global, .cache = a});
    pieces.push_back(stream.blocks[1](h.output, {.global_attention = global, .cache = b}).output);
  }
  std::cout << "state: " << a.bytes() + b.bytes() << " bytes\n";
  // [/pieces]
  const auto whole = stream.forward(x, is_global).output;
  const double error = (torch::cat(pieces, 1) - whole).abs().max().item<double>();
  std::cout << "in pieces and at once differ by " << error << '\n';
  return far > 0 && without == 0 && peaks[2] < 5 * peaks[0] && error < 1e-4 ? 0 : 1;
}
