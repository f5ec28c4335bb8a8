#pragma once
/// \file
/// The lightning indexer of DeepSeek Sparse Attention (DeepSeek-AI, "DeepSeek-V3.2: Pushing the
/// Frontier of Open Large Language Models", 2025, arXiv:2512.02556): small heads that score all
/// keys and choose those that attention is computed with.

#include <attzoo/core/modifier/any_mask.hpp>
#include <attzoo/functional/result.hpp>

#include <optional>

namespace attzoo {

/// What an indexer scores with:
/// ```
/// I_ij = sum_h w_ih relu(scale * q_ih . k_j)
/// ```
struct Indexer {
  torch::Tensor q = {};                        ///< [B, HI, L, DI], its queries
  torch::Tensor k = {};                        ///< [B, S, DI], its keys, the same for all heads
  torch::Tensor w = {};                        ///< [B, HI, L], the weights of its heads; default 1
  std::optional<double> scale = std::nullopt;  ///< > 0; default 1 / sqrt(DI)
};

/// The scores of the queries [begin, end), [B, end - begin, S], in float32 at least;
/// differentiable. Throws c10::Error on wrong shapes, dtypes and devices.
ATTZOO_API torch::Tensor indexer_scores(const Indexer& indexer, int64_t begin, int64_t end);

/// The top_k keys of each query, those of the highest scores among the keys that the mask allows in
/// one head at least, for chosen_attention(): int64 [B, 1, L, min(top_k, S)], -1 where there are
/// fewer. Of equal scores the later key is chosen. Time O(L S HI DI), in memory of O(S) rows.
/// `heads` are those that the mask is about. Throws what indexer_scores() does, and c10::ValueError
/// for top_k < 1 and a mask that does not fit. Example:
/// `chosen_attention(q, k, v, {.index = choose_keys(indexer, 2048, causal())})`
ATTZOO_API torch::Tensor choose_keys(const Indexer& indexer, int64_t top_k,
                                     const core::AnyMask& mask = {}, int64_t heads = 1);

/// What the indexer learns by, for each query: the divergence of the softmax of its scores from the
/// attention that it is to find,
/// ```
/// loss_i = KL(p_i || softmax_j(I_ij)),   p_ij = sum_h a_hij / sum_hj a_hij
/// ```
/// over `chosen` keys [1 or B, 1, L, M] of choose_keys(), the sparse stage; or without, the dense
/// warm-up, over all keys that the mask allows in one head at least. `weights` a [B, H, L, S] are
/// those of attention; no gradient flows to them. [B, L], 0 where there is no key.
/// Differentiable once in q, k and w, in memory of O(S) rows, forward and backward. Throws what
/// indexer_scores() does.
ATTZOO_API torch::Tensor indexer_loss(const Indexer& indexer, const LazyWeights& weights,
                                      const core::AnyMask& mask = {},
                                      const torch::Tensor& chosen = {});

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL
#include <attzoo/functional/indexer.ipp>
#endif
