// Every mechanism, and a block, in a few lines: the snippets of their pages, which docs/fill.py
// copies from here.

#include <attzoo/attzoo.hpp>
#include <iostream>

namespace {

torch::Tensor vanilla(const torch::Tensor& x) {
  // [vanilla]
  attzoo::VanillaSelfAttention attn({.d_model = 64, .causal = true});
  auto [y, w] = attn(x);  // x [B, L, 64] -> y [B, L, 64], w [B, L, L] on demand
  // [/vanilla]
  return y;
}

torch::Tensor multi_head(const torch::Tensor& x, const torch::Tensor& real_tokens) {
  // [multi_head]
  attzoo::MultiHeadSelfAttention attn({.d_model = 64, .num_heads = 8});
  auto y = attn(x, {.key_padding_mask = real_tokens}).output;  // bool [B, L], true = a real token
  // [/multi_head]
  return y;
}

torch::Tensor grouped(const torch::Tensor& x) {
  // [grouped]
  attzoo::GroupedSelfAttention attn(
      {.d_model = 64, .num_query_heads = 8, .num_kv_heads = 2, .rope = true, .causal = true});
  attn->eval();                                                  // no dropout
  auto cache = attn->make_cache(/*batch=*/2, /*capacity=*/256);  // 2 heads of keys and values
  auto prompt = attn(x.slice(1, 0, 255), {.cache = cache}).output;
  auto next = attn(x.slice(1, 255), {.cache = cache}).output;
  // [/grouped]
  return torch::cat({prompt, next}, 1);
}

torch::Tensor local(const torch::Tensor& x) {
  // [local]
  attzoo::LocalSelfAttention attn(
      {.d_model = 64, .num_heads = 8, .window_size = 32, .causal = true});
  auto y = attn(x).output;  // token i sees the tokens i - 16 ... i
  // [/local]
  return y;
}

torch::Tensor dilated(const torch::Tensor& x) {
  // [dilated]
  attzoo::DilatedSelfAttention coarse({.d_model = 64, .num_heads = 8, .dilation_rate = 4});
  attzoo::DilatedSelfAttention near(
      {.d_model = 64, .num_heads = 8, .dilation_rate = 1, .window_size = 8});
  auto y = attzoo::combined(coarse, near)(x).output;  // far tokens sparsely, near ones densely
  // [/dilated]
  return y;
}

torch::Tensor block(const torch::Tensor& x) {
  // [block]
  attzoo::BlockSelfAttention attn(
      {.d_model = 64, .num_heads = 8, .block_size = 32, .overlap = true});
  auto y = attn(x).output;  // blocks start every 16 tokens and are blended
  // [/block]
  return y;
}

torch::Tensor alibi(const torch::Tensor& x) {
  // [alibi]
  attzoo::ALiBiSelfAttention attn({.d_model = 64, .num_heads = 8, .causal = true});
  auto y = attn(x).output;  // x may be longer than in training
  // [/alibi]
  return y;
}

torch::Tensor longformer(const torch::Tensor& x) {
  // [longformer]
  attzoo::LongformerSelfAttention attn({.d_model = 64, .num_heads = 8, .window_size = 32});
  auto is_global = torch::zeros({x.size(1)});  // [L] or [B, L], nonzero = global
  is_global[0] = 1;
  auto y = attn(x, {.global_attention = is_global}).output;
  // [/longformer]
  return y;
}

torch::Tensor lsh(const torch::Tensor& x) {
  // [lsh]
  attzoo::LSHSelfAttention attn(
      {.d_model = 64, .num_heads = 8, .bucket_size = 16, .num_hashes = 4});
  auto y = attn(x).output;  // 256 / 16 buckets, hashed four times
  // [/lsh]
  return y;
}

// [linear]
struct Squares {  // a feature map of one's own: values >= 0, the shape of its argument
  torch::Tensor operator()(const torch::Tensor& z) const { return z * z; }
};

torch::Tensor linear(const torch::Tensor& x) {
  attzoo::LinearSelfAttention attn({.d_model = 64, .num_heads = 8, .causal = true});
  attzoo::LinearSelfAttentionWith<Squares> squares({.d_model = 64});
  return squares(attn(x).output).output;
}
// [/linear]

torch::Tensor delta_net(const torch::Tensor& x) {
  // [delta_net]
  attzoo::DeltaNet attn({.d_model = 64, .num_heads = 4});
  auto y = attn(x).output;  // a recurrence is causal by itself
  // [/delta_net]
  return y;
}

torch::Tensor gated_delta_net(const torch::Tensor& x) {
  // [gated_delta_net]
  attzoo::GatedDeltaNet attn({.d_model = 64, .num_heads = 2, .num_value_heads = 4});
  auto cache = attn->make_cache(/*batch=*/2);  // a state for each head, however long the text
  auto prompt = attn(x.slice(1, 0, 255), {.cache = cache}).output;
  auto next = attn(x.slice(1, 255), {.cache = cache}).output;
  // [/gated_delta_net]
  return torch::cat({prompt, next}, 1);
}

torch::Tensor gated_linear(const torch::Tensor& x) {
  // [gated_linear]
  attzoo::GatedLinearAttention attn({.d_model = 64, .num_heads = 4});
  auto y = attn(x).output;
  // [/gated_linear]
  return y;
}

torch::Tensor kimi_delta(const torch::Tensor& x) {
  // [kimi_delta]
  attzoo::Stack layers;
  for (int64_t i = 0; i < 3; ++i) {
    attzoo::KimiDeltaAttention kda({.d_model = 64, .num_heads = 4});
    layers->push_back(attzoo::transformer_block(kda));
  }
  attzoo::MultiHeadSelfAttention dense({.d_model = 64, .num_heads = 4, .causal = true});
  layers->push_back(attzoo::transformer_block(dense));  // three of KDA to one with a softmax
  auto y = layers(x).output;
  // [/kimi_delta]
  return y;
}

torch::Tensor lightning(const torch::Tensor& x) {
  // [lightning]
  attzoo::LightningAttention first({.d_model = 64, .num_heads = 4, .layer = 0, .num_layers = 2});
  attzoo::LightningAttention last({.d_model = 64, .num_heads = 4, .layer = 1, .num_layers = 2});
  auto y = last(first(x).output).output;  // the last layer forgets more slowly
  // [/lightning]
  return y;
}

torch::Tensor mamba2(const torch::Tensor& x) {
  // [mamba2]
  attzoo::Mamba2 mixer({.d_model = 64, .num_heads = 8, .state_size = 32});
  auto y = mixer(x).output;
  // [/mamba2]
  return y;
}

torch::Tensor retention(const torch::Tensor& x) {
  // [retention]
  attzoo::MultiScaleRetention attn({.d_model = 64, .num_heads = 4});
  auto y = attn(x).output;
  // [/retention]
  return y;
}

torch::Tensor rwkv7(const torch::Tensor& x, const torch::Tensor& real_tokens) {
  // [rwkv7]
  attzoo::RWKV7 mixer({.d_model = 64, .num_heads = 4});
  auto y = mixer(x, {.key_padding_mask = real_tokens}).output;  // padding leaves the state alone
  // [/rwkv7]
  return y;
}

torch::Tensor multi_head_latent(const torch::Tensor& x) {
  // [multi_head_latent]
  attzoo::MultiHeadLatentAttention attn(
      {.d_model = 64, .num_heads = 4, .kv_rank = 32, .q_rank = 48, .causal = true});
  attn->eval();
  auto cache = attn->make_cache(/*batch=*/2, /*capacity=*/256);     // 32 + 8 numbers a token
  auto prompt = attn(x.slice(1, 0, 255), {.cache = cache}).output;  // the full form
  auto next = attn(x.slice(1, 255), {.cache = cache}).output;       // the absorbed one
  // [/multi_head_latent]
  return torch::cat({prompt, next}, 1);
}

torch::Tensor relative(const torch::Tensor& x) {
  // [relative]
  attzoo::RelativeSelfAttention attn({.d_model = 64, .num_heads = 8, .causal = true});
  attzoo::RelativeSelfAttention next(
      {.d_model = 64, .num_heads = 8, .has_relative_bias = false, .causal = true});
  auto y = next(attn(x).output, {.score = attn->bias()}).output;  // layers share one table
  // [/relative]
  return y;
}

torch::Tensor forgetting(const torch::Tensor& x) {
  // [forgetting]
  attzoo::ForgettingSelfAttention attn({.d_model = 64, .num_heads = 8, .causal = true});
  auto y = attn(x).output;
  // [/forgetting]
  return y;
}

torch::Tensor differential(const torch::Tensor& x) {
  // [differential]
  attzoo::DifferentialSelfAttention attn(
      {.d_model = 64, .num_query_heads = 8, .num_kv_heads = 8, .layer = 3, .causal = true});
  auto y = attn(x).output;  // four pairs of heads
  // [/differential]
  return y;
}

torch::Tensor streaming(const torch::Tensor& x) {
  // [streaming]
  attzoo::StreamingSelfAttention attn({.d_model = 64,
                                       .num_heads = 8,
                                       .num_sinks = 4,
                                       .window_size = 28,
                                       .rope = true,
                                       .causal = true});
  auto y = attn(x).output;
  auto cache = attn->make_cache(/*batch=*/2);  // without end
  for (int64_t i = 0; i < x.size(1); ++i) attn(x.slice(1, i, i + 1), {.cache = cache});
  // [/streaming]
  return y;
}

torch::Tensor neighborhood(const torch::Tensor& image) {
  // [neighborhood]
  attzoo::NeighborhoodSelfAttention attn(
      {.d_model = 64, .num_heads = 8, .kernel_size = {7}, .grid = {16, 16}});
  auto y = attn(image.flatten(1, 2)).output.view_as(image);  // image [B, 16, 16, 64]
  // [/neighborhood]
  return y.flatten(1, 2);
}

torch::Tensor stick_breaking(const torch::Tensor& x) {
  // [stick_breaking]
  attzoo::StickBreakingSelfAttention attn({.d_model = 64, .num_heads = 8, .remainder = true});
  const auto r = attn(x);
  auto y = r.output, left = r.lse.exp();  // [B, L, 64]; [B, H, L], what no token before took
  // [/stick_breaking]
  return left.max().item<float>() <= 1 ? y : torch::Tensor();
}

torch::Tensor performer(const torch::Tensor& x) {
  // [performer]
  attzoo::PerformerSelfAttention attn(
      {.d_model = 64, .num_heads = 4, .num_features = 64, .causal = true});
  auto y = attn(x).output;
  attn->redraw_features(/*seed=*/1);           // other random features, say every 1000 steps
  auto cache = attn->make_cache(/*batch=*/2);  // sums, however long the text
  auto next = attn(x.slice(1, 0, 1), {.cache = cache}).output;
  // [/performer]
  return torch::cat({next, y.slice(1, 1)}, 1);
}

torch::Tensor linformer(const torch::Tensor& x) {
  // [linformer]
  attzoo::LinformerSelfAttention attn(
      {.d_model = 64, .num_heads = 8, .seq_len = 512, .num_projected = 64});
  auto y = attn(x).output;  // at most 512 tokens, each of which attends to 64 sums over them
  // [/linformer]
  return y;
}

torch::Tensor nystrom(const torch::Tensor& x) {
  // [nystrom]
  attzoo::NystromSelfAttention attn(
      {.d_model = 64, .num_heads = 8, .num_landmarks = 32, .conv_kernel_size = 33});
  auto y = attn(x).output;  // landmarks are means of 256 / 32 tokens
  // [/nystrom]
  return y;
}

torch::Tensor indexed(const torch::Tensor& x) {
  // [indexed]
  attzoo::IndexedSelfAttention attn({.d_model = 64, .num_heads = 8, .top_k = 32, .causal = true});
  auto [result, loss] = attn->forward_with_loss(x);  // loss [B, L] teaches the indexer:
  auto y = result.output;                            // (task(y) + loss.mean()).backward()
  // [/indexed]
  return y;
}

torch::Tensor native_sparse(const torch::Tensor& x) {
  // [native_sparse]
  attzoo::NativeSparseSelfAttention attn({.d_model = 64,
                                          .num_query_heads = 8,
                                          .num_kv_heads = 2,
                                          .block_size = 8,
                                          .block_count = 6,
                                          .window_size = 32});
  auto y = attn(x).output;  // causal by itself
  // [/native_sparse]
  return y;
}

torch::Tensor big_bird(const torch::Tensor& x) {
  // [big_bird]
  attzoo::BigBirdSelfAttention attn(
      {.d_model = 64, .num_heads = 8, .block_size = 16, .num_random_blocks = 2});
  auto y = attn(x).output;  // each block: its neighbours, the first, the last, and two others
  // [/big_bird]
  return y;
}

torch::Tensor moba(const torch::Tensor& x) {
  // [moba]
  attzoo::MixtureOfBlocksSelfAttention attn(
      {.d_model = 64, .num_heads = 8, .block_size = 16, .top_k = 3, .rope = true});
  auto y = attn(x).output;  // each query: its own block, and two earlier ones that it chooses
  // [/moba]
  return y;
}

torch::Tensor gated(const torch::Tensor& x) {
  // [gated]
  auto attn = attzoo::gated(attzoo::MultiHeadSelfAttention(64, 4), {.gate_hidden = 16});
  auto twice = attzoo::gated(attn);  // gates again: twice->attn is attn
  auto y = twice(x).output;
  // [/gated]
  return y;
}

torch::Tensor combined(const torch::Tensor& x) {
  // [combined]
  auto mix = attzoo::combined(attzoo::LocalSelfAttention({.d_model = 64, .window_size = 32}),
                              attzoo::MultiHeadSelfAttention(64, 8));
  auto y = mix(x, {.causal = true}).output;  // both are causal
  // [/combined]
  return y;
}

torch::Tensor blocks(const torch::Tensor& x) {
  // [transformer_block]
  attzoo::GroupedSelfAttention attn(
      {.d_model = 64, .num_query_heads = 8, .num_kv_heads = 2, .rope = true, .causal = true});
  auto block = attzoo::transformer_block(attn, {.mlp_hidden = 172,
                                                .norm = attzoo::NormKind::kRMSNorm,
                                                .activation = attzoo::Activation::kSilu,
                                                .mlp_gated = true,
                                                .mlp_bias = false});  // Llama's
  auto y = block(x).output;
  // [/transformer_block]
  return y;
}

torch::Tensor stack(const torch::Tensor& x) {
  // [stack]
  attzoo::LocalSelfAttention local({.d_model = 64, .window_size = 32, .causal = true});
  attzoo::MultiHeadSelfAttention dense({.d_model = 64, .num_heads = 8, .causal = true});
  attzoo::Stack layers(attzoo::transformer_block(local), attzoo::transformer_block(dense));
  layers->push_back(attzoo::gated(attzoo::LinearSelfAttention({.d_model = 64, .causal = true})));
  auto y = layers(x).output;
  auto cache = layers->make_cache(/*batch=*/1, /*capacity=*/1024);
  // [/stack]
  return cache.length() == 0 ? y : torch::Tensor();
}

}  // namespace

int main() {
  torch::NoGradGuard no_grad;
  const auto x = torch::randn({2, 256, 64});
  const auto real_tokens = attzoo::create_padding_mask(std::vector<int64_t>{256, 100});
  const torch::Tensor outputs[] = {vanilla(x),
                                   multi_head(x, real_tokens),
                                   grouped(x),
                                   local(x),
                                   dilated(x),
                                   block(x),
                                   alibi(x),
                                   longformer(x),
                                   lsh(x),
                                   linear(x),
                                   gated(x),
                                   combined(x),
                                   delta_net(x),
                                   gated_delta_net(x),
                                   gated_linear(x),
                                   kimi_delta(x),
                                   lightning(x),
                                   mamba2(x),
                                   retention(x),
                                   rwkv7(x, real_tokens),
                                   blocks(x),
                                   stack(x),
                                   multi_head_latent(x),
                                   relative(x),
                                   forgetting(x),
                                   differential(x),
                                   streaming(x),
                                   stick_breaking(x),
                                   neighborhood(x.unflatten(1, {16, 16})),
                                   performer(x),
                                   linformer(x),
                                   nystrom(x),
                                   indexed(x),
                                   native_sparse(x),
                                   big_bird(x),
                                   moba(x)};
  bool right = true;
  for (const auto& y : outputs) {
    std::cout << y.sizes() << '\n';
    right = right && y.sizes() == x.sizes() && y.isfinite().all().item<bool>();
  }
  return right ? 0 : 1;
}
