#pragma once
/// \file
/// Attention to keys that each query chooses: the part of sparse attention that is the same whoever
/// chooses, an indexer (arXiv:2512.02556) or scores of blocks (arXiv:2502.11089).

#include <attzoo/functional/attention.hpp>

namespace attzoo {

/// Which keys each query attends to, by their numbers.
struct ChosenKeys {
  /// Integers [1 or B, C, L, M], -1 for none, where C is 1 (all heads choose the same), the heads
  /// of k, or those of q. No number stands twice in a row: it would count twice.
  torch::Tensor index = {};
  /// Each number is that of a block of so many keys, [i * block_size, (i + 1) * block_size).
  int64_t block_size = 1;
};

/// As attention(), of the chosen keys alone:
/// ```
/// y_i = softmax_j(score_mod(scale * q_i . k_j)) v_j    over j in chosen(i), where the mask allows
/// ```
/// in time O(L M block_size), forward and backward, and memory O(L + S) beyond the numbers. On the
/// CPU without a score and dropout a kernel reads keys and values where they lie; blocks of 16 keys
/// or more that many queries choose are read once for these, where the mask is full(), causal(), or
/// a window. Else some rows at a time gather their keys, and again in the backward pass. Query
/// heads that share keys and a choice read them once.
///
/// \param q [B, H, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], as for attention()
/// \param mask is asked about chosen pairs alone; causal() cuts the block of a query itself
/// \param score in time O(H L M block_size D); without a sink
/// \return output [B, H, L, Dv], weights [B, H, L, S] on demand, lse [B, H, L]
///
/// Throws what attention() throws; c10::ValueError for numbers out of range, a shape of theirs that
/// does not fit, and a sink. Example:
/// `chosen_attention(q, k, v, {.index = scores.topk(64).indices}, causal())`
ATTZOO_API AttentionResult chosen_attention(const torch::Tensor& q, const torch::Tensor& k,
                                            const torch::Tensor& v, const ChosenKeys& chosen,
                                            const core::AnyMask& mask = {},
                                            const core::AnyScore& score = {},
                                            const AttentionOptions& options = {});

namespace core {

/// The same, where `private_qk` promises that nobody changes q and k in place while weights may
/// still be read; see core::attention().
ATTZOO_API AttentionResult chosen_attention(const torch::Tensor& q, const torch::Tensor& k,
                                            const torch::Tensor& v, const ChosenKeys& chosen,
                                            const AnyMask& mask, const AnyScore& score,
                                            const AttentionOptions& options, bool private_qk);

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL
#include <attzoo/functional/chosen_keys.ipp>
#endif
