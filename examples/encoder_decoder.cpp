// An encoder-decoder that learns to write strings of digits backwards (docs/encoder_decoder.md).

#include <torch/nn/functional/loss.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adamw.h>
#include <attzoo/attzoo.hpp>
#include <chrono>
#include <iostream>

using namespace attzoo;

namespace {

constexpr int64_t kWidth = 64, kHeads = 4, kLongest = 12;
constexpr int64_t kBegin = 10, kEnd = 11, kPad = 12, kTokens = 13;  // behind the ten digits

struct Reverser : torch::nn::Module {
  // [model]
  Reverser() {
    register_module("embed", embed);
    register_module("places", places);
    for (int i = 0; i < 2; ++i) {
      MultiHeadSelfAttention read(kWidth, kHeads), cross(kWidth, kHeads);
      MultiHeadSelfAttention written({.d_model = kWidth, .num_heads = kHeads, .causal = true});
      encoder->push_back(transformer_block(read, {.mlp_hidden = 128}));
      decoder->push_back(decoder_block(written, cross, {.mlp_hidden = 128}));
    }
    register_module("encoder", encoder);
    register_module("decoder", decoder);
    register_module("head", head);
  }
  // [/model]

  /// Tokens [B, L], the first of which is the one at `place`.
  torch::Tensor embedded(const torch::Tensor& tokens, int64_t place = 0) {
    return embed(tokens) + places(torch::arange(place, place + tokens.size(1)));
  }
  // [train]
  /// What is read [B, S] -> the context [B, S, kWidth].
  torch::Tensor encode(const torch::Tensor& read) {
    return encoder(embedded(read), {.key_padding_mask = read != kPad}).output;
  }
  /// What is read [B, S], and what was written so far [B, L] -> logits [B, L, kTokens].
  torch::Tensor forward(const torch::Tensor& read, const torch::Tensor& written) {
    return head(
        decoder(embedded(written), {.context = encode(read), .context_padding_mask = read != kPad})
            .output);
  }
  // [/train]
  // [greedy]
  /// Writes the likeliest token, then the next one, `length` of them.
  torch::Tensor write(const torch::Tensor& read, int64_t length) {
    auto written = torch::full({read.size(0), 1}, kBegin);
    // The first call gives the context, whose keys and values the cache keeps.
    AttentionInputs call{.cache = decoder->make_cache(read.size(0), length)};
    call.context = encode(read);
    call.context_padding_mask = read != kPad;
    for (int64_t place = 0; place < length; ++place) {
      const auto x = decoder(embedded(written.slice(1, place), place), call).output;
      call = {.cache = call.cache};
      written = torch::cat({written, head(x).argmax(-1)}, 1);
    }
    return written;
  }
  // [/greedy]

  torch::nn::Embedding embed{kTokens, kWidth}, places{kLongest + 2, kWidth};
  Stack encoder, decoder;
  torch::nn::Linear head{kWidth, kTokens};
};

struct Batch {
  torch::Tensor read, written;  // 3 7 1 PAD, BEGIN 1 7 3 END PAD
};

/// Strings of 1 to kLongest digits, and what is to be written.
Batch strings(int64_t count) {
  const auto length = torch::randint(1, kLongest + 1, {count, 1});
  const auto place = torch::arange(kLongest + 2);
  const auto read =
      torch::randint(10, {count, kLongest}).where(place.slice(0, 0, -2) < length, kPad);
  const auto digit = read.gather(1, (length - place).clamp(0, kLongest - 1));
  return {read, digit.where(place <= length, kPad)
                    .where(place != length + 1, kEnd)
                    .where(place != 0, kBegin)};
}

}  // namespace

int main() {
  torch::manual_seed(0);
  const auto start = std::chrono::steady_clock::now();
  Reverser model;
  torch::optim::AdamW optimizer(model.parameters(), torch::optim::AdamWOptions(2e-3));
  constexpr int kSteps = 1000;
  for (int step = 0; step < kSteps; ++step) {
    optimizer.param_groups()[0].options().set_lr(2e-3 * (kSteps - step) / kSteps);
    const auto [read, written] = strings(64);
    const auto logits = model.forward(read, written.slice(1, 0, -1));
    const auto loss = torch::nn::functional::cross_entropy(
        logits.flatten(0, 1), written.slice(1, 1).flatten(),
        torch::nn::functional::CrossEntropyFuncOptions().ignore_index(kPad));
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    if (step % 200 == 199)
      std::cout << "step " << step + 1 << ": loss " << loss.item<float>() << '\n';
  }

  model.eval();
  const torch::NoGradGuard no_grad;
  const auto [read, right] = strings(500);
  const auto written = model.write(read, kLongest + 1);
  const double exact = torch::logical_or(written == right, right == kPad)
                           .all(1)
                           .to(torch::kFloat64)
                           .mean()
                           .item<double>();
  std::cout << 100 * exact << " % of new strings are right\n";

  // Without caches it is the same.
  const auto whole = model.forward(read, written.slice(1, 0, -1)).argmax(-1);
  const bool same = torch::equal(whole, written.slice(1, 1));
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
  std::cout << "with caches " << (same ? "the same" : "OTHERS") << "; " << spent.count() << " s\n";
  return exact >= 0.99 && same ? 0 : 1;
}
