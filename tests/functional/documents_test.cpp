#include <gtest/gtest.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/modifiers.hpp>

#include "support/expect_error.hpp"

namespace attzoo::testing::documents_test {
namespace {

/// ids [R, S] -> allowed pairs [R, 1, S, S]
torch::Tensor same(const torch::Tensor& ids) {
  return (ids.unsqueeze(1) == ids.unsqueeze(2)).unsqueeze(1);
}

/// attention() under documents is attention() under the same mask as a tensor, with its gradients.
void expect_masks(const core::DocumentsMask& documents, const torch::Tensor& allowed, int64_t L,
                  const std::string& what) {
  const int64_t S = allowed.size(3);
  torch::manual_seed(2);
  const auto leaf = [](std::vector<int64_t> sizes) {
    return torch::randn(sizes, torch::kFloat64).requires_grad_();
  };
  const auto q = leaf({2, 2, L, 8}), k = leaf({2, 2, S, 8}), v = leaf({2, 2, S, 8});
  const auto g = torch::randn({2, 2, L, 8}, torch::kFloat64);
  const auto want = attention(q, k, v, mask_tensor(allowed.slice(2, S - L)));
  const auto expect = torch::autograd::grad({(want.output * g).sum()}, {q, k, v});
  for (const bool eager : {false, true}) {
    std::optional<EagerReferenceGuard> guard;
    if (eager) guard.emplace();
    const auto got = attention(q, k, v, documents);
    EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-10, 1e-12)) << what;
    EXPECT_TRUE(torch::allclose(got.lse, want.lse, 1e-10, 1e-12)) << what;
    EXPECT_TRUE(torch::allclose(got.weights.tensor(), want.weights.tensor(), 1e-10, 1e-12)) << what;
    const auto own = torch::autograd::grad({(got.output * g).sum()}, {q, k, v});
    for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(torch::allclose(own[i], expect[i], 1e-9, 1e-11));
  }
}

TEST(DocumentsMask, IsEqualityOfIds) {
  const auto lengths = torch::tensor({70, 1, 90, 39});
  const auto ids = torch::repeat_interleave(lengths).unsqueeze(0);
  for (const auto dtype : {torch::kInt64, torch::kInt32, torch::kUInt8}) {
    const auto offsets = torch::tensor({0, 70, 70, 71, 161, 200}).to(dtype);
    for (const int64_t L : {200, 33}) {
      expect_masks(documents(offsets), same(ids), L, "offsets");
      expect_masks(documents({.offsets = offsets}), same(ids), L, "offsets by name");
    }
  }
  constexpr auto kMost = std::numeric_limits<int64_t>::max();
  const auto names = torch::tensor({kMost, -kMost - 1, int64_t{0}, int64_t{-1}});
  const auto each = torch::stack({names.index({ids[0]}), names.flip(0).index({ids[0].flip(0)})});
  const auto scattered = torch::randint(-2, 2, {2, 200});
  for (const auto& batch : {each, scattered, each.slice(0, 0, 1)}) {
    expect_masks(documents(batch), same(batch), 200, "ids of each sequence");
    expect_masks(documents({.ids = batch}), same(batch), 100, "ids of each sequence by name");
  }
  expect_masks(documents({.ids = scattered[0]}), same(scattered.slice(0, 0, 1)), 200, "ids");
}

TEST(DocumentsMask, KeepsItsOwnCopy) {
  auto offsets = torch::tensor({0, 3, 6}), ids = torch::tensor({{0, 0, 0, 1, 1, 1}});
  const auto by_offsets = documents(offsets), by_ids = documents(ids);
  const auto want = same(ids.clone());
  offsets[1] = 5;
  ids.zero_();
  expect_masks(by_offsets, want, 6, "offsets");
  expect_masks(by_ids, want, 6, "ids");
}

TEST(DocumentsMask, Errors) {
  const auto bad = [](const torch::Tensor& t, std::vector<std::string> parts) {
    parts.push_back("documents");
    expect_error([&] { documents(t); }, parts);
  };
  bad({}, {"neither"});
  bad(torch::tensor({0, 3}, torch::kInt64).to(torch::kMeta), {"offsets", "meta"});
  bad(torch::tensor({0, 3}).to_sparse(), {"offsets", "dense"});
  bad(torch::tensor({false, true}), {"offsets", "integers", "Bool"});
  bad(torch::tensor({0.5, 3.5}), {"offsets", "integers", "Float"});
  bad(torch::zeros({0}, torch::kInt64), {"offsets", "[0]"});
  bad(torch::zeros({1, 1, 4}, torch::kInt64), {"offsets", "[1, 1, 4]"});
  bad(torch::ones({2, 4}), {"ids", "integers", "Float"});
  bad(torch::tensor({2, 4}), {"begin with 0", "2"});
  bad(torch::tensor({0, 4, 3}), {"decrease"});
  expect_error(
      [] {
        documents({.ids = torch::zeros({1, 1, 4}, torch::kInt64)});
      },
      {"documents", "ids", "[1, 1, 4]"});
  const auto t = torch::randn({2, 1, 6, 4});
  const auto meets = [&](const core::DocumentsMask& mask, std::vector<std::string> parts) {
    parts.push_back("documents");
    expect_error([&] { attention(t, t, t, mask); }, parts);
  };
  meets(documents(torch::tensor({int64_t{0}, int64_t{1} << 60})), {"S=6", "1152921504606846976"});
  meets(documents(torch::zeros({3, 6}, torch::kInt64)), {"ids", "B=2", "[3, 6]"});
  meets(documents(torch::zeros({2, 5}, torch::kInt64)), {"ids", "S=6", "[2, 5]"});
  expect_error(
      [&] {
        attention(torch::randn({2, 1, 7, 4}), t, t, documents(torch::tensor({0, 6})));
      },
      {"documents", "L <= S", "L=7"});
}

}  // namespace
}  // namespace attzoo::testing::documents_test
