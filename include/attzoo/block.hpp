#pragma once
/// \file
/// Block self-attention: the sequence is cut into blocks, and tokens attend within theirs.
///
/// Qiu et al., "Blockwise Self-Attention for Long Document Understanding", 2019, arXiv:1911.02972,
/// with the identity permutation. With b = block_size:
/// ```
/// y_i = softmax_j(q_i . k_j / sqrt(d_head)) v_j    over j with floor(j / b) = floor(i / b)
/// ```
/// With `overlap`, blocks start every s = max(1, floor(b / 2)) tokens, so most tokens lie in two of
/// them (three for an odd b), and the outputs y^k of the blocks around token i are blended:
/// ```
/// y_i    = sum_k c_k(i) y^k_i    with sum_k c_k(i) = 1
/// c_k(i) ~ distance of i to the nearer end of block k
/// ```
/// The returned weights are blended alike, so they are what produced the output.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// In a packed batch blocks begin anew in every document.
/// A cache keeps the tokens of a block or two. With `overlap` it does not know where the sequence
/// will end and blends as in one that goes on: rows of a whole pass are the same up to its last
/// block_size tokens, where the pass fades to its end.
/// Cost: O(L b d_model) time, O(L d_model) memory.
/// Departs from the Python library: its blend fades parts of the sequence towards zero and returns
/// weights that do not match; `python_blend` reproduces both. Bad arguments are errors, not
/// repaired.

#include <attzoo/block/overlapping_blocks.hpp>
#include <attzoo/module/blend.hpp>
#include <attzoo/module/self_attention.hpp>

#include <algorithm>
#include <tuple>
#include <vector>

namespace attzoo {

/// Options of BlockSelfAttention.
struct BlockSelfAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  int64_t num_heads = 8;                            ///< divides d_model
  int64_t block_size = 64;                          ///< tokens in a block; > 0
  bool overlap = false;                             ///< blocks start every block_size / 2 tokens
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  Rope rope = false;                                ///< rotary positions; d_head must be even
  bool causal = false;                              ///< nobody attends to later tokens
  bool python_blend = false;                        ///< with overlap: the Python library's blend
};

/// The module; BlockSelfAttention holds it.
class BlockSelfAttentionImpl
    : public SelfAttention<BlockSelfAttentionImpl, BlockSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "BlockSelfAttention";

  /// With the default of every other option.
  explicit BlockSelfAttentionImpl(int64_t d_model)
      : BlockSelfAttentionImpl(BlockSelfAttentionOptions{.d_model = d_model}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit BlockSelfAttentionImpl(const BlockSelfAttentionOptions& o) : SelfAttention(o) {
    reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does; and c10::ValueError with overlap for a
  /// context that is not as long as x, with python_blend for documents.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    TORCH_CHECK_VALUE(!inputs.documents.defined() || !options.overlap || !options.python_blend,
                      kName, ": python_blend is the Python library's, which knows no documents");
    auto heads = project(x, inputs);
    if (options.overlap) return finish(attend_overlapping(heads, inputs));
    const auto& [packing, past] = std::tie(heads.packing, heads.past);
    core::AnyMask pattern = blocks(options.block_size);
    if (packing.defined()) {
      pattern = core::blocks_of_places(packing.position, packing.run, options.block_size);
    } else if (past && past->padding.defined()) {
      pattern = core::blocks_of_places(past->places(), {}, options.block_size);
    }
    heads.packing.run = torch::Tensor();  // the pattern keeps documents apart
    return finish(attend(heads, inputs, pattern));
  }

 protected:
  void check_own_options() const override { check_positive("block_size", options.block_size); }
  Keeps keeps() const override {
    const int64_t size = block_size();
    if (!options.overlap) return {.reach = size - 1, .unit = size};
    return {.reach = size - 1, .unit = core::OverlappingBlocks::period_of(size)};
  }

 private:
  /// In numbers that can be added.
  int64_t block_size() const { return std::min(options.block_size, kUnbounded); }
  /// Attends within every family of blocks that do not touch each other, and blends.
  AttentionResult attend_overlapping(const Heads& heads, const AttentionInputs& inputs) {
    const int64_t L = heads.q.size(2), S = heads.k.size(2);
    TORCH_CHECK_VALUE(L == S || heads.past, kName, ": overlap needs a context as long as x, got ",
                      S, " and ", L);
    const auto& [packing, past] = std::tie(heads.packing, heads.past);
    const core::Packing apart{.position = packing.position};  // so does every family
    const auto blocks = past && !packing.defined()
                            ? core::OverlappingBlocks(*past, L, block_size())
                            : core::OverlappingBlocks(L, block_size(), packing, past.has_value());
    std::vector<AttentionResult> parts;
    for (int64_t f = 0; f < blocks.families(); ++f) {
      parts.push_back(
          attend({heads.q, heads.k, heads.v, apart, heads.past}, inputs, blocks.family(f)));
    }
    const auto shares = options.python_blend ? blocks.python_shares() : blocks.shares();
    auto result =
        core::blend(parts, shares.to(parts[0].output.options()), core::join_softmaxes(parts).lse);
    if (options.python_blend) result.weights = blocks.last_block_wins(parts);
    return result;
  }
};

/// Example: `BlockSelfAttention attn({.d_model = 256, .block_size = 64, .overlap = true});`
using BlockSelfAttention = Holder<BlockSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(BlockSelfAttentionImpl)
