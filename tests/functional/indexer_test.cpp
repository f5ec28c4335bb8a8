#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/indexer.hpp>
#include <attzoo/functional/masks.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/expect_error.hpp"

namespace attzoo::testing::indexer_test {
namespace {

constexpr int64_t B = 2, HI = 3, L = 9, S = 11, DI = 4;

Indexer indexer(int64_t l = L, int64_t s = S) {
  const auto o = torch::kFloat64;
  return {torch::randn({B, HI, l, DI}, o).requires_grad_(),
          torch::randn({B, s, DI}, o).requires_grad_(),
          torch::randn({B, HI, l}, o).requires_grad_()};
}

/// The scores by their definition, [B, L, S].
torch::Tensor scores(const Indexer& x, double scale) {
  auto sum = torch::zeros({x.q.size(0), x.q.size(2), x.k.size(1)}, torch::kFloat64);
  for (int64_t h = 0; h < x.q.size(1); ++h) {
    const auto products = torch::matmul(x.q.select(1, h), x.k.mT()) * scale;
    sum = sum + torch::relu(products) * x.w.select(1, h).unsqueeze(-1);
  }
  return sum;
}

TEST(Indexer, ScoresAndChoice) {
  torch::manual_seed(1);
  const auto x = indexer();
  const auto want = scores(x, 0.5);
  EXPECT_TRUE(torch::allclose(indexer_scores(x, 0, L), want, 1e-12, 1e-14));
  EXPECT_TRUE(torch::allclose(indexer_scores(x, 2, 5), want.slice(1, 2, 5), 1e-12, 1e-14));
  for (const int64_t k : {1, 4, 50}) {
    const auto got = choose_keys(x, k, causal());
    ASSERT_EQ(got.sizes(), (std::vector<int64_t>{B, 1, L, std::min(k, S)}));
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = 0; i < L; ++i) {
        std::vector<std::pair<double, int64_t>> best;
        for (int64_t j = 0; j <= i + S - L; ++j) best.emplace_back(want[b][i][j].item<double>(), j);
        std::sort(best.rbegin(), best.rend());  // the later one of equals
        best.resize(std::min<size_t>(best.size(), static_cast<size_t>(k)));
        std::vector<int64_t> chosen, found;
        for (const auto& [score, j] : best) chosen.push_back(j);
        for (int64_t m = 0; m < got.size(3); ++m) {
          if (got[b][0][i][m].item<int64_t>() >= 0)
            found.push_back(got[b][0][i][m].item<int64_t>());
        }
        std::sort(chosen.begin(), chosen.end());
        std::sort(found.begin(), found.end());
        EXPECT_EQ(found, chosen) << b << " " << i;
      }
    }
  }
}

TEST(Indexer, LossIsTheDivergenceFromAttention) {
  torch::manual_seed(2);
  for (const int64_t n : {9, 1000}) {  // 1000: several chunks
    const auto x = indexer(n, n);
    const auto q = torch::randn({B, 2, n, 6}, torch::kFloat64);
    const auto mask = causal() && !blocks(3);  // rows without keys, too
    const torch::Tensor w = attention(q, q, q, mask).weights;
    auto p = w.sum(1);
    p = p / p.sum(-1, true).clamp_min(1e-300);
    const auto allowed = (w > 0).any(1);
    const auto chosen = choose_keys(x, 3, mask);
    const auto kept = torch::zeros({B, n, n + 1}, torch::kBool)
                          .scatter(2, torch::where(chosen < 0, n, chosen).squeeze(1), true)
                          .slice(2, 0, n);
    for (const bool sparse : {false, true}) {
      const auto among = sparse ? kept : allowed;
      auto target = p * among;
      target = target / target.sum(-1, true).clamp_min(1e-300);
      const auto logs = torch::log_softmax(scores(x, 0.5).masked_fill(~among, -1e300), -1);
      const auto want =
          (torch::xlogy(target, target) - target * logs.masked_fill(~among, 0)).sum(-1);
      const auto got = indexer_loss(x, attention(q, q, q, mask).weights, mask,
                                    sparse ? chosen : torch::Tensor());
      EXPECT_TRUE(torch::allclose(got, want, 1e-10, 1e-12));
      EXPECT_TRUE((got.select(1, 0) == 0).all().item<bool>());
      const auto c = torch::randn_like(want);
      const std::vector<torch::Tensor> leaves{x.q, x.k, x.w};
      const auto a = torch::autograd::grad({(got * c).sum()}, leaves),
                 b = torch::autograd::grad({(want * c).sum()}, leaves, {}, true);
      for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(torch::allclose(a[i], b[i], 1e-9, 1e-11)) << i;
    }
  }
}

TEST(Indexer, Errors) {
  auto x = indexer();
  const auto bad = [&](const Indexer& of, const std::vector<std::string>& parts) {
    expect_error([&] { choose_keys(of, 3); }, parts);
    expect_error([&] { indexer_scores(of, 0, 1); }, parts);
  };
  bad({x.q.flatten(2), x.k, x.w}, {"q", "[B, HI, L, DI]"});
  bad({x.q, x.k.slice(2, 1), x.w}, {"k", "DI=4"});
  bad({x.q, x.k, x.w.slice(1, 1)}, {"w", "HI=3"});
  bad({x.q, x.k.to(torch::kFloat32), x.w}, {"k", "dtype"});
  bad({x.q, x.k, x.w.to(torch::kFloat32)}, {"w", "dtype"});
  bad({x.q, x.k, x.w, -1.0}, {"scale", "-1"});
  expect_error([&] { choose_keys(x, 0); }, {"choose_keys", "top_k", "0"});
  expect_error([&] { indexer_scores(x, 3, 99); }, {"indexer_scores", "99"});
  const auto w =
      attention(torch::randn({B, 2, L, 4}), torch::randn({B, 2, L, 4}), torch::randn({B, 2, L, 4}))
          .weights;
  expect_error([&] { indexer_loss(x, w); }, {"indexer_loss", "weights", "S=11"});
}

}  // namespace
}  // namespace attzoo::testing::indexer_test
