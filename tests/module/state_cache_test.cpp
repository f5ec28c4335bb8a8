#include <gtest/gtest.h>
#include <attzoo/module/state_cache.hpp>

namespace attzoo::testing::state_cache_test {
namespace {

using core::StateCache;
using core::States;

StateCache make() {
  return StateCache({.owner = 0,
                     .batch = 2,
                     .capacity = 1 << 20,
                     .module_dtype = torch::kFloat32,
                     .dtype = torch::kFloat32,
                     .device = torch::kCPU},
                    /*input_dim=*/3);
}

/// The number of a token is its x; the state behind token n is n + 1, as that of its sum of tokens.
void append(StateCache& cache, int64_t L) {
  const int64_t n = cache.length();
  const auto x = torch::arange(n, n + L, torch::kFloat32).view({1, L, 1}).expand({2, L, 3});
  const auto state = [](int64_t tokens) {
    return States{torch::full({2, 1}, static_cast<double>(tokens))};
  };
  cache.take(x, state(n + L), cache.asks_between(L) ? state(n + L - core::kTakenBack) : States{},
             core::Past{.offset = n});
}

/// What it knows, and the tokens since then, amount to all of its tokens.
void expect_whole(const StateCache& cache) {
  const auto again = cache.to_compute_again();
  const int64_t known = cache.known().tokens;
  ASSERT_EQ(known + again.size(1), cache.length());
  const auto numbers = torch::arange(known, cache.length(), torch::kFloat32);
  EXPECT_TRUE(torch::equal(again[1].select(1, 0), numbers));
  if (known > 0) {
    EXPECT_EQ(cache.known().states[0][0].item<double>(), static_cast<double>(known));
  }
}

TEST(StateCache, TakesAnyDraftsBack) {
  torch::manual_seed(1);
  auto cache = make();
  int64_t most = 0;
  for (int i = 0; i < 2000; ++i) {
    append(cache, 1 + torch::randint(0, i % 10 == 0 ? 100 : 12, {1}).item<int64_t>());
    expect_whole(cache);
    most = std::max(most, cache.length());
    EXPECT_LE(cache.earliest(), std::max<int64_t>(1, most - core::kTakenBack));
    const int64_t least = std::max<int64_t>(0, most - core::kTakenBack);
    if (i % 3 == 0 && cache.length() > least) {
      cache.truncate(cache.length() -
                     torch::randint(0, cache.length() - least + 1, {1}).item<int64_t>());
      expect_whole(cache);
    }
  }
}

TEST(StateCache, StaysSmallAndForgetsAll) {
  auto cache = make();
  append(cache, 200);
  const auto bytes = cache.bytes();
  for (int i = 0; i < 500; ++i) append(cache, 1);
  EXPECT_LE(cache.bytes(), bytes + 2 * 8);  // a second mark
  cache.truncate(0);
  EXPECT_EQ(cache.length(), 0);
  EXPECT_TRUE(cache.known().states.empty());
  append(cache, 5);
  expect_whole(cache);
}

/// What a call that fails leaves behind.
TEST(StateCache, LosesNothingOfWhatItLends) {
  auto cache = make();
  for (const int64_t L : {3, 31, 1, 1, 70, 2}) {
    append(cache, L);
    const auto lent = cache.lend();
    EXPECT_EQ(lent[0][0].item<double>(), static_cast<double>(cache.length()));
    expect_whole(cache);
  }
}

TEST(StateCache, CopiesGoTheirOwnWay) {
  auto cache = make();
  append(cache, 40);
  const auto copy = std::dynamic_pointer_cast<StateCache>(cache.clone());
  append(cache, 3);
  cache.truncate(20);
  append(cache, 9);
  EXPECT_EQ(copy->length(), 40);
  expect_whole(*copy);
  expect_whole(cache);
  cache.reorder(torch::tensor({1, 1}));
  expect_whole(cache);
}

}  // namespace
}  // namespace attzoo::testing::state_cache_test
