#pragma once
/// \file
/// BigBird self-attention: blocks of tokens attend to their neighbours, to global blocks, and to
/// random ones.
///
/// Zaheer et al., "Big Bird: Transformers for Longer Sequences", 2020, arXiv:2007.14062, the form
/// of its appendix D (BigBird-ITC). With blocks of block_size tokens 0 ... n, those of a token i in
/// block b are N(i) = {0, b - 1, b, b + 1, n} and num_random_blocks others, drawn for each head and
/// block; tokens of the blocks 0 and n attend to all, and are attended to by all:
/// ```
/// y_i = softmax_j(q_i . k_j / sqrt(d_head)) v_j    over the tokens j of the blocks N(i)
/// ```
/// The last block may be shorter. Random blocks depend on `seed`, the head, the block and their
/// number alone, in training, too. In a causal call, which the paper has not, nothing may depend on
/// how long the sequence will be: the last block is one like others, and random blocks are drawn of
/// earlier ones.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// Cost: O(L (5 + num_random_blocks) block_size d_model) time, O(L d_model) memory, and a byte
/// for each head and pair of blocks.

#include <attzoo/big_bird/pattern.hpp>
#include <attzoo/module/blend.hpp>
#include <attzoo/module/self_attention.hpp>

#include <vector>

namespace attzoo {

/// Options of BigBirdSelfAttention.
struct BigBirdSelfAttentionOptions {
  int64_t d_model = 0;            ///< features of the output; > 0
  int64_t num_heads = 0;          ///< divides d_model
  int64_t block_size = 64;        ///< tokens; > 0
  int64_t num_random_blocks = 3;  ///< of each block beside its neighbours and the global ones; >= 0
  /// A block that set_random_blocks() names again, or that is a neighbour or global, counts once
  /// more in the softmax, as in Hugging Face's BigBird.
  bool count_repeats = false;
  uint64_t seed = 0;                                ///< of the random blocks
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  double dropout = 0.0;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  Rope rope = false;                                ///< rotary positions; d_head must be even
  bool causal = false;                              ///< nobody attends to later tokens
};

/// The module; BigBirdSelfAttention holds it.
class BigBirdSelfAttentionImpl
    : public SelfAttention<BigBirdSelfAttentionImpl, BigBirdSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "BigBirdSelfAttention";

  /// With the default of every other option.
  BigBirdSelfAttentionImpl(int64_t d_model, int64_t num_heads)
      : BigBirdSelfAttentionImpl({.d_model = d_model, .num_heads = num_heads}) {}
  /// Throws c10::ValueError for options out of the ranges that they name.
  explicit BigBirdSelfAttentionImpl(const BigBirdSelfAttentionOptions& o) : SelfAttention(o) {
    reset();
  }

  /// x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, S], lse [B, H, L]; S is L, or
  /// the context's length. Throws what project() does; and c10::ValueError where the sequence has
  /// not the blocks that set_random_blocks() speaks of.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const bool repeats = options.count_repeats && random_blocks_.defined();
    TORCH_CHECK_VALUE(
        !repeats || !inputs.score.sink().defined(), kName,
        ": a sink would count as often as a block is repeated; score must bring none");
    auto heads = project(x, inputs);
    if (heads.q.numel() == 0 || heads.k.numel() == 0) return finish(attend(heads, inputs));
    const core::BigBirdPattern pattern(heads, options.block_size, options.num_random_blocks,
                                       options.seed, random_blocks_, is_causal(inputs), repeats);
    heads.packing.run = torch::Tensor();  // the blocks keep documents apart
    std::vector<AttentionResult> parts;
    for (const auto& part : pattern.parts) {
      parts.push_back(attend(heads, inputs, pattern.blocks.mask(part)));
    }
    if (parts.size() == 1) return finish(parts[0]);
    const auto joint = core::join_softmaxes(parts);
    return finish(core::blend(parts, joint.shares, joint.lse));
  }

  /// Uses these from now on in the place of random ones: integers [num_heads or 1, blocks - 2 or 1,
  /// n], of each block but the first and the last the numbers of n blocks. One row for all blocks
  /// fits sequences of every length, torch::zeros({1, 1, n}, torch::kInt64) is Hugging Face's
  /// BigBird in eval mode. Undefined: random ones again. Throws c10::Error on another shape or
  /// dtype, and for negative numbers.
  void set_random_blocks(const torch::Tensor& blocks);

 protected:
  void check_own_options() const override {
    check_positive("block_size", options.block_size);
    TORCH_CHECK_VALUE(options.num_random_blocks >= 0 && options.num_random_blocks <= 1 << 16, kName,
                      ": num_random_blocks must be in [0, 2^16], got ", options.num_random_blocks);
  }

 private:
  torch::Tensor random_blocks_;  // int64 [heads or 1, blocks or 1, n], on the CPU
};

/// Example: `BigBirdSelfAttention attn({.d_model = 256, .num_heads = 8, .block_size = 64});`
using BigBirdSelfAttention = Holder<BigBirdSelfAttentionImpl>;

}  // namespace attzoo

ATTZOO_COMPILED_MECHANISM(BigBirdSelfAttentionImpl)

#ifdef ATTZOO_DEFINE_MODULE

namespace attzoo {

ATTZOO_API void BigBirdSelfAttentionImpl::set_random_blocks(const torch::Tensor& blocks) {
  if (!blocks.defined()) {
    random_blocks_ = torch::Tensor();
    return;
  }
  core::check_dense(blocks, kName, "blocks");
  TORCH_CHECK_TYPE(torch::isIntegralType(blocks.scalar_type(), /*includeBool=*/false), kName,
                   ": set_random_blocks expects integers, got ", blocks.scalar_type());
  TORCH_CHECK_VALUE(blocks.dim() == 3 &&
                        (blocks.size(0) == 1 || blocks.size(0) == options.num_heads) &&
                        blocks.size(1) > 0,
                    kName, ": set_random_blocks expects [num_heads=", options.num_heads,
                    " or 1, blocks - 2 or 1, n], got ", blocks.sizes());
  const auto numbers = blocks.to(torch::kInt64).cpu().clone(torch::MemoryFormat::Contiguous);
  TORCH_CHECK_VALUE(numbers.numel() == 0 || numbers.min().item<int64_t>() >= 0, kName,
                    ": set_random_blocks expects numbers >= 0, got ", numbers.min());
  random_blocks_ = numbers;
}

}  // namespace attzoo

#endif
