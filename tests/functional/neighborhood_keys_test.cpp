#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/neighborhood_keys.hpp>

#include "support/expect_error.hpp"

namespace attzoo::testing::neighborhood_keys_test {
namespace {

TEST(NeighborhoodKeys, AreThoseOfTheMask) {
  torch::manual_seed(2);
  const auto to = [](int64_t most) { return torch::randint(most, {1}).item<int64_t>() + 1; };
  for (int round = 0; round < 200; ++round) {
    const auto dimensions = static_cast<size_t>(to(3));
    std::vector<int64_t> n, k, d;
    std::vector<bool> causal;
    int64_t tokens = 1;
    for (size_t i = 0; i < dimensions; ++i) {
      n.push_back(to(9));
      causal.push_back(to(3) == 1);
      k.push_back(causal[i] ? to(11) : 2 * to(6) - 1);
      d.push_back(to(4));
      tokens *= n[i];
    }
    const auto index = neighborhood_keys(n, k, d, causal).index[0][0].to(torch::kInt64);  // [L, M]
    auto listed = torch::zeros({tokens, tokens + 1}, torch::kInt64);  // the last: none
    listed.scatter_add_(1, torch::where(index < 0, tokens, index), torch::ones_like(index));
    const auto mask = create_mask(neighborhood(n, k, d, causal), 1, 1, tokens, tokens)[0][0];
    EXPECT_TRUE(torch::equal(listed.slice(1, 0, tokens), mask.to(torch::kInt64)));
  }
}

TEST(NeighborhoodKeys, GiveTheSameAttention) {
  torch::manual_seed(3);
  const auto random = [] { return torch::randn({2, 3, 30, 4}, torch::kFloat64); };
  const auto q = random(), k = random(), v = random();
  const auto listed = chosen_attention(q, k, v, neighborhood_keys({5, 6}, {3, 1}, {1, 2}));
  const auto masked = attention(q, k, v, neighborhood({5, 6}, {3, 1}, {1, 2}));
  EXPECT_TRUE(torch::allclose(listed.output, masked.output, 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(listed.lse, masked.lse, 1e-10, 1e-12));
}

TEST(NeighborhoodKeys, Errors) {
  expect_error([] { neighborhood_keys({4, 4}, {2}); }, {"neighborhood", "kernel_size", "odd", "2"});
  expect_error([] { neighborhood_keys({4, 0}, {3}); }, {"neighborhood", "grid", "0"});
}

}  // namespace
}  // namespace attzoo::testing::neighborhood_keys_test
