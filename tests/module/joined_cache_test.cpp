// The cache of several modules: what each part keeps, together.

#include <gtest/gtest.h>
#include <attzoo/combined.hpp>
#include <attzoo/local.hpp>
#include <attzoo/multi_head.hpp>

#include "support/expect_error.hpp"

namespace attzoo::testing {
namespace {

TEST(JoinedCache, AdvancesAllPartsOrNone) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(3);
  constexpr int64_t kWidth = 16;
  // The second one drops at random while training, which is an error; the first has seen the token.
  const MultiHeadSelfAttention a({.d_model = kWidth, .num_heads = 2, .dropout = 0, .causal = true});
  const MultiHeadSelfAttention b(
      {.d_model = kWidth, .num_heads = 2, .dropout = 0.5, .causal = true});
  auto mix = combined(a, b);
  mix->to(torch::kFloat64);
  mix->eval();
  const auto x = torch::randn({1, 90, kWidth}, torch::kFloat64);
  const auto want = mix(x).output;
  auto cache = mix->make_cache(1, 128);
  mix(x.slice(1, 0, 20), {.cache = cache});
  mix->train();
  for (const int64_t L : {1, 60}) {
    expect_error([&] { mix(x.slice(1, 20, 20 + L), {.cache = cache}); }, {"eval()"});
    EXPECT_EQ(cache.length(), 20);
  }
  mix->eval();
  EXPECT_TRUE(torch::allclose(mix(x.slice(1, 20), {.cache = cache}).output, want.slice(1, 20)));
}

/// Sizes are sums; what one part has forgotten, none can take back.
TEST(JoinedCache, IsTheSumOfItsParts) {
  const torch::NoGradGuard no_grad;
  const MultiHeadSelfAttention all({.d_model = 16, .num_heads = 2, .dropout = 0, .causal = true});
  const LocalSelfAttention near(
      {.d_model = 16, .num_heads = 2, .window_size = 4, .dropout = 0, .causal = true});
  auto mix = combined(all, near);
  mix->eval();
  auto cache = mix->make_cache(1, 200);
  EXPECT_EQ(cache.bytes(), all->make_cache(1, 200).bytes() + near->make_cache(1, 200).bytes());
  mix(torch::randn({1, 190, 16}), {.cache = cache});
  EXPECT_EQ(cache.length(), 190);
  expect_error([&] { cache.truncate(50); }, {"forgotten"});
  cache.truncate(180);
  EXPECT_EQ(cache.length(), 180);
  const auto copy = cache.clone();
  cache.reset();
  EXPECT_EQ(cache.length(), 0);
  EXPECT_EQ(copy.length(), 180);
}

}  // namespace
}  // namespace attzoo::testing
