#pragma once
/// \file
/// Block self-attention: the sequence is cut into blocks, and tokens attend within theirs.
///
/// Qiu et al., "Blockwise Self-Attention for Long Document Understanding", 2019, arXiv:1911.02972,
/// with the identity permutation. With b = block_size:
///
///     y_i = softmax_j(q_i . k_j / sqrt(d_head)) v_j    over j with floor(j / b) = floor(i / b)
///
/// With `overlap`, blocks start every s = max(1, floor(b / 2)) tokens, so most tokens lie in two of
/// them (three for an odd b), and the outputs y^k of the blocks around token i are blended:
///
///     y_i = sum_k c_k(i) y^k_i,    c_k(i) ~ distance of i to the nearer end of block k,  sum_k
///     c_k(i) = 1
///
/// The returned weights are blended alike, so they are what produced the output.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model], weights [B, H, L, L].
/// In a packed batch blocks begin anew in every document.
/// Cost: O(L b d_model) time, O(L d_model) memory.
/// Departs from the Python library: its blend fades parts of the sequence towards zero and returns
/// weights that do not match; `python_blend` reproduces both. Bad arguments are errors, not
/// repaired.

#include <attzoo/module/self_attention.hpp>

#include <algorithm>
#include <vector>

namespace attzoo {

struct BlockSelfAttentionOptions {
  int64_t d_model = 0;                              ///< features of the output; > 0
  std::optional<int64_t> input_dim = std::nullopt;  ///< features of x; default d_model
  int64_t block_size = 64;                          ///< tokens in a block; > 0
  int64_t num_heads = 8;                            ///< divides d_model
  double dropout = 0.1;                             ///< of the weights, while training
  bool bias = false;                                ///< of the four projections
  double temperature = 1.0;                         ///< divides the scores; > 0
  bool overlap = false;                             ///< blocks start every block_size / 2 tokens
  bool rope = false;                                ///< rotary positions; d_head must be even
  bool causal = false;                              ///< nobody attends to later tokens
  bool python_blend = false;                        ///< with overlap: the Python library's blend
};

namespace core {

/// The overlapping blocks of n tokens, in `families` of blocks that do not touch each other: block
/// k starts at k * step and belongs to family k mod families.
struct OverlappingBlocks {
  int64_t n, size, step, families, count;

  /// block_size at most the longest length.
  OverlappingBlocks(int64_t length, int64_t block_size)
      : n(length), size(block_size), step(std::max<int64_t>(1, block_size / 2)) {
    families = (size + step - 1) / step;
    count = n <= size ? 1 : 1 + (n - size + step - 1) / step;  // the last block ends at or after n
  }

  SameBlockMask family(int64_t f) const { return {size, families * step, f * step, count * step}; }

  /// c_k(i) for the block k of every family that holds token i, or 0: [families, n], float64.
  torch::Tensor blend(bool python_rule) const {
    auto c = torch::zeros({families, n}, torch::kFloat64);
    auto at = c.accessor<double, 2>();
    for (int64_t k = 0; k < count; ++k) {
      const int64_t begin = k * step, end = std::min(begin + size, n);
      for (int64_t i = begin; i < end; ++i) {
        if (!python_rule) {
          at[k % families][i] = static_cast<double>(std::min(i - begin + 1, end - i));
          continue;
        }
        // A later block takes beta of the result and leaves 1 - beta of what was there, even if
        // nothing was.
        const double beta = k == 0            ? 1.0
                            : end - begin > 1 ? static_cast<double>(i - begin) /
                                                    static_cast<double>(end - begin - 1)
                                              : 0.0;
        for (int64_t f = 0; f < families; ++f) at[f][i] *= 1.0 - beta;
        at[k % families][i] = beta;
      }
    }
    return python_rule ? c : c / c.sum(0);
  }

  /// The number of the last block that holds both tokens of a pair, by family: -1 where none does.
  torch::Tensor block_of(int64_t f, int64_t begin, int64_t end) const {
    const auto mask = family(f).evaluate(Grid({1, 1, n, n}, begin, end, torch::kCPU));
    const auto i = torch::arange(begin, end, torch::kInt64).view({1, 1, -1, 1});
    const auto k = torch::div(i - f * step, families * step, "floor") * families + f;
    return torch::where(mask, k, torch::full({}, -1, torch::kInt64));
  }
};

}  // namespace core

class BlockSelfAttentionImpl
    : public SelfAttention<BlockSelfAttentionImpl, BlockSelfAttentionOptions> {
 public:
  static constexpr const char* kName = "BlockSelfAttention";

  explicit BlockSelfAttentionImpl(int64_t d_model)
      : BlockSelfAttentionImpl(BlockSelfAttentionOptions{.d_model = d_model}) {}
  explicit BlockSelfAttentionImpl(const BlockSelfAttentionOptions& o)
      : SelfAttention(o, {"num_heads", o.num_heads}) {
    check_positive("block_size", options.block_size);
    reset();
  }

  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    TORCH_CHECK_VALUE(!inputs.documents.defined() || !options.overlap || !options.python_blend,
                      kName, ": python_blend is the Python library's, which knows no documents");
    const auto heads = project(x, inputs);
    if (!options.overlap) {
      if (!heads.packing.defined()) {
        return finish(attend(heads, inputs, blocks(options.block_size)));
      }
      return finish(attend(block_by_block(heads), inputs));
    }
    TORCH_CHECK_VALUE(heads.q.size(2) == heads.k.size(2), kName,
                      ": overlap needs a context as long as x, got ", heads.k.size(2), " and ",
                      heads.q.size(2));
    return finish(attend_overlapping(heads, inputs));
  }

  void extra_repr(std::ostream& stream) const {
    stream << ", block_size=" << options.block_size << ", num_heads=" << options.num_heads
           << std::boolalpha << ", overlap=" << options.overlap;
  }

 private:
  /// The blocks of documents are smaller documents.
  Heads block_by_block(Heads heads) const {
    auto& packing = heads.packing;
    const auto block = torch::div(packing.position, options.block_size, "floor");
    packing.run = packing.run * (packing.run.size(1) + 1) + block;
    return heads;
  }

  /// The same for family f of overlapping blocks; and which tokens lie in one of them, [R, S].
  static std::pair<Heads, torch::Tensor> family_by_block(Heads heads, int64_t f,
                                                         const core::OverlappingBlocks& layout,
                                                         const torch::Tensor& count) {
    auto& packing = heads.packing;
    const auto offset = packing.position - f * layout.step;
    const auto j = torch::div(offset, layout.families * layout.step, "floor").clamp_min(-1);
    const auto within = offset - j * (layout.families * layout.step);
    const auto inside = (j >= 0) & (within < layout.size) & (j * layout.families + f < count);
    // What lies between two blocks is a document that nobody attends to.
    packing.run = (packing.run * (packing.run.size(1) + 1) + j + 1) * 2 + inside;
    return {std::move(heads), inside};
  }

  AttentionResult attend_overlapping(const Heads& heads, const AttentionInputs& inputs) {
    const int64_t n = heads.q.size(2), size = std::min(options.block_size, std::max<int64_t>(n, 1));
    const core::OverlappingBlocks layout(n, size);
    const bool packed = heads.packing.defined() && heads.q.numel() > 0;
    torch::Tensor c;      // shares of the families: [families, L], packed [families, R, 1, L]
    torch::Tensor count;  // of the blocks of each token's document: [R, L]
    if (packed) {
      std::vector<torch::Tensor> blends;
      std::vector<int64_t> counts;
      for (const auto length : heads.packing.lengths) {
        const core::OverlappingBlocks blocks(length, size);
        blends.push_back(blocks.blend(false));
        counts.push_back(blocks.count);
      }
      c = torch::cat(blends, 1).view({layout.families, -1, 1, n}).to(heads.q.options());
      count = heads.packing.spread(counts);
    } else {
      c = layout.blend(options.python_blend).to(heads.q.options());
    }
    std::vector<LazyWeights> parts;
    std::vector<torch::Tensor> lse;
    AttentionResult blended;
    for (int64_t f = 0; f < layout.families; ++f) {
      AttentionResult part;
      if (packed) {
        const auto [in_blocks, inside] = family_by_block(heads, f, layout, count);
        auto with_gaps = inputs;
        const auto& real = inputs.key_padding_mask;
        with_gaps.key_padding_mask =
            real.defined() ? real & inside : inside.expand({heads.q.size(0), -1});
        part = attend(in_blocks, with_gaps);
      } else {
        part = attend(heads, inputs, layout.family(f));
      }
      const auto output = part.output * c[f].unsqueeze(-1);
      blended.output = f == 0 ? output : blended.output + output;
      lse.push_back(part.lse);
      parts.push_back(std::move(part.weights));
    }
    blended.lse = core::logsumexp_of_rounds(torch::stack(lse));
    const std::vector<int64_t> sizes = parts[0].sizes().vec();
    if (options.python_blend) {
      blended.weights = {sizes, [=](int64_t begin, int64_t end) {
                           return last_block_wins(layout, parts, begin, end);
                         }};
    } else {
      blended.weights = {sizes, [=](int64_t begin, int64_t end) {
                           torch::Tensor sum;
                           for (size_t f = 0; f < parts.size(); ++f) {
                             const auto w =
                                 parts[f].rows(begin, end) *
                                 c[static_cast<int64_t>(f)].slice(-1, begin, end).unsqueeze(-1);
                             sum = f == 0 ? w : sum + w;
                           }
                           return sum;
                         }};
    }
    return blended;
  }

  /// The Python library writes weights block by block: of all blocks that hold a pair the last
  /// wins.
  static torch::Tensor last_block_wins(const core::OverlappingBlocks& layout,
                                       const std::vector<LazyWeights>& parts, int64_t begin,
                                       int64_t end) {
    auto weights = parts[0].rows(begin, end);
    auto block = layout.block_of(0, begin, end).to(weights.device());
    for (int64_t f = 1; f < layout.families; ++f) {
      const auto other = layout.block_of(f, begin, end).to(weights.device());
      weights =
          torch::where(other > block, parts[static_cast<size_t>(f)].rows(begin, end), weights);
      block = torch::maximum(block, other);
    }
    return weights;
  }
};

/// Example: `BlockSelfAttention attn({.d_model = 256, .block_size = 64, .overlap = true});`
using BlockSelfAttention = Holder<BlockSelfAttentionImpl>;

}  // namespace attzoo
