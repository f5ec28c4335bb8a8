#pragma once
/// \file
/// The list of all mechanisms, and how each is built at a given size. The umbrella header (through
/// cmake/WriteUmbrella.cmake), the demo, the benchmarks, the reference cases and the memory test
/// all go through it, so a further mechanism is one entry here.

#include <attzoo/attzoo.hpp>

#include <algorithm>
#include <optional>

namespace attzoo::testing {

/// Whether the time of a mechanism grows with n^2, however small the constant, or with less.
enum class Cost { kQuadratic, kLess };

/// The size at which every mechanism can be built. Nothing is dropped.
struct Size {
  int64_t width = 64;       ///< d_model
  int64_t heads = 2;        ///< divides width
  int64_t span = 64;        ///< tokens in a window, in a block and in two buckets; even
  int64_t longest = 16384;  ///< tokens of what has a parameter for each
  int64_t dilation = 4;     ///< distance between the keys of a dilated query
  int64_t hashes = 1;       ///< rounds of LSH
  bool overlap = false;     ///< of blocks
  bool causal = false;
  std::optional<int64_t> buckets = std::nullopt;  ///< of LSH; default by the sequence's length
};

inline MultiHeadSelfAttention make_multi_head(const Size& s) {
  return MultiHeadSelfAttention(
      {.d_model = s.width, .num_heads = s.heads, .dropout = 0, .causal = s.causal});
}

inline LocalSelfAttention make_local(const Size& s) {
  return LocalSelfAttention({.d_model = s.width,
                             .num_heads = s.heads,
                             .window_size = s.span,
                             .dropout = 0,
                             .causal = s.causal});
}

/// Calls `visit(name, cost, make)` for each mechanism; `make(Size)` gives a module of its type. A
/// name is that of the header: include/attzoo/<name>.hpp.
template <class Visit>
void for_each_mechanism(Visit&& visit) {
  visit("alibi", Cost::kQuadratic, [](const Size& s) {
    return ALiBiSelfAttention(
        {.d_model = s.width, .num_heads = s.heads, .dropout = 0, .causal = s.causal});
  });
  visit("big_bird", Cost::kLess, [](const Size& s) {
    return BigBirdSelfAttention({.d_model = s.width,
                                 .num_heads = s.heads,
                                 .block_size = s.span,
                                 .dropout = 0,
                                 .causal = s.causal});
  });
  visit("block", Cost::kLess, [](const Size& s) {
    return BlockSelfAttention({.d_model = s.width,
                               .num_heads = s.heads,
                               .block_size = s.span,
                               .overlap = s.overlap,
                               .dropout = 0,
                               .causal = s.causal});
  });
  visit("combined", Cost::kQuadratic,
        [](const Size& s) { return combined(make_local(s), make_multi_head(s)); });
  visit("delta_net", Cost::kLess,
        [](const Size& s) { return DeltaNet({.d_model = s.width, .num_heads = s.heads}); });
  visit("differential", Cost::kQuadratic, [](const Size& s) {
    return DifferentialSelfAttention({.d_model = s.width,
                                      .num_query_heads = 2 * s.heads,
                                      .num_kv_heads = 2 * s.heads,
                                      .dropout = 0,
                                      .causal = s.causal,
                                      .head_dim = std::max<int64_t>(2, s.width / (2 * s.heads))});
  });
  visit("dilated", Cost::kQuadratic, [](const Size& s) {
    return DilatedSelfAttention({.d_model = s.width,
                                 .num_heads = s.heads,
                                 .dilation_rate = s.dilation,
                                 .dropout = 0,
                                 .causal = s.causal});
  });
  visit("forgetting", Cost::kQuadratic, [](const Size& s) {
    return ForgettingSelfAttention(
        {.d_model = s.width, .num_heads = s.heads, .dropout = 0, .causal = s.causal});
  });
  visit("gated", Cost::kQuadratic, [](const Size& s) { return gated(make_multi_head(s)); });
  visit("gated_delta_net", Cost::kLess,
        [](const Size& s) { return GatedDeltaNet({.d_model = s.width, .num_heads = s.heads}); });
  visit("gated_linear", Cost::kLess, [](const Size& s) {
    return GatedLinearAttention({.d_model = s.width, .num_heads = s.heads});
  });
  visit("grouped", Cost::kQuadratic, [](const Size& s) {
    return GroupedSelfAttention({.d_model = s.width,
                                 .num_query_heads = s.heads,
                                 .num_kv_heads = s.heads % 2 == 0 ? s.heads / 2 : 1,
                                 .dropout = 0,
                                 .causal = s.causal});
  });
  visit("indexed", Cost::kQuadratic, [](const Size& s) {
    return IndexedSelfAttention({.d_model = s.width,
                                 .num_heads = s.heads,
                                 .top_k = s.span,
                                 .index_heads = 2,
                                 .index_dim = 16,
                                 .dropout = 0,
                                 .causal = s.causal});
  });
  visit("kimi_delta", Cost::kLess, [](const Size& s) {
    return KimiDeltaAttention({.d_model = s.width, .num_heads = s.heads});
  });
  visit("lightning", Cost::kLess, [](const Size& s) {
    return LightningAttention({.d_model = s.width, .num_heads = s.heads});
  });
  visit("linear", Cost::kLess, [](const Size& s) {
    return LinearSelfAttention(
        {.d_model = s.width, .num_heads = s.heads, .dropout = 0, .causal = s.causal});
  });
  visit("linformer", Cost::kLess, [](const Size& s) {
    return LinformerSelfAttention({.d_model = s.width,
                                   .num_heads = s.heads,
                                   .seq_len = s.longest,
                                   .num_projected = s.span,
                                   .dropout = 0});
  });
  visit("local", Cost::kLess, make_local);
  visit("longformer", Cost::kLess, [](const Size& s) {
    return LongformerSelfAttention({.d_model = s.width,
                                    .num_heads = s.heads,
                                    .window_size = s.span,
                                    .dropout = 0,
                                    .causal = s.causal});
  });
  visit("lsh", Cost::kLess, [](const Size& s) {
    return LSHSelfAttention({.d_model = s.width,
                             .num_heads = s.heads,
                             .bucket_size = s.span / 2,
                             .num_hashes = s.hashes,
                             .num_buckets = s.buckets,
                             .dropout = 0,
                             .causal = s.causal});
  });
  visit("mamba2", Cost::kLess, [](const Size& s) {
    return Mamba2({.d_model = s.width, .num_heads = s.heads, .state_size = s.width / s.heads});
  });
  visit("moba", Cost::kLess, [](const Size& s) {
    return MixtureOfBlocksSelfAttention(
        {.d_model = s.width, .num_heads = s.heads, .block_size = s.span, .dropout = 0});
  });
  visit("multi_head", Cost::kQuadratic, make_multi_head);
  visit("multi_head_latent", Cost::kQuadratic, [](const Size& s) {
    return MultiHeadLatentAttention(
        {.d_model = s.width, .num_heads = s.heads, .dropout = 0, .causal = s.causal});
  });
  visit("native_sparse", Cost::kQuadratic, [](const Size& s) {
    return NativeSparseSelfAttention({.d_model = s.width,
                                      .num_query_heads = s.heads,
                                      .num_kv_heads = s.heads % 2 == 0 ? s.heads / 2 : 1,
                                      .block_size = std::max<int64_t>(1, s.span / 8),
                                      .block_count = 8,
                                      .window_size = s.span,
                                      .dropout = 0});
  });
  visit("neighborhood", Cost::kLess, [](const Size& s) {
    return NeighborhoodSelfAttention({.d_model = s.width,
                                      .num_heads = s.heads,
                                      .kernel_size = {s.span + 1},
                                      .dropout = 0,
                                      .causal = s.causal});
  });
  visit("nystrom", Cost::kLess, [](const Size& s) {
    return NystromSelfAttention(
        {.d_model = s.width, .num_heads = s.heads, .num_landmarks = s.span, .dropout = 0});
  });
  visit("performer", Cost::kLess, [](const Size& s) {
    return PerformerSelfAttention(
        {.d_model = s.width, .num_heads = s.heads, .dropout = 0, .causal = s.causal});
  });
  visit("relative", Cost::kQuadratic, [](const Size& s) {
    return RelativeSelfAttention(
        {.d_model = s.width, .num_heads = s.heads, .dropout = 0, .causal = s.causal});
  });
  visit("retention", Cost::kLess, [](const Size& s) {
    return MultiScaleRetention({.d_model = s.width, .num_heads = s.heads});
  });
  visit("rwkv7", Cost::kLess,
        [](const Size& s) { return RWKV7({.d_model = s.width, .num_heads = s.heads}); });
  visit("stick_breaking", Cost::kQuadratic, [](const Size& s) {
    return StickBreakingSelfAttention(
        {.d_model = s.width, .num_heads = s.heads, .remainder = true, .dropout = 0});
  });
  visit("streaming", Cost::kLess, [](const Size& s) {
    return StreamingSelfAttention({.d_model = s.width,
                                   .num_heads = s.heads,
                                   .window_size = s.span,
                                   .dropout = 0,
                                   .causal = s.causal});
  });
  visit("vanilla", Cost::kQuadratic, [](const Size& s) {
    return VanillaSelfAttention({.d_model = s.width, .dropout = 0, .causal = s.causal});
  });
}

}  // namespace attzoo::testing
