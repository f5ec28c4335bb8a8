#include <attzoo/big_bird.hpp>

#include <set>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::big_bird_test {
namespace {

constexpr auto kDouble = torch::kFloat64;

/// Up to 36 tokens everybody attends to everybody, those of the contract's definition; caches,
/// with 150 of them, meet random blocks.
struct BigBirdTraits : PlainTraits {
  using Module = BigBirdSelfAttention;
  static BigBirdSelfAttentionOptions options() {
    return {.d_model = 12, .num_heads = 3, .block_size = 9, .num_random_blocks = 1, .bias = true};
  }
};
INSTANTIATE_TEST_SUITE_P(BigBird, MechanismContract, mechanism<BigBirdTraits>());

BigBirdSelfAttentionOptions small(int64_t random = 2) {
  return {.d_model = 12, .num_heads = 3, .block_size = 4, .num_random_blocks = random};
}

/// Which blocks attend to which, [H, blocks, blocks], and that all their pairs do.
torch::Tensor blocks_of(BigBirdSelfAttention& m, int64_t n, bool causal = false) {
  const int64_t size = m->options.block_size, blocks = (n + size - 1) / size;
  const auto x = torch::randn({1, n, 12});
  auto pairs = torch::Tensor(m(x, {.causal = causal}).weights)[0] > 0;
  auto some = torch::zeros({3, blocks, blocks}, torch::kBool);
  for (int64_t i = 0; i < blocks; ++i) {
    for (int64_t j = 0; j < blocks; ++j) {
      const auto part = pairs.slice(1, i * size, (i + 1) * size).slice(2, j * size, (j + 1) * size);
      for (int64_t h = 0; h < 3; ++h) {
        some[h][i][j] = part[h].any();
        if (i != j) {
          EXPECT_EQ(part[h].any().item<bool>(), part[h].all().item<bool>());
        }
      }
    }
  }
  return some;
}

TEST(BigBird, NeighboursGlobalAndRandomBlocks) {
  BigBirdSelfAttention m(small());
  for (const int64_t n : {40, 42, 77}) {  // the last block may be shorter
    const int64_t blocks = (n + 3) / 4;
    const auto all = blocks_of(m, n);
    EXPECT_TRUE(torch::equal(all, blocks_of(m, n)));
    EXPECT_FALSE(torch::equal(all[0], all[1]));
    std::set<int64_t> drawn;
    for (int64_t h = 0; h < 3; ++h) {
      for (int64_t i = 0; i < blocks; ++i) {
        int64_t others = 0;
        for (int64_t j = 0; j < blocks; ++j) {
          const bool is_near = i == 0 || i == blocks - 1 || j == 0 || j == blocks - 1 ||
                               std::abs(i - j) <= 1,
                     chosen = all[h][i][j].item<bool>();
          if (is_near) {
            EXPECT_TRUE(chosen) << h << " " << i << " " << j;
          }
          if (!is_near && chosen) drawn.insert(j);
          others += !is_near && chosen;
        }
        if (i > 0 && i < blocks - 1) {
          EXPECT_EQ(others, 2);
        }
      }
    }
    EXPECT_EQ(drawn.size(), static_cast<size_t>(blocks - 2));  // any may be drawn
  }
  auto other = small();
  other.seed = 1;
  BigBirdSelfAttention another(other);
  EXPECT_FALSE(torch::equal(blocks_of(m, 77), blocks_of(another, 77)));
  m->train();
  EXPECT_TRUE(torch::equal(blocks_of(m, 77), blocks_of(m, 77)));
}

TEST(BigBird, CausalBlocksDoNotDependOnTheLength) {
  BigBirdSelfAttention m(small());
  const auto of_77 = blocks_of(m, 77, true), of_40 = blocks_of(m, 40, true);
  EXPECT_TRUE(torch::equal(of_77.slice(1, 0, 10).slice(2, 0, 10), of_40));
  const auto counts = of_77.sum(2)[0];  // the first, two neighbours, and two of those before
  for (int64_t i = 0; i < 20; ++i)
    EXPECT_EQ(counts[i].item<int64_t>(), std::min<int64_t>(5, i + 1));
}

TEST(BigBird, IsAttentionUnderItsPattern) {
  BigBirdSelfAttention m(small());
  m->to(kDouble);
  MultiHeadSelfAttention dense(12, 3);
  dense->to(kDouble);
  load_state_dict(*dense, state_dict(*m));
  const auto x = torch::randn({2, 150, 12}, kDouble), cotangent = torch::randn_like(x);
  const auto pattern = torch::Tensor(m(x).weights).slice(0, 0, 1) > 0;
  const auto gradients = [&](auto& module, const AttentionInputs& in) {
    auto leaf = x.clone().requires_grad_();
    std::vector<torch::Tensor> leaves{leaf};
    for (const auto& p : module->parameters()) leaves.push_back(p);
    const auto out = module(leaf, in).output;
    auto all = torch::autograd::grad({(out * cotangent).sum()}, leaves);
    all.push_back(out);
    return all;
  };
  const auto got = gradients(m, {}), want = gradients(dense, {.mask = pattern});
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_TRUE(torch::allclose(got[i], want[i], 1e-10, 1e-12)) << i;
  }
}

TEST(BigBird, AllBlocksAreMultiHead) {
  auto options = small(100);
  expect_equivalent(BigBirdSelfAttention(options), MultiHeadSelfAttention(12, 3));
  options.causal = true;
  expect_equivalent(BigBirdSelfAttention(options),
                    MultiHeadSelfAttention({.d_model = 12, .num_heads = 3, .causal = true}));
}

TEST(BigBird, DocumentsAndCachesBeginAnew) {
  BigBirdSelfAttention m(small());
  expect_packs(AnyAttention(m), "BigBird");
  expect_goes_on_as_alone(AnyAttention(m), "BigBird");
}

TEST(BigBird, GivenBlocks) {
  BigBirdSelfAttention m(small());
  m->set_random_blocks(torch::tensor({5, 7}).view({1, 1, 2}));
  const auto all = blocks_of(m, 40);
  for (int64_t i = 1; i < 9; ++i) {
    EXPECT_TRUE(all[0][i][5].item<bool>() && all[2][i][7].item<bool>());
  }
  const auto own = torch::randint(10, {3, 8, 2});
  m->set_random_blocks(own);
  const auto each = blocks_of(m, 39);
  for (int64_t h = 0; h < 3; ++h) {
    for (int64_t i = 1; i < 9; ++i) {
      EXPECT_TRUE(each[h][i].index_select(0, own[h][i - 1]).all().item<bool>());
    }
  }
  expect_error([&] { blocks_of(m, 41); }, {"set_random_blocks", "11 blocks"});
  m->set_random_blocks(torch::Tensor());
  BigBirdSelfAttention fresh(small());
  EXPECT_TRUE(torch::equal(blocks_of(m, 40), blocks_of(fresh, 40)));
}

TEST(BigBird, RepeatedBlocksCountAgain) {
  auto options = small();
  options.count_repeats = true;
  BigBirdSelfAttention m(options);
  m->to(kDouble);
  const int64_t n = 38, size = 4, blocks = 10;
  const auto given = torch::randint(blocks, {3, blocks - 2, 2});
  m->set_random_blocks(given);
  const auto x = torch::randn({2, n, 12}, kDouble);
  const auto heads = [&](torch::nn::Linear w) { return split_heads(w(x), 3); };
  const auto q = heads(m->w_q), k = heads(m->w_k), v = heads(m->w_v);
  auto times = torch::zeros({3, n, n}, kDouble);
  for (int64_t h = 0; h < 3; ++h) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t b = i / size;
      std::vector<int64_t> named;
      if (b == 0 || b == blocks - 1) {
        for (int64_t j = 0; j < blocks; ++j) named.push_back(j);
      } else {
        const std::set<int64_t> near{0, b - 1, b, b + 1, blocks - 1};
        named.assign(near.begin(), near.end());
        for (const int64_t r : {0, 1}) named.push_back(given[h][b - 1][r].item<int64_t>());
      }
      for (const auto j : named) times[h][i].slice(0, j * size, (j + 1) * size) += 1;
    }
  }
  const auto s = torch::matmul(q, k.transpose(-2, -1)) / 2 + times.log();
  const auto r = m(x);
  EXPECT_TRUE(torch::allclose(r.weights, s.softmax(-1), 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(r.lse, s.logsumexp(-1), 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(
      r.output, m->w_o(torch::matmul(s.softmax(-1), v).transpose(1, 2).flatten(2)), 1e-10, 1e-12));
  expect_error([&] { m(x, {.score = sink(torch::zeros({3}))}); }, {"sink"});
}

TEST(BigBird, Errors) {
  BigBirdSelfAttention m(small());
  const auto give = [&](const torch::Tensor& t) { m->set_random_blocks(t); };
  expect_error([&] { give(torch::zeros({1, 1, 2})); }, {"set_random_blocks", "Float"});
  expect_error([&] { give(torch::zeros({1, 2}, torch::kInt64)); }, {"set_random_blocks", "[1, 2]"});
  expect_error([&] { give(torch::zeros({2, 1, 2}, torch::kInt64)); }, {"num_heads=3"});
  expect_error([&] { give(torch::full({1, 1, 2}, -1)); }, {"set_random_blocks", "-1"});
  give(torch::full({1, 1, 2}, 12));
  expect_error([&] { blocks_of(m, 40); }, {"set_random_blocks", "12", "10"});
  auto options = small();
  options.num_random_blocks = -1;
  expect_error([&] { BigBirdSelfAttention{options}; }, {"num_random_blocks", "-1"});
}

}  // namespace
}  // namespace attzoo::testing::big_bird_test
