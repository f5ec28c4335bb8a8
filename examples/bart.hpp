#pragma once
// BART (Lewis et al., "BART: Denoising Sequence-to-Sequence Pre-training", 2019, arXiv:1910.13461)
// of attzoo's modules, by which its released weights load (docs/encoder_decoder.md).

#include <torch/nn/modules/embedding.h>
#include <attzoo/attzoo.hpp>

/// From a checkpoint's config.json; the defaults are those of facebook/bart-base.
struct BartConfig {
  int64_t vocab_size = 50265, d_model = 768, heads = 12, ffn_dim = 3072, layers = 6;
  int64_t positions = 1024, pad = 1, start = 2, end = 2;
};

// [model]
/// The encoder or the decoder.
struct BartHalf : torch::nn::Module {
  BartHalf(const BartConfig& c, bool writes)
      : positions(c.positions, c.d_model), norm_embed(torch::nn::LayerNormOptions({c.d_model})) {
    const auto attention = [&c](bool causal) {
      return attzoo::MultiHeadSelfAttention(
          {.d_model = c.d_model, .num_heads = c.heads, .bias = true, .causal = causal});
    };
    const attzoo::TransformerBlockOptions o{.mlp_hidden = c.ffn_dim,
                                            .norm_placement = attzoo::NormPlacement::kPost};
    for (int64_t i = 0; i < c.layers; ++i) {
      if (writes) layers->push_back(decoder_block(attention(true), attention(false), o));
      if (!writes) layers->push_back(transformer_block(attention(false), o));
    }
    register_module("positions", positions);
    register_module("norm_embed", norm_embed);
  }
  /// x [B, L, d_model], the first token of which stands at `place`.
  torch::Tensor forward(const torch::Tensor& x, const attzoo::AttentionInputs& in, int64_t place) {
    const auto places = torch::arange(place, place + x.size(1), x.device());
    return layers(norm_embed(x + positions(places)), in).output;
  }
  torch::nn::Embedding positions;
  torch::nn::LayerNorm norm_embed;
  attzoo::Stack layers = register_module("layers", attzoo::Stack());
};

struct Bart : torch::nn::Module {
  explicit Bart(const BartConfig& c)
      : config(c),
        embed(register_module("embed", torch::nn::Embedding(c.vocab_size, c.d_model))),
        encoder(register_module("encoder", std::make_shared<BartHalf>(c, false))),
        decoder(register_module("decoder", std::make_shared<BartHalf>(c, true))) {}
  /// What a call of the decoder needs of the tokens [B, S] that are read.
  attzoo::AttentionInputs encode(const torch::Tensor& read) {
    const auto real = read != config.pad;
    const auto memory = encoder->forward(embed(read), {.key_padding_mask = real}, 0);
    return {.context = memory, .context_padding_mask = real};
  }
  /// The tokens [B, L] from `place` on -> logits [B, L, vocab_size], by the embedding again.
  torch::Tensor decode(const torch::Tensor& next, const attzoo::AttentionInputs& in,
                       int64_t place) {
    return torch::linear(decoder->forward(embed(next), in, place), embed->weight);
  }
  /// The likeliest tokens [B, L], L <= length, one after another, until all rows have an end.
  torch::Tensor write(const torch::Tensor& read, int64_t length) {
    auto written = torch::full({read.size(0), 1}, config.start, read.options());
    auto call = encode(read);
    call.cache = decoder->layers->make_cache(read.size(0), length);
    for (int64_t place = 0; place < length; ++place) {
      written = torch::cat({written, decode(written.slice(1, place), call, place).argmax(-1)}, 1);
      if ((written.slice(1, 1) == config.end).any(1).all().item<bool>()) break;
      call = {.cache = call.cache};  // which has kept the context
    }
    return written.slice(1, 1);
  }
  BartConfig config;
  torch::nn::Embedding embed;
  std::shared_ptr<BartHalf> encoder, decoder;
};
// [/model]
