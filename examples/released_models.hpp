#pragma once
// The attention of released models, and their blocks where those are TransformerBlocks
// (docs/models.md). Numbers that differ between sizes of a family come from its config.json.

#include <attzoo/attzoo.hpp>

#include <cmath>

namespace released {

using namespace attzoo;

/// From a config.json; what a family does not have stays 0.
struct Sizes {
  int64_t width = 0;        // hidden_size, n_embd, d_model
  int64_t heads = 0;        // num_attention_heads, n_head
  int64_t kv_heads = 0;     // num_key_value_heads
  int64_t head_dim = 0;     // head_dim
  int64_t hidden = 0;       // intermediate_size, n_inner, ffn_dim
  int64_t window = 0;       // sliding_window, attention_window
  int64_t old_context = 0;  // original_max_position_embeddings
  int64_t rotary_dim = 0;   // rotary_dim, or partial_rotary_factor * head_dim
  double scalar = 0;        // query_pre_attn_scalar
};

// [gated]
/// The MLP and the norms of Llama and all who took them over.
inline TransformerBlockOptions gated_block(const Sizes& n, double eps) {
  return {.mlp_hidden = n.hidden,
          .norm = NormKind::kRMSNorm,
          .norm_eps = eps,
          .activation = Activation::kSilu,
          .mlp_gated = true,
          .mlp_bias = false};
}
// [/gated]

inline auto llama2(const Sizes& n) {
  // [llama2]
  MultiHeadSelfAttention attn({.d_model = n.width,
                               .num_heads = n.heads,
                               .rope = RopeOptions{.pairs = RopePairs::kHalves},
                               .causal = true});
  return transformer_block(attn, gated_block(n, 1e-5));
  // [/llama2]
}

inline auto llama3(const Sizes& n) {
  // [llama3]
  const Llama3RopeScaling scaling{.factor = 8, .original_max_position = n.old_context};
  GroupedSelfAttention attn(
      {.d_model = n.width,
       .num_query_heads = n.heads,
       .num_kv_heads = n.kv_heads,
       .rope = RopeOptions{.base = 5e5, .pairs = RopePairs::kHalves, .scaling = scaling},
       .causal = true});
  return transformer_block(attn, gated_block(n, 1e-5));
  // [/llama3]
}

inline auto mistral(const Sizes& n) {
  // [mistral]
  GroupedSelfAttention attn({.d_model = n.width,
                             .num_query_heads = n.heads,
                             .num_kv_heads = n.kv_heads,
                             .rope = RopeOptions{.pairs = RopePairs::kHalves},
                             .causal = true,
                             .sliding_window = n.window});
  return transformer_block(attn, gated_block(n, 1e-5));
  // [/mistral]
}

inline auto mixtral(const Sizes& n) {
  // [mixtral]
  return GroupedSelfAttention({.d_model = n.width,
                               .num_query_heads = n.heads,
                               .num_kv_heads = n.kv_heads,
                               .rope = RopeOptions{.base = 1e6, .pairs = RopePairs::kHalves},
                               .causal = true});
  // [/mixtral]
}

inline auto qwen2(const Sizes& n) {
  // [qwen2]
  GroupedSelfAttention attn({.d_model = n.width,
                             .num_query_heads = n.heads,
                             .num_kv_heads = n.kv_heads,
                             .bias = true,
                             .rope = RopeOptions{.base = 1e6, .pairs = RopePairs::kHalves},
                             .causal = true,
                             .out_bias = false});
  return transformer_block(attn, gated_block(n, 1e-6));
  // [/qwen2]
}

inline auto qwen3(const Sizes& n) {
  // [qwen3]
  GroupedSelfAttention attn({.d_model = n.width,
                             .num_query_heads = n.heads,
                             .num_kv_heads = n.kv_heads,
                             .rope = RopeOptions{.base = 1e6, .pairs = RopePairs::kHalves},
                             .causal = true,
                             .head_dim = n.head_dim,
                             .qk_norm = true});
  return transformer_block(attn, gated_block(n, 1e-6));
  // [/qwen3]
}

// [gemma]
/// The MLP and the norms of Gemma 2 and 3.
inline TransformerBlockOptions gemma_block(const Sizes& n) {
  return {.mlp_hidden = n.hidden,
          .norm = NormKind::kRMSNorm,
          .norm_eps = 1e-6,
          .norm_placement = NormPlacement::kSandwich,
          .activation = Activation::kGeluTanh,
          .mlp_gated = true,
          .mlp_bias = false};
}
// [/gemma]

inline auto gemma2(const Sizes& n, bool local) {
  // [gemma2]
  GroupedSelfAttentionOptions o{
      .d_model = n.width,
      .num_query_heads = n.heads,
      .num_kv_heads = n.kv_heads,
      .temperature = std::sqrt(n.scalar / static_cast<double>(n.head_dim)),
      .rope = RopeOptions{.pairs = RopePairs::kHalves},
      .causal = true,
      .head_dim = n.head_dim,
      .softcap = 50.0};
  if (local) o.sliding_window = n.window;  // every other layer, from the first one on
  return transformer_block(GroupedSelfAttention(o), gemma_block(n));
  // [/gemma2]
}

inline auto gemma3(const Sizes& n, bool local) {
  // [gemma3]
  const RopeOptions near{.pairs = RopePairs::kHalves};
  const RopeOptions far{
      .base = 1e6, .pairs = RopePairs::kHalves, .scaling = LinearRopeScaling{.factor = 8}};
  GroupedSelfAttentionOptions o{
      .d_model = n.width,
      .num_query_heads = n.heads,
      .num_kv_heads = n.kv_heads,
      .temperature = std::sqrt(n.scalar / static_cast<double>(n.head_dim)),
      .rope = local ? near : far,
      .causal = true,
      .head_dim = n.head_dim,
      .qk_norm = true};
  if (local) o.sliding_window = n.window;  // five of six layers
  return transformer_block(GroupedSelfAttention(o), gemma_block(n));
  // [/gemma3]
}

inline auto qwen3_next(const Sizes& n) {
  // [qwen3_next]
  const RopeOptions rope{.base = 1e7, .pairs = RopePairs::kHalves, .dimensions = n.rotary_dim};
  return GroupedSelfAttention({.d_model = n.width,
                               .num_query_heads = n.heads,
                               .num_kv_heads = n.kv_heads,
                               .rope = rope,
                               .causal = true,
                               .head_dim = n.head_dim,
                               .qk_norm = true,
                               .output_gate = true});
  // [/qwen3_next]
}

inline auto phi2(const Sizes& n) {
  // [phi2]
  MultiHeadSelfAttention attn(
      {.d_model = n.width,
       .num_heads = n.heads,
       .bias = true,
       .rope = RopeOptions{.pairs = RopePairs::kHalves, .dimensions = n.rotary_dim},
       .causal = true});
  return transformer_block(attn, {.mlp_hidden = n.hidden,
                                  .norm_placement = NormPlacement::kParallel,
                                  .activation = Activation::kGeluTanh});
  // [/phi2]
}

inline auto phi3(const Sizes& n) {
  // [phi3]
  MultiHeadSelfAttention attn({.d_model = n.width,
                               .num_heads = n.heads,
                               .rope = RopeOptions{.pairs = RopePairs::kHalves},
                               .causal = true,
                               .sliding_window = n.window});
  return transformer_block(attn, gated_block(n, 1e-5));
  // [/phi3]
}

inline auto gpt_oss(const Sizes& n, bool local) {
  // [gpt_oss]
  const YarnRopeScaling yarn{
      .factor = 32, .original_max_position = n.old_context, .truncate = false};
  GroupedSelfAttentionOptions o{
      .d_model = n.width,
      .num_query_heads = n.heads,
      .num_kv_heads = n.kv_heads,
      .bias = true,
      .rope = RopeOptions{.base = 150000, .pairs = RopePairs::kHalves, .scaling = yarn},
      .causal = true,
      .head_dim = n.head_dim,
      .sinks = true};
  if (local) o.sliding_window = n.window;  // every other layer, from the first one on
  return GroupedSelfAttention(o);
  // [/gpt_oss]
}

inline auto command_r(const Sizes& n) {
  // [command_r]
  return GroupedSelfAttention({.d_model = n.width,
                               .num_query_heads = n.heads,
                               .num_kv_heads = n.kv_heads,
                               .rope = RopeOptions{.base = 8e6},  // pairs (2i, 2i + 1)
                               .causal = true});
  // [/command_r]
}

inline auto starcoder2(const Sizes& n) {
  // [starcoder2]
  GroupedSelfAttention attn({.d_model = n.width,
                             .num_query_heads = n.heads,
                             .num_kv_heads = n.kv_heads,
                             .bias = true,
                             .rope = RopeOptions{.base = 1e6, .pairs = RopePairs::kHalves},
                             .causal = true,
                             .sliding_window = n.window});
  return transformer_block(attn, {.mlp_hidden = n.hidden, .activation = Activation::kGeluTanh});
  // [/starcoder2]
}

inline auto gpt2(const Sizes& n) {
  // [gpt2]
  MultiHeadSelfAttention attn(
      {.d_model = n.width, .num_heads = n.heads, .bias = true, .causal = true});
  return transformer_block(attn, {.mlp_hidden = n.hidden, .activation = Activation::kGeluTanh});
  // [/gpt2]
}

inline auto gptj(const Sizes& n) {
  // [gptj]
  MultiHeadSelfAttention attn(
      {.d_model = n.width,
       .num_heads = n.heads,
       .rope = RopeOptions{.dimensions = n.rotary_dim},  // pairs (2i, 2i + 1)
       .causal = true});
  return transformer_block(attn, {.mlp_hidden = n.hidden,
                                  .norm_placement = NormPlacement::kParallel,
                                  .activation = Activation::kGeluTanh});
  // [/gptj]
}

inline auto gpt_neox(const Sizes& n) {
  // [gpt_neox]
  return MultiHeadSelfAttention(
      {.d_model = n.width,
       .num_heads = n.heads,
       .bias = true,
       .rope = RopeOptions{.pairs = RopePairs::kHalves, .dimensions = n.rotary_dim},
       .causal = true});
  // [/gpt_neox]
}

inline auto falcon(const Sizes& n) {
  // [falcon]
  GroupedSelfAttention attn({.d_model = n.width,
                             .num_query_heads = n.heads,
                             .num_kv_heads = 1,
                             .rope = RopeOptions{.pairs = RopePairs::kHalves},
                             .causal = true});
  return transformer_block(
      attn,
      {.mlp_hidden = n.hidden, .norm_placement = NormPlacement::kParallel, .mlp_bias = false});
  // [/falcon]
}

inline auto mpt(const Sizes& n) {
  // [mpt]
  return ALiBiSelfAttention({.d_model = n.width, .num_heads = n.heads, .causal = true});
  // [/mpt]
}

inline auto bloom(const Sizes& n) {
  // [bloom]
  ALiBiSelfAttention attn({.d_model = n.width, .num_heads = n.heads, .bias = true, .causal = true});
  return transformer_block(attn, {.activation = Activation::kGeluTanh});
  // [/bloom]
}

inline auto bert(const Sizes& n) {
  // [bert]
  MultiHeadSelfAttention attn({.d_model = n.width, .num_heads = n.heads, .bias = true});
  return transformer_block(
      attn, {.mlp_hidden = n.hidden, .norm_eps = 1e-12, .norm_placement = NormPlacement::kPost});
  // [/bert]
}

inline auto longformer(const Sizes& n) {
  // [longformer]
  LongformerSelfAttention attn({.d_model = n.width,
                                .num_heads = n.heads,
                                .window_size = n.window,
                                .global_projections = true,
                                .bias = true});
  return transformer_block(attn, {.mlp_hidden = n.hidden, .norm_placement = NormPlacement::kPost});
  // [/longformer]
}

inline auto vit(const Sizes& n) {
  // [vit]
  MultiHeadSelfAttention attn({.d_model = n.width, .num_heads = n.heads, .bias = true});
  return transformer_block(attn, {.mlp_hidden = n.hidden, .norm_eps = 1e-12});
  // [/vit]
}

inline auto clip(const Sizes& n, bool text) {
  // [clip]
  return MultiHeadSelfAttention({.d_model = n.width,
                                 .num_heads = n.heads,
                                 .bias = true,
                                 .causal = text});  // images see all of themselves
  // [/clip]
}

}  // namespace released
