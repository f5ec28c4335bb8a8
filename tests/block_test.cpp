#include <attzoo/block.hpp>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::block_test {
namespace {

struct BlockTraits : PlainTraits {
  using Module = BlockSelfAttention;
  static BlockSelfAttentionOptions options() {
    return {.d_model = 12, .num_heads = 3, .block_size = 5, .dropout = 0, .bias = true};
  }
  static torch::Tensor allowed(int64_t n) { return create_block_mask(n, 5); }
};
INSTANTIATE_TEST_SUITE_P(Block, MechanismContract, mechanism<BlockTraits>());

TEST(Block, OneBlockEqualsMultiHead) {
  expect_equivalent(
      BlockSelfAttention({.d_model = 12, .num_heads = 3, .block_size = 24, .dropout = 0}),
      MultiHeadSelfAttention(12, 3));
}

/// Blocks by a plain loop, blended with weights proportional to the distance to the nearer end.
TEST(Block, OverlapIsTheWeightedMeanOfItsBlocks) {
  for (const int64_t size : {1, 2, 3, 4, 5, 8, 30}) {
    BlockSelfAttention m(
        {.d_model = 12, .num_heads = 3, .block_size = size, .overlap = true, .dropout = 0});
    MultiHeadSelfAttention dense({.d_model = 12, .num_heads = 3, .dropout = 0});
    load_state_dict(*dense, state_dict(*m));
    m->to(torch::kFloat64);
    dense->to(torch::kFloat64);
    const int64_t n = 19, step = std::max<int64_t>(1, size / 2);
    auto x = torch::randn({2, n, 12}, torch::kFloat64).requires_grad_();
    auto sum = torch::zeros({2, n, 12}, torch::kFloat64), total = torch::zeros({n, 1});
    auto weights = torch::zeros({2, 3, n, n}, torch::kFloat64);
    for (int64_t begin = 0;; begin += step) {
      const int64_t end = std::min(begin + size, n), length = end - begin;
      const auto i = torch::arange(length, torch::kFloat64);
      const auto c = torch::minimum(i + 1, static_cast<double>(length) - i).unsqueeze(1);
      const auto part = dense(x.slice(1, begin, end));
      sum = sum + torch::constant_pad_nd(part.output * c, {0, 0, begin, n - end});
      total = total + torch::constant_pad_nd(c, {0, 0, begin, n - end});
      weights = weights + torch::constant_pad_nd(torch::Tensor(part.weights) * c,
                                                 {begin, n - end, begin, n - end});
      if (end == n) break;
    }
    const auto r = m(x);
    EXPECT_TRUE(torch::allclose(r.output, sum / total, 1e-10, 1e-12)) << size;
    EXPECT_TRUE(torch::allclose(r.weights, weights / total, 1e-10, 1e-12)) << size;
    gradcheck([&] { return m(x).output.square().sum(); }, {x}, "overlapping blocks");
  }
}

TEST(Block, OverlappingBlocksBeginAnewInEveryDocument) {
  for (const int64_t size : {1, 3, 4, 7, 16, 40, 1000}) {
    BlockSelfAttention m(
        {.d_model = 12, .num_heads = 3, .block_size = size, .overlap = true, .dropout = 0});
    expect_packs(m, "blocks of " + std::to_string(size));
  }
  expect_error(
      [] {
        BlockSelfAttention({.d_model = 16, .overlap = true, .python_blend = true})(
            torch::randn({1, 6, 16}), {.documents = {.offsets = torch::tensor({0, 6})}});
      },
      {"BlockSelfAttention", "python_blend", "documents"});
}

TEST(Block, HugeBlocksAreOne) {
  for (const bool overlap : {false, true}) {
    expect_equivalent(BlockSelfAttention({.d_model = 12,
                                          .num_heads = 3,
                                          .block_size = std::numeric_limits<int64_t>::max(),
                                          .overlap = overlap,
                                          .dropout = 0}),
                      MultiHeadSelfAttention(12, 3));
  }
}

/// lse is -inf in all blocks around a masked token: no gradient may meet inf - inf.
TEST(Block, MaskedRowsOfOverlappingBlocks) {
  BlockSelfAttention m(
      {.d_model = 12, .num_heads = 3, .block_size = 4, .overlap = true, .dropout = 0});
  m->to(torch::kFloat64);
  auto x = torch::randn({1, 9, 12}, torch::kFloat64).requires_grad_();
  auto mask = torch::ones({9, 9}, torch::kBool);
  mask[4] = false;
  const auto r = m(x, {.mask = mask});
  EXPECT_EQ(r.lse.isinf().sum().item<int64_t>(), 3);
  const auto loss = r.output.square().sum() + r.lse.masked_fill(r.lse.isinf(), 0).sum();
  EXPECT_TRUE(torch::autograd::grad({loss}, {x})[0].isfinite().all().item<bool>());
}

TEST(Block, ConstructorAndForwardErrors) {
  expect_error([] { BlockSelfAttention({.d_model = 16, .block_size = 0}); },
               {"BlockSelfAttention", "block_size", "0"});
  BlockSelfAttention m({.d_model = 16, .block_size = 4, .overlap = true});
  const auto x = torch::randn({1, 8, 16});
  expect_error(
      [&] {
        m(x, {.context = torch::randn({1, 9, 16})});
      },
      {"BlockSelfAttention", "overlap", "context"});
}

}  // namespace
}  // namespace attzoo::testing::block_test
