#pragma once
/// \file
/// Self-attention to the keys that a lightning indexer chooses: DeepSeek Sparse Attention.
///
/// DeepSeek-AI, "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models", 2025,
/// arXiv:2512.02556, section 2.1. A small indexer scores all keys, and attention is computed with
/// the top_k best of them, the same in all heads:
/// ```
/// I_ij = sum_h w_ih relu(qI_ih . kI_j / sqrt(index_dim)),   w_i = x_i W_h / sqrt(index_heads)
/// y_i  = softmax_j(q_i . k_j / sqrt(d_head)) v_j            over the top_k j by I_ij
/// ```
/// Choosing has no derivative: the indexer learns by a loss of its own, the divergence of its
/// softmax from what the heads attend to, and nothing of it reaches x or other parameters. See
/// forward_with_loss().
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L^2 index_heads index_dim + L top_k d_model) time, O(L (d_model + top_k)) memory.
/// Departs from the paper: without the norm and the Hadamard transform of the indexer's keys, and
/// RoPE turns all of their features. The paper's model is multi-head latent attention; this one is
/// grouped-query attention.

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/core/views.hpp>
#include <attzoo/functional/chosen_keys.hpp>
#include <attzoo/functional/indexer.hpp>
#include <attzoo/indexed/index_cache.hpp>
#include <attzoo/module/self_attention.hpp>

#include <cmath>
#include <limits>
#include <utility>

namespace attzoo {

/// Options of IndexedSelfAttention.
struct IndexedSelfAttentionOptions {
  int64_t d_model = 0;                                 ///< features of the output; > 0
  int64_t num_heads = 0;                               ///< query heads; divide d_model
  std::optional<int64_t> num_kv_heads = std::nullopt;  ///< divides num_heads; default as many
  int64_t top_k = 2048;     ///< keys of a query, > 0; all, the warm-up stage, where there are fewer
  int64_t index_heads = 4;  ///< of the indexer; > 0
  int64_t index_dim = 64;   ///< features of each; > 0
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  Rope rope = false;    ///< rotary positions, the indexer's too; d_head and index_dim must be even
  bool causal = false;  ///< nobody attends to later tokens
};

/// What IndexedSelfAttention::forward_with_loss returns: `auto [result, loss] = ...`.
struct IndexedResult {
  AttentionResult result;  ///< that of forward()
  torch::Tensor loss;      ///< of the indexer, for each query [B, L]
};

/// The module; IndexedSelfAttention holds it.
class IndexedSelfAttentionImpl
    : public SelfAttention<IndexedSelfAttentionImpl, IndexedSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "IndexedSelfAttention";

  /// With the default of every other option.
  IndexedSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : IndexedSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit IndexedSelfAttentionImpl(const IndexedSelfAttentionOptions& o) : SelfAttention(o) {
    reset();
  }

  /// Makes and registers the parameters, those of the indexer too.
  void reset() override {
    SelfAttention::reset();
    w_q_index = make_projection("w_q_index", input_dim(), options.index_heads * options.index_dim,
                                /*bias=*/false);
    w_k_index = make_projection("w_k_index", input_dim(), options.index_dim, /*bias=*/false);
    w_h_index = make_projection("w_h_index", input_dim(), options.index_heads, /*bias=*/false);
    index_rope_ = core::plan_rope(options.rope, options.index_dim, kName);
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. A mask of single heads lets a key be chosen where one of them may attend
  /// to it. Throws what project() does, and c10::ValueError for a score with a sink.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    return finish(attend_chosen(x, inputs, nullptr));
  }

  /// The same, with what the indexer learns by:
  /// ```
  /// auto [result, loss] = attn->forward_with_loss(x, {.causal = true});
  /// (task_loss(result.output) + loss.mean()).backward();
  /// ```
  /// loss_i = KL(p_i || softmax_j(I_ij)) over the chosen keys, p the attention weights summed over
  /// heads, to sum 1. Gradients flow from it to w_q_index, w_k_index and w_h_index alone. With a
  /// top_k of all keys it is the paper's dense warm-up stage, with fewer the sparse one; `top_k`
  /// may be changed between calls. Throws what forward() does, and c10::ValueError with a cache.
  IndexedResult forward_with_loss(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    TORCH_CHECK_VALUE(!inputs.cache.defined(), kName,
                      ": forward_with_loss takes no cache, through which nothing learns");
    IndexedResult both;
    both.result = finish(attend_chosen(x, inputs, &both.loss));
    return both;
  }

  /// A cache of all tokens, and of the indexer's keys; see MakesCache and Cache.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    const auto head = new_cache_head(batch, capacity, how, /*unending=*/false);
    return Cache(
        std::make_shared<core::IndexCache>(head, kv_heads(), d_qk(), d_head(), options.index_dim));
  }
  /// A context's keys and values, and the indexer's keys; see MakesCache.
  Cache make_context_cache(const torch::Tensor& context,
                           const torch::Tensor& key_padding_mask = {}) const override {
    const auto cache = SelfAttention::make_context_cache(context, key_padding_mask);
    auto& kept = static_cast<core::ContextCache&>(cache.state());
    kept.index = context_index(context).to(kept.k.scalar_type()).contiguous();
    return cache;
  }

  /// The indexer: queries, keys, and the weights of its heads.
  torch::nn::Linear w_q_index{nullptr}, w_k_index{nullptr}, w_h_index{nullptr};

 protected:
  void check_own_options() const override {
    check_positive("top_k", options.top_k);
    check_positive("index_heads", options.index_heads);
    check_positive("index_dim", options.index_dim);
    TORCH_CHECK_VALUE(options.index_heads <= (int64_t{1} << 36) / options.index_dim, kName,
                      ": index_heads * index_dim must be at most 2^36, got index_heads=",
                      options.index_heads, " index_dim=", options.index_dim);
    TORCH_CHECK_VALUE(!options.rope || options.index_dim % 2 == 0, kName,
                      ": with rope, index_dim must be even, got ", options.index_dim);
  }

 private:
  /// The indexer's keys of a context, [B, 1, S, index_dim].
  torch::Tensor context_index(const torch::Tensor& context) const {
    auto k = core::linear(context, w_k_index).unsqueeze(1);
    if (index_rope_) rotate_context(k, *index_rope_);
    return k;
  }

  /// What the indexer makes of a call, whose heads are `heads`; no gradient flows to x.
  Indexer index(const torch::Tensor& x_in, const AttentionInputs& in, const Heads& heads) const {
    const auto x = x_in.detach();
    auto q = core::split_heads(core::linear(x, w_q_index), options.index_dim);
    if (index_rope_) rotate_tokens(q, *index_rope_, heads, in);
    torch::Tensor k;
    if (const auto* kept = core::context_cache(in)) {
      k = kept->index;
    } else if (in.context.defined()) {
      k = context_index(in.context.detach());
    } else {
      k = core::linear(x, w_k_index).unsqueeze(1);
      if (index_rope_) rotate_tokens(k, *index_rope_, heads, in);
      if (heads.past) k = static_cast<core::IndexCache&>(in.cache.state()).append_index(k);
    }
    const auto w = core::linear(x, w_h_index).transpose(1, 2);
    const double share = 1 / std::sqrt(static_cast<double>(options.index_heads));
    return {q.to(k.scalar_type()), k.squeeze(1), (w * share).to(k.scalar_type())};
  }

  /// Attention to the chosen keys; and the indexer's loss where it is asked for.
  AttentionResult attend_chosen(const torch::Tensor& x, const AttentionInputs& in,
                                torch::Tensor* loss) {
    TORCH_CHECK_VALUE(!in.score.sink().defined(), kName,
                      ": a sink has no key to choose; score must bring none");
    const auto heads = project(x, in);
    auto pairs = rule(heads, in, mode(in), {}, {});
    if (in.mask.defined() && in.mask.is_floating_point()) {  // what it forbids is not chosen
      const auto hidden = in.mask.detach() == -std::numeric_limits<double>::infinity();
      pairs.mask = pairs.mask && core::TensorMask{core::mask_rank4(hidden.logical_not())};
    }
    Indexer indexer;
    {
      const torch::AutoGradMode learns(loss && torch::GradMode::is_enabled());
      indexer = index(x, in, heads);
    }
    const int64_t H = heads.q.size(1);
    torch::Tensor chosen;
    AttentionResult result;
    if (options.top_k >= heads.k.size(2)) {
      result = core::attention(heads.q, heads.k, heads.v, pairs.mask, pairs.bias,
                               attention_options(), /*private_qk=*/true);
    } else {
      chosen = choose_keys(indexer, options.top_k, pairs.mask, H);
      const auto mask = core::says_pairs(in) ? pairs.mask : core::AnyMask();  // of single heads
      result = core::chosen_attention(heads.q, heads.k, heads.v, {.index = chosen}, mask,
                                      pairs.bias, attention_options(), /*private_qk=*/true);
    }
    if (loss) *loss = indexer_loss(indexer, result.weights, pairs.mask, chosen);
    return conclude(heads, std::move(result));
  }

  std::optional<core::RopePlan> index_rope_;
};

/// Example: `IndexedSelfAttention attn({.d_model = 256, .num_heads = 8, .top_k = 64});`
using IndexedSelfAttention = Holder<IndexedSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(IndexedSelfAttentionImpl)
