#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/chosen_keys.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/scores.hpp>

#include <cmath>
#include <utility>
#include <vector>

#include "support/error_rule.hpp"
#include "support/expect_error.hpp"

namespace attzoo::testing::chosen_keys_test {
namespace {

constexpr int64_t B = 2, H = 4, Hkv = 2, L = 17, S = 21;

/// Three numbers of blocks for each query, some of them none.
torch::Tensor choose(int64_t heads, int64_t blocks, int64_t batch = B) {
  const auto index = std::get<1>(torch::rand({batch, heads, L, blocks}).topk(3, -1));
  return index.masked_fill(torch::rand(index.sizes()) < 0.2, -1);
}

/// The pairs that were chosen, bool [B, H, L, S], one after another.
torch::Tensor pairs(const ChosenKeys& chosen) {
  const auto& index = chosen.index;
  auto found = torch::zeros({B, H, L, S}, torch::kBool);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t h = 0; h < H; ++h) {
      for (int64_t i = 0; i < L; ++i) {
        for (int64_t m = 0; m < index.size(3); ++m) {
          const auto n = index[index.size(0) == 1 ? 0 : b][h * index.size(1) / H][i][m];
          const int64_t first = n.item<int64_t>() * chosen.block_size;
          for (int64_t j = first; n.item<int64_t>() >= 0 && j < first + chosen.block_size; ++j) {
            if (j < S) found[b][h][i][j] = true;
          }
        }
      }
    }
  }
  return found;
}

struct Leaves {
  torch::Tensor q, k, v;
  explicit Leaves(torch::ScalarType dtype = torch::kFloat64)
      : q(torch::randn({B, H, L, 8}, dtype).requires_grad_()),
        k(torch::randn({B, Hkv, S, 8}, dtype).requires_grad_()),
        v(torch::randn({B, Hkv, S, 5}, dtype).requires_grad_()) {}
};

TEST(ChosenKeys, IsAttentionUnderTheMaskOfThePairs) {
  torch::manual_seed(1);
  const Leaves x;
  const auto bias = torch::randn({B, H, L, S}, torch::kFloat64).requires_grad_();
  const auto mask = torch::rand({B, H, L, S}) < 0.8;
  for (const int64_t heads : {int64_t{1}, Hkv, H}) {
    for (const int64_t size : {1, 4}) {
      const ChosenKeys chosen{choose(heads, (S + size - 1) / size, heads == 1 ? 1 : B), size};
      const auto allowed = mask_tensor(pairs(chosen));
      const std::vector<std::pair<AnyMask, core::AnyScore>> modifiers{
          {full(), {}}, {causal(), {}}, {mask_tensor(mask), {}}, {causal(), bias_tensor(bias)}};
      for (const auto& [also, score] : modifiers) {
        const auto want = attention(x.q, x.k, x.v, allowed && also, score);
        const auto got = chosen_attention(x.q, x.k, x.v, chosen, also, score);
        EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-10, 1e-12));
        EXPECT_TRUE(torch::allclose(got.lse, want.lse, 1e-10, 1e-12));
        EXPECT_TRUE(torch::allclose(got.weights, want.weights, 1e-10, 1e-12));
        EXPECT_TRUE(torch::allclose(got.weights.rows(3, 9), want.weights.rows(3, 9), 1e-10, 1e-12));
        std::vector<torch::Tensor> leaves{x.q, x.k, x.v};
        if (!score.is_identity()) leaves.push_back(bias);
        const auto sum = [](const AttentionResult& r) {
          return r.output.sin().sum() + r.lse.nan_to_num(0.0, 0.0, 0.0).cos().sum();
        };
        const auto exact = torch::autograd::grad({sum(want)}, leaves, {}, true, true);
        for (const bool again : {false, true}) {
          const auto grads = torch::autograd::grad({sum(got)}, leaves, {}, true, again);
          for (size_t i = 0; i < leaves.size(); ++i) {
            EXPECT_TRUE(torch::allclose(grads[i], exact[i], 1e-10, 1e-12)) << i << again;
          }
          if (!again) continue;
          const auto second = torch::autograd::grad({grads[1].sin().sum()}, leaves, {}, true);
          const auto want_second = torch::autograd::grad({exact[1].sin().sum()}, leaves, {}, true);
          for (size_t i = 0; i < leaves.size(); ++i) {
            EXPECT_TRUE(torch::allclose(second[i], want_second[i], 1e-9, 1e-11)) << i;
          }
        }
      }
    }
  }
}

TEST(ChosenKeys, ManyChunksInAllTypesFollowTheErrorRule) {
  torch::manual_seed(2);
  constexpr int64_t n = 700, M = 96;  // chunks of a few rows
  const auto index = std::get<1>(torch::rand({1, 1, n, n}).topk(M, -1));
  const auto allowed = torch::zeros({1, 1, n, n}, torch::kBool).scatter(3, index, true);
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    std::vector<torch::Tensor> low, gold;
    for (const int64_t heads : {8, 2, 2}) {
      const auto t = torch::randn({1, n, heads, 16}, dtype).transpose(1, 2);  // as modules have it
      low.push_back(t.detach().requires_grad_());
      gold.push_back(t.detach().to(torch::kFloat64).requires_grad_());
    }
    const auto cotangent = torch::randn({1, 8, n, 16}, dtype);
    const auto plain = [&](const std::vector<torch::Tensor>& x) {
      const auto each = [](const torch::Tensor& t) { return t.repeat_interleave(4, 1); };
      const auto scores = torch::matmul(x[0], each(x[1]).mT()) / 4.0;
      return torch::matmul(torch::softmax(scores.masked_fill(allowed.logical_not(), -INFINITY), -1),
                           each(x[2]));
    };
    const auto backward = [&](const torch::Tensor& y, const std::vector<torch::Tensor>& x) {
      return torch::autograd::grad({(y * cotangent.to(y.scalar_type())).sum()}, x);
    };
    const auto got = chosen_attention(low[0], low[1], low[2], {.index = index}).output;
    const auto own = plain(low), exact = plain(gold);
    expect_within_rule(got, exact, own, 2, M, "output");
    const auto a = backward(got, low), b = backward(exact, gold), c = backward(own, low);
    for (size_t i = 0; i < 3; ++i) expect_within_rule(a[i], b[i], c[i], 3, n, "gradient");
  }
}

TEST(ChosenKeys, WeightsAreThoseThatMadeTheOutput) {
  torch::manual_seed(3);
  constexpr int64_t n = 300, M = 200;
  const auto q = torch::randn({1, 4, n, 64}, torch::kFloat64),
             k = torch::randn({1, 2, n, 64}, torch::kFloat64);
  const auto index = std::get<1>(torch::rand({1, 2, n, n}).topk(M, -1));
  const auto r = chosen_attention(q, k, k, {.index = index}, {}, {}, {.dropout = 0.4, .seed = 7});
  const torch::Tensor w = r.weights;
  EXPECT_TRUE(torch::allclose(torch::matmul(w, k.repeat_interleave(2, 1)), r.output, 1e-10, 1e-12));
  EXPECT_NEAR((w > 0).sum().item<double>() / static_cast<double>(4 * n * M), 0.6, 0.01);
  EXPECT_TRUE(torch::equal(r.weights.rows(101, 203), w.slice(2, 101, 203)));
  EXPECT_EQ(r.weights.rows(5, 5).numel(), 0);
}

TEST(ChosenKeys, NothingChosenIsZero) {
  const Leaves x;
  for (const int64_t m : {0, 2}) {
    const auto none = torch::full({1, 1, L, m}, -1, torch::kInt32);
    const auto r = chosen_attention(x.q, x.k, x.v, {.index = none});
    EXPECT_TRUE((r.output == 0).all().item<bool>());
    EXPECT_TRUE((r.lse == -INFINITY).all().item<bool>());
    for (const auto& g : torch::autograd::grad({r.output.sum()}, {x.q, x.k, x.v})) {
      EXPECT_TRUE((g == 0).all().item<bool>());
    }
  }
  const auto empty = torch::zeros({B, H, 0, 8}, torch::kFloat64);
  const auto r =
      chosen_attention(empty, x.k, x.v, {.index = torch::zeros({1, 1, 0, 3}).to(torch::kInt64)});
  EXPECT_EQ(r.output.sizes(), (std::vector<int64_t>{B, H, 0, 5}));
}

TEST(ChosenKeys, Errors) {
  const Leaves x;
  const auto bad = [&](const ChosenKeys& chosen, std::vector<std::string> parts) {
    parts.push_back("chosen_attention");
    expect_error([&] { chosen_attention(x.q, x.k, x.v, chosen); }, parts);
  };
  const auto zeros = [](std::vector<int64_t> sizes) { return torch::zeros(sizes, torch::kInt64); };
  bad({}, {"index"});
  bad({.index = torch::zeros({1, 1, L, 2})}, {"integers", "Float"});
  bad({.index = zeros({1, 1, L})}, {"[1, 1, 17]"});
  bad({.index = zeros({1, 3, L, 2})}, {"[1, 3, 17, 2]"});
  bad({.index = zeros({3, 1, L, 2})}, {"[3, 1, 17, 2]"});
  bad({.index = zeros({1, 1, L + 1, 2})}, {"L=17"});
  bad({.index = zeros({1, 1, L, 2}) + S}, {"21"});
  bad({.index = zeros({1, 1, L, 2}) - 2}, {"-2"});
  bad({.index = zeros({1, 1, L, 2}) + 6, .block_size = 4}, {"6"});
  bad({.index = zeros({1, 1, L, 2}), .block_size = 0}, {"block_size"});
  expect_error(
      [&] {
        chosen_attention(x.q, x.k, x.v, {.index = zeros({1, 1, L, 2})}, {},
                         sink(torch::zeros({H})));
      },
      {"chosen_attention", "sink"});
}

}  // namespace
}  // namespace attzoo::testing::chosen_keys_test
