#include <attzoo/functional/chosen_keys.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/sorted_blocks.hpp>

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <utility>
#include <vector>

#include "support/error_rule.hpp"

namespace attzoo::testing::sorted_blocks_test {
namespace {

struct Case {
  int64_t B, H, kv_heads, choices, L, S, size, count;
};

/// Blocks for each query, some of them none.
torch::Tensor choose(const Case& c) {
  const int64_t blocks = (c.S - 1) / c.size + 1;
  const auto index = std::get<1>(
      torch::rand({c.choices == 1 ? 1 : c.B, c.choices, c.L, blocks}).topk(c.count, -1));
  return index.masked_fill(torch::rand(index.sizes()) < 0.2, -1);
}
/// bool [1 or B, choices or H, L, S]
torch::Tensor pairs(const Case& c, const torch::Tensor& index) {
  const int64_t blocks = (c.S - 1) / c.size + 1;
  auto sizes = index.sizes().vec();
  sizes.back() = blocks + 1;  // the last: none
  const auto chosen = torch::zeros(sizes, torch::kBool)
                          .scatter(3, index.masked_fill(index < 0, blocks), true)
                          .slice(3, 0, blocks)
                          .repeat_interleave(c.size, 3)
                          .slice(3, 0, c.S);
  return c.choices == 1 ? chosen : chosen.repeat_interleave(c.H / c.choices, 1);
}

std::vector<torch::Tensor> tensors(const Case& c, torch::ScalarType dtype) {
  const auto random = [&](int64_t heads, int64_t n, int64_t features) {  // as modules have them
    return torch::randn({c.B, n, heads, features}, dtype).transpose(1, 2);
  };
  return {random(c.H, c.L, 8), random(c.kv_heads, c.S, 8), random(c.kv_heads, c.S, 5)};
}

const std::vector<Case> kCases{{1, 4, 4, 4, 300, 300, 32, 4},  {2, 4, 2, 2, 200, 230, 16, 5},
                               {2, 6, 2, 6, 150, 150, 24, 6},  {1, 6, 3, 1, 130, 401, 64, 3},
                               {1, 2, 1, 1, 9000, 128, 16, 4}, {2, 2, 2, 2, 64, 64, 64, 1}};

TEST(SortedBlocks, AreAttentionUnderTheMaskOfThePairs) {
  torch::manual_seed(1);
  for (const auto& c : kCases) {
    const auto index = choose(c);
    const auto allowed = mask_tensor(pairs(c, index));
    const auto x = tensors(c, torch::kFloat64);
    const std::vector<AnyMask> masks{full(), causal(), window(40, 3) && causal(), window(20, 9)};
    for (const auto& mask : masks) {
      const double scale = 0.4;
      const core::SortedBlocks blocks({x[0], x[1], x[2]}, index, c.size, mask, scale);
      ASSERT_TRUE(blocks.pay());
      std::vector<torch::Tensor> leaves;
      for (const auto& t : x) leaves.push_back(t.detach().requires_grad_());
      const auto want = attention(leaves[0], leaves[1], leaves[2], allowed && mask,
                                  AttentionOptions{.scale = scale});
      const auto got = blocks.forward({x[0], x[1], x[2]});
      EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-10, 1e-12));
      EXPECT_TRUE(torch::allclose(got.lse, want.lse, 1e-10, 1e-12));
      const auto along = torch::randn_like(want.output), of_lse = torch::randn_like(want.lse);
      const auto finite = want.lse.isfinite();
      for (const bool output : {false, true}) {
        for (const bool lse : {false, true}) {
          if (!output && !lse) continue;
          torch::Tensor loss = torch::zeros({}, torch::kFloat64);
          if (output) loss = loss + (want.output * along).sum();
          if (lse) loss = loss + torch::where(finite, want.lse * of_lse, 0).sum();
          const auto exact = torch::autograd::grad({loss}, leaves, {}, true, false, true);
          const auto grads = blocks.gradients(
              {x[0], x[1], x[2]}, got,
              {output ? along : torch::Tensor(),
               lse ? of_lse.masked_fill(finite.logical_not(), 0) : torch::Tensor()});
          for (size_t i = 0; i < 3; ++i) {
            const auto exactly = exact[i].defined() ? exact[i] : torch::zeros_like(x[i]);
            EXPECT_TRUE(torch::allclose(grads[i], exactly, 1e-10, 1e-12)) << i << output << lse;
          }
        }
      }
    }
  }
}

TEST(SortedBlocks, AreTakenByChosenAttentionInAllTypes) {
  torch::manual_seed(2);
  const Case c{1, 8, 2, 2, 500, 500, 32, 5};
  const auto index = choose(c);
  const auto allowed = pairs(c, index) & torch::ones({500, 500}, torch::kBool).tril();
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    std::vector<torch::Tensor> low, gold;
    for (const auto& t : tensors(c, dtype)) {
      low.push_back(t.detach().requires_grad_());
      gold.push_back(t.detach().to(torch::kFloat64).requires_grad_());
    }
    ASSERT_TRUE(core::SortedBlocks({low[0], low[1], low[2]}, index, 32, causal(), 1.0).pay());
    const auto cotangent = torch::randn({1, 8, 500, 5}, dtype);
    const auto plain = [&](const std::vector<torch::Tensor>& x) {
      const auto each = [](const torch::Tensor& t) { return t.repeat_interleave(4, 1); };
      const auto scores = torch::matmul(x[0], each(x[1]).mT()) / std::sqrt(8.0);
      const auto weights = torch::softmax(scores.masked_fill(allowed.logical_not(), -INFINITY), -1);
      return torch::matmul(weights.masked_fill(allowed.any(-1, true).logical_not(), 0), each(x[2]));
    };
    const auto backward = [&](const torch::Tensor& y, const std::vector<torch::Tensor>& x) {
      auto grads = torch::autograd::grad({(y * cotangent.to(y.scalar_type())).sum()}, x);
      for (auto& g : grads) g = g.nan_to_num(0.0);  // of queries without a key
      return grads;
    };
    const auto got = chosen_attention(low[0], low[1], low[2], {index, 32}, causal()).output;
    const auto own = plain(low), exact = plain(gold);
    expect_within_rule(got, exact, own, 2, 160, "output");
    const auto a = backward(got, low), b = backward(exact, gold), d = backward(own, low);
    for (size_t i = 0; i < 3; ++i) expect_within_rule(a[i], b[i], d[i], 3, 500, "gradient");
  }
}

TEST(SortedBlocks, WhatIsNoNumberShowsWhereItWasChosen) {
  torch::manual_seed(3);
  const Case c{1, 2, 2, 2, 1024, 256, 16, 1};
  const auto x = tensors(c, torch::kFloat64);
  const auto index = choose(c);
  x[1][0][1][37][2] = std::nan("");  // of block 2
  const core::SortedBlocks blocks({x[0], x[1], x[2]}, index, c.size, full(), 1.0);
  ASSERT_TRUE(blocks.pay());
  const auto r = blocks.forward({x[0], x[1], x[2]});
  auto met = index == 2;  // [1, 2, 1024, 1]
  met.select(1, 0).fill_(false);
  ASSERT_TRUE(met.any().item<bool>());
  EXPECT_TRUE(torch::equal(r.output.isnan().all(-1, true), met));
  EXPECT_TRUE(torch::equal(r.output.isnan().any(-1, true), met));
  EXPECT_TRUE(torch::equal(r.lse.isnan(), met.squeeze(-1)));
}

TEST(SortedBlocks, DoNotPayForFewQueriesSmallBlocksAndOtherMasks) {
  const auto pay = [](const Case& c, const core::AnyMask& mask) {
    const auto x = tensors(c, torch::kFloat32);
    return core::SortedBlocks({x[0], x[1], x[2]}, choose(c), c.size, mask, 1.0).pay();
  };
  EXPECT_TRUE(pay({1, 2, 2, 2, 256, 256, 16, 4}, {}));
  EXPECT_FALSE(pay({1, 2, 2, 2, 1, 256, 16, 4}, {}));
  EXPECT_FALSE(pay({1, 2, 2, 2, 256, 256, 8, 8}, {}));
  EXPECT_FALSE(pay({1, 2, 2, 2, 256, 256, 16, 4}, dilated(2)));
}

}  // namespace
}  // namespace attzoo::testing::sorted_blocks_test
