#pragma once
/// \file
/// Mixture of block attention: every query attends to its own block of keys and chooses others of
/// the past.
///
/// Lu et al., "MoBA: Mixture of Block Attention for Long-Context LLMs", 2025, arXiv:2502.13189.
/// With blocks of block_size tokens, query i in block b attends to its own block up to itself, and
/// to the top_k - 1 earlier blocks c with the largest q_i . mean(k_j, j in c):
/// ```
/// y_i = softmax_j(q_i . k_j / sqrt(d_head)) v_j    over j <= i of the chosen blocks
/// ```
/// Each head chooses for itself, and nothing is learned from what was not chosen: the choice has no
/// gradient. It is causal. Blocks begin anew in every document of a packed batch; padding has no
/// part in the means.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L top_k block_size d_model + L^2 / block_size d_model) time, O(L top_k d_model) memory:
/// queries are sorted by the blocks that they chose. With dropout, or a score with a sink, tiles of
/// queries visit all blocks that any of them chose.

#include <attzoo/moba/block_sum_cache.hpp>
#include <attzoo/module/self_attention.hpp>

namespace attzoo {

/// Options of MixtureOfBlocksSelfAttention.
struct MixtureOfBlocksSelfAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_heads = 0;                            ///< divides d_model
  int64_t block_size = 512;                         ///< tokens; > 0
  int64_t top_k = 3;                                ///< blocks of a query, its own among them; > 0
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  Rope rope = false;                                ///< rotary positions; d_head must be even
  bool causal = true;                               ///< always: false is an error
};

/// The module; MixtureOfBlocksSelfAttention holds it.
class MixtureOfBlocksSelfAttentionImpl
    : public SelfAttention<MixtureOfBlocksSelfAttentionImpl, MixtureOfBlocksSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "MixtureOfBlocksSelfAttention";
  static constexpr TakenInputs kTakes{.context = false, .later = false};

  /// With the default of every other option.
  MixtureOfBlocksSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : MixtureOfBlocksSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit MixtureOfBlocksSelfAttentionImpl(const MixtureOfBlocksSelfAttentionOptions& o)
      : SelfAttention(o) {
    reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L], lse [B, H, L]. Throws
  /// what project() does; and c10::ValueError for a context and for a call that is not causal.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const bool crosses = core::crosses(inputs);
    if (crosses || !is_causal(inputs)) {
      core::check_call(callee(), w_q->weight, x, inputs, mode(inputs));  // what else is wrong
      TORCH_CHECK_VALUE(false, kName, ": ", crosses ? "a context" : "causal = false",
                        " has no meaning: queries choose blocks of the past");
    }
    const auto heads = project(x, inputs);
    if (heads.q.numel() == 0 || heads.k.numel() == 0) return finish(attend(heads, inputs));
    return finish(attend_blocks(heads, inputs));
  }

  /// A cache of all tokens, and of the sums of the keys of each block; see MakesCache and Cache.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override;
  /// Throws c10::ValueError: it takes no context.
  Cache make_context_cache(const torch::Tensor& context,
                           const torch::Tensor& key_padding_mask = {}) const override;

 protected:
  void check_own_options() const override {
    check_positive("block_size", options.block_size);
    check_positive("top_k", options.top_k);
    TORCH_CHECK_VALUE(options.causal, kName, ": causal must be true, got false");
  }

 private:
  /// Attention of each query to its blocks.
  AttentionResult attend_blocks(const Heads& heads, const AttentionInputs& inputs) const;
  /// The earlier blocks that queries choose, int64 [B, H, L, n]; -1: none.
  torch::Tensor choose(const Heads& heads, const AttentionInputs& inputs,
                       const core::TokenBlocks& blocks) const;
  /// Each query with each block that it chose, sorted by the blocks: outputs [B, H, L, n, dh] and
  /// lse [B, H, L, n].
  std::pair<torch::Tensor, torch::Tensor> attend_sorted(const Heads& heads,
                                                        const core::MaskAndBias& asked,
                                                        const core::AnyMask& real,
                                                        const core::TokenBlocks& blocks,
                                                        const torch::Tensor& chosen) const;
};

/// Example: `MixtureOfBlocksSelfAttention attn({.d_model = 1024, .num_heads = 16});`
using MixtureOfBlocksSelfAttention = Holder<MixtureOfBlocksSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(MixtureOfBlocksSelfAttentionImpl)

#ifdef ATTZOO_DEFINE_MODULE
#include <attzoo/moba.ipp>
#endif
