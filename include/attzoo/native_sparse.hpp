#pragma once
/// \file
/// Native sparse attention: blocks as wholes, the best blocks token by token, and a window.
///
/// Yuan et al., "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse
/// Attention", 2025, arXiv:2502.11089. Causal; with blocks of b tokens, G = num_query_heads /
/// num_kv_heads:
/// ```
/// y_i = g_cmp attend(q_i, phi(K), phi(V)) + g_slc attend(q_i, K, V of I_i) + g_win attend(q_i,
///       the latest window_size of K, V),         g = sigmoid(x_i W_b) for each head and branch
/// I_i = block 0, i's own, the one before, and the best by the sum over G heads of the weights of
///       the first branch, block_count in all, the same for the heads that share keys
/// phi(K)_c = W_2 gelu(W_1 [k_cb + e_0; ...; k_cb+b-1 + e_b-1])        or the mean of the block
/// ```
/// Selecting has no derivative; scores of blocks learn in the first branch.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L] of all branches,
/// times their gates, where a block's weight is spread over its tokens; no lse. Cost: O(L (L / b +
/// block_count b + window_size) d_model) time, O(L d_model) memory. Departs from the paper: as in
/// flash-linear-attention, branches share keys and values, and one size of blocks serves for
/// compression, without overlap, and for selection.

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/functional/native_sparse.hpp>
#include <attzoo/module/self_attention.hpp>
#include <attzoo/native_sparse/block_cache.hpp>

#include <torch/nn/init.h>

#include <algorithm>
#include <utility>

namespace attzoo {

/// What a block becomes as a whole.
enum class BlockCompression {
  kLearned,  ///< a small network over its tokens, each with its place in the block
  kMean,     ///< the mean of its tokens
};

/// Options of NativeSparseSelfAttention.
struct NativeSparseSelfAttentionOptions {
  int64_t d_model = 0;          ///< features of the output; > 0
  int64_t num_query_heads = 0;  ///< divides d_model unless there is a head_dim
  int64_t num_kv_heads = 0;     ///< divides num_query_heads
  int64_t block_size = 64;      ///< tokens in a block; > 0
  int64_t block_count = 16;     ///< blocks that a token selects, the forced three too; > 0
  int64_t window_size = 512;    ///< tokens of the window, the token itself too; > 0
  BlockCompression compression = BlockCompression::kLearned;  ///< of blocks
  std::optional<int64_t> input_dim = std::nullopt;            ///< features of x; default d_model
  double dropout = 0.0;      ///< of the weights of each branch, while training
  bool bias = false;         ///< of the projections
  double temperature = 1.0;  ///< divides the scores; > 0
  Rope rope = false;         ///< rotary positions; d_head must be even
  bool causal = true;        ///< nobody attends to later tokens; must be true
  std::optional<int64_t> head_dim = std::nullopt;  ///< features of a head; default d_model / heads
};

/// The module; NativeSparseSelfAttention holds it.
class NativeSparseSelfAttentionImpl
    : public SelfAttention<NativeSparseSelfAttentionImpl, NativeSparseSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "NativeSparseSelfAttention";
  static constexpr TakenInputs kTakes{.mask = false, .context = false, .later = false};

  /// With the default of every other option.
  NativeSparseSelfAttentionImpl(int64_t d_model, int64_t num_query_heads, int64_t num_kv_heads)
      : NativeSparseSelfAttentionImpl({.d_model = d_model,
                                       .num_query_heads = num_query_heads,
                                       .num_kv_heads = num_kv_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit NativeSparseSelfAttentionImpl(const NativeSparseSelfAttentionOptions& o)
      : SelfAttention(o) {
    reset();
  }

  /// Makes and registers the parameters, those of gates and of blocks too.
  void reset() override;

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S]. Real tokens of a
  /// key_padding_mask are attended to as if they stood alone in their row. Throws what project()
  /// does; c10::ValueError for what has no meaning here (causal = false, a mask, pattern, score,
  /// context, documents) and, with a cache, for padding.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {});

  /// A cache of all tokens and of complete blocks; see MakesCache and Cache.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    const auto head = new_cache_head(batch, capacity, how, /*unending=*/false);
    return Cache(
        std::make_shared<core::BlockCache>(head, kv_heads(), d_head(), options.block_size));
  }
  /// Throws c10::NotImplementedError: there is no context.
  Cache make_context_cache(const torch::Tensor&, const torch::Tensor& = {}) const override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, kName,
                                ": a context has no meaning: a token attends to those before it");
  }

  /// The gates of branches [3 * num_query_heads, input_dim], three rows for each head.
  torch::nn::Linear w_branch{nullptr};
  /// Where tokens stand in their block, [block_size, d_head], for keys and values; undefined unless
  /// compression is learned.
  torch::Tensor key_places, value_places;
  /// W_1 [d_head, block_size * d_head] and W_2 [d_head, d_head]; empty likewise.
  torch::nn::Linear w_k_block{nullptr}, w_k_whole{nullptr}, w_v_block{nullptr}, w_v_whole{nullptr};

 protected:
  void check_own_options() const override;

 private:
  void check_inputs(const AttentionInputs& in) const;
  AttentionResult attend_real(const torch::Tensor& x, const AttentionInputs& in);
  /// The wholes of the complete blocks of t [B, Hkv, S, d_head], from block `first` on, in `dtype`.
  torch::Tensor compress(const torch::Tensor& t, int64_t first, const torch::Tensor& places,
                         const torch::nn::Linear& block, const torch::nn::Linear& whole,
                         torch::ScalarType dtype) const;
};

/// Example: `NativeSparseSelfAttention attn({.d_model = 256, .num_query_heads = 16, .num_kv_heads =
/// 1});`
using NativeSparseSelfAttention = Holder<NativeSparseSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(NativeSparseSelfAttentionImpl)

#ifdef ATTZOO_DEFINE_MODULE

namespace attzoo {

ATTZOO_API void NativeSparseSelfAttentionImpl::reset() {
  key_places = torch::Tensor();  // of the options that were
  SelfAttention::reset();
  const int64_t size = options.block_size, D = d_head();
  w_branch = make_projection("w_branch", input_dim(), 3 * options.num_query_heads);
  if (options.compression == BlockCompression::kMean) return;
  TORCH_CHECK_VALUE(size <= (int64_t{1} << 36) / D, kName,
                    ": block_size * d_head must be at most 2^36, got block_size=", size,
                    " d_head=", D);
  w_k_block = make_projection("w_k_block", size * D, D);
  w_k_whole = make_projection("w_k_whole", D, D);
  w_v_block = make_projection("w_v_block", size * D, D);
  w_v_whole = make_projection("w_v_whole", D, D);
  key_places = register_parameter("key_places", torch::zeros({size, D}));
  value_places = register_parameter("value_places", torch::zeros({size, D}));
  torch::nn::init::xavier_uniform_(key_places);
  torch::nn::init::xavier_uniform_(value_places);
}

ATTZOO_API void NativeSparseSelfAttentionImpl::check_own_options() const {
  check_positive("block_size", options.block_size);
  check_positive("block_count", options.block_count);
  check_positive("window_size", options.window_size);
  TORCH_CHECK_VALUE(options.compression == BlockCompression::kLearned ||
                        options.compression == BlockCompression::kMean,
                    kName, ": compression must be kLearned or kMean, got ",
                    static_cast<int>(options.compression));
  TORCH_CHECK_VALUE(options.block_size <= kUnbounded, kName,
                    ": block_size must be at most 2^30, got ", options.block_size);
  TORCH_CHECK_VALUE(!key_places.defined() || key_places.size(0) == options.block_size, kName,
                    ": block_size must be ", key_places.size(0),
                    ", for which the weights were made, got ", options.block_size);
  TORCH_CHECK_VALUE(options.causal, kName, ": causal must be true: blocks are those of the past");
}

ATTZOO_API void NativeSparseSelfAttentionImpl::check_inputs(const AttentionInputs& in) const {
  TORCH_CHECK_VALUE(!in.cache.defined() || !in.context.defined(), kName,
                    ": a cache has no meaning with a context");
  TORCH_CHECK_VALUE(is_causal(in), kName,
                    ": causal = false has no meaning: blocks are of the past");
  TORCH_CHECK_VALUE(!core::says_pairs(in), kName,
                    ": a mask, pattern or score of pairs has no meaning: blocks are attended to as "
                    "wholes");
  TORCH_CHECK_VALUE(!core::crosses(in), kName,
                    ": a context has no meaning: a token attends to those before it");
  TORCH_CHECK_VALUE(!in.documents.defined(), kName,
                    ": documents are not supported: blocks would begin anew in each; give each a "
                    "row of its own and a key_padding_mask");
  if (!in.cache.defined()) return;
  TORCH_CHECK_VALUE(!in.key_padding_mask.defined(), kName,
                    ": with a cache, key_padding_mask is not supported: blocks would begin "
                    "elsewhere in each sequence");
  const auto* cache = dynamic_cast<const core::BlockCache*>(&in.cache.state());
  TORCH_CHECK_VALUE(!cache || cache->block_size() == options.block_size, kName,
                    ": block_size was changed since the cache was made; make another cache");
}

ATTZOO_API torch::Tensor NativeSparseSelfAttentionImpl::compress(
    const torch::Tensor& t, int64_t first, const torch::Tensor& places,
    const torch::nn::Linear& block, const torch::nn::Linear& whole, torch::ScalarType dtype) const {
  const int64_t size = options.block_size, count = t.size(2) / size;
  const auto rows = core::dequantized(t.slice(2, first * size, count * size), dtype);
  if (!places.defined()) return block_means(rows, size);
  // A cache may have another dtype than the module.
  const auto blocks = rows.unflatten(2, {count - first, size}).to(places.scalar_type()) + places;
  return core::linear(torch::gelu(core::linear(blocks.flatten(3), block)), whole).to(dtype);
}

ATTZOO_API AttentionResult NativeSparseSelfAttentionImpl::attend_real(const torch::Tensor& x,
                                                                      const AttentionInputs& in) {
  const auto heads = project(x, in);
  const auto& past = heads.past;
  auto* cache = past ? &static_cast<core::BlockCache&>(in.cache.state()) : nullptr;
  const int64_t first = cache ? cache->blocks() : 0;
  const auto dtype = heads.q.scalar_type();
  auto k = compress(heads.k, first, key_places, w_k_block, w_k_whole, dtype);
  auto v = compress(heads.v, first, value_places, w_v_block, w_v_whole, dtype);
  if (cache) std::tie(k, v) = cache->append_blocks(k, v);
  const auto gates = torch::sigmoid(core::linear(x, w_branch))
                         .unflatten(2, {options.num_query_heads, 3})
                         .transpose(1, 2)
                         .to(heads.q.scalar_type());  // [B, H, L, 3]
  auto all = native_sparse_attention(heads.q, heads.k, heads.v,
                                     {.block_size = options.block_size,
                                      .block_count = options.block_count,
                                      .window_size = options.window_size,
                                      .gate_compressed = gates.select(3, 0),
                                      .gate_selected = gates.select(3, 1),
                                      .gate_window = gates.select(3, 2),
                                      .block_keys = k,
                                      .block_values = v,
                                      .scale = scale(),
                                      .dropout = dropout()});
  AttentionResult result{std::move(all.output), std::move(all.weights), {}};
  if (past) {
    result.output = result.output.to(*past->dtype);
    result.weights = past->guard(std::move(result.weights));
  }
  return finish(std::move(result));
}

ATTZOO_API AttentionResult NativeSparseSelfAttentionImpl::forward(const torch::Tensor& x,
                                                                  const AttentionInputs& inputs) {
  check_options();
  check_inputs(inputs);
  const auto& real = inputs.key_padding_mask;
  if (!real.defined()) return attend_real(x, inputs);
  core::check_call(callee(), w_q->weight, x, inputs, mode(inputs));
  // Real tokens first: what is behind them they do not see.
  const auto order =
      torch::argsort(real.logical_not().to(torch::kInt8), /*stable=*/true, /*dim=*/1);
  const auto moved = [](const torch::Tensor& t, const torch::Tensor& by) {
    return t.gather(1, by.unsqueeze(2).expand({-1, -1, t.size(2)}));
  };
  auto in = inputs;
  in.key_padding_mask = torch::Tensor();
  if (in.positions.defined()) in.positions = in.positions.expand_as(order).gather(1, order);
  auto result = attend_real(moved(x, order), in);
  const auto back = order.argsort(/*dim=*/int64_t{1}, /*descending=*/false);
  result.output = moved(result.output, back);
  const auto sorted = std::move(result.weights);
  result.weights = LazyWeights(sorted.sizes().vec(), [back, sorted](int64_t begin, int64_t end) {
    const auto rows = back.slice(1, begin, end).unsqueeze(1).unsqueeze(3);
    return sorted.tensor().take_along_dim(rows, 2).take_along_dim(back.unsqueeze(1).unsqueeze(2),
                                                                  3);
  });
  return result;
}

}  // namespace attzoo

#endif
