// The tests of performer_attention() compare it with its definition; these are about the chunks.

#include <ATen/ops/allclose.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/performer_attention.hpp>

#include <vector>

namespace attzoo::testing {
namespace {

TEST(FavorByChunks, OfManyTokensAreThoseOfAllAtOnce) {
  torch::manual_seed(3);
  const auto P = orthogonal_features(300, 16).to(torch::kFloat64);
  auto real = torch::rand({2, 1000}) > 0.3;
  real[0].slice(0, 0, 600).fill_(false);  // chunks without a key
  for (const auto& padding : {torch::Tensor(), real}) {
    const auto leaf = [](int64_t n, int64_t size) {
      return (2 * torch::randn({2, 3, n, size}, torch::kFloat64)).requires_grad_();
    };
    const auto q = leaf(700, 16), k = leaf(1000, 16), v = leaf(1000, 5);
    const auto cotangent = torch::randn({2, 3, 700, 5}, torch::kFloat64);
    const auto results = [&] {
      const auto r = performer_attention(q, k, v, P, {.key_padding_mask = padding});
      auto all = torch::autograd::grad({r.output}, {q, k, v}, {cotangent});
      all.push_back(r.output.detach());
      all.push_back(r.weights.rows(600, 700).detach());
      return all;
    };
    const auto got = results();
    const EagerReferenceGuard eager;
    const auto want = results();
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_TRUE(torch::allclose(got[i], want[i], 1e-9, 1e-11))
          << i << " " << (got[i] - want[i]).abs().max().item<double>();
    }
  }
}

TEST(FavorByChunks, WeightsNoticeChangesInPlace) {
  const auto P = orthogonal_features(8, 4);  // is copied
  const auto q = torch::randn({1, 1, 6, 4}), v = torch::randn({1, 1, 6, 4});
  const auto r = performer_attention(q, q, v, P);
  P.normal_();
  EXPECT_TRUE(torch::allclose(r.weights.tensor().matmul(v), r.output, 1e-4, 1e-5));
  q.zero_();
  EXPECT_THROW(r.weights.tensor(), c10::ValueError);
}

}  // namespace
}  // namespace attzoo::testing
