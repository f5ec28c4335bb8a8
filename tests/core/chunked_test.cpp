#include <gtest/gtest.h>
#include <torch/types.h>
#include <attzoo/core/attention/chunked.hpp>
#include <attzoo/functional/modifiers.hpp>

#include <string>
#include <utility>
#include <vector>

// The path of other devices, here on the CPU: equal to the definition, and no larger than what a
// mask reaches.

namespace attzoo::testing::chunked_test {
namespace {

using core::Shape;

/// All allowed pairs must lie in the chunks, every row in one, and no key twice in a chunk.
void expect_covers(const core::AnyMask& mask, const Shape& n, const std::string& what) {
  const auto allowed =
      mask.evaluate(core::Grid(n, 0, n.L, torch::kCPU)).expand({n.B, n.H, n.L, n.S}).any(0).any(0);
  auto seen = torch::zeros({n.L, n.S}, torch::kInt64);
  auto rows = torch::zeros({n.L}, torch::kInt64);
  for (const auto& chunk : core::chunks(mask, n, 1)) {
    const auto q = chunk.rows(torch::kCPU).index(), kv = chunk.columns(torch::kCPU).index();
    rows.index_add_(0, q, torch::ones_like(q));
    const auto place = (q.unsqueeze(1) * n.S + kv).flatten();
    seen.view({-1}).index_add_(0, place, torch::ones_like(place));
  }
  EXPECT_TRUE((rows == 1).all().item<bool>()) << what;
  EXPECT_LE(n.S > 0 ? seen.max().item<int64_t>() : 0, 1) << what;
  EXPECT_FALSE((allowed & (seen == 0)).any().item<bool>()) << what;
}

/// Output, lse and gradients in chunks of 16 rows and more must be those of the definition.
void expect_the_reference(const core::AnyMask& mask, const core::AnyScore& score,
                          const std::vector<torch::Tensor>& learning, const Shape& n,
                          const std::string& what) {
  const auto leaf = [](std::vector<int64_t> sizes) {
    return torch::randn(sizes, torch::kFloat64).requires_grad_();
  };
  const core::Qkv t{leaf({n.B, n.H, n.L, 5}), leaf({n.B, n.H / 2, n.S, 5}),
                    leaf({n.B, n.H / 2, n.S, 3})};
  const core::Rule rule{mask, score.resolve(n), 0.4, {0.2, 3}};
  const auto want = core::reference(t, rule);
  static const core::ChunkedBackend chunked(1);
  const auto got = core::run(chunked, t, rule);
  EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-12, 1e-14)) << what;
  EXPECT_TRUE(torch::allclose(got.lse, want.lse, 1e-12, 1e-14)) << what;
  std::vector<torch::Tensor> inputs{t.q, t.k, t.v};
  inputs.insert(inputs.end(), learning.begin(), learning.end());
  const auto g = torch::randn_like(want.output), gl = torch::randn_like(want.lse);
  const auto gradients = [&](const core::OutputAndLse& r) {
    return torch::autograd::grad({r.output, r.lse.masked_fill(r.lse.detach().isinf(), 0.0)}, inputs,
                                 {g, gl}, /*retain_graph=*/true);
  };
  const auto a = gradients(got), b = gradients(want);
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(torch::allclose(a[i], b[i], 1e-10, 1e-12)) << what << ", gradient " << i;
  }
}

std::vector<std::pair<std::string, core::AnyMask>> masks(const Shape& n) {
  const auto keys = [&](double share) { return torch::rand({n.B, n.S}) < share; };
  const auto padding = (torch::arange(n.S) < n.S - 7).view({1, 1, 1, n.S});
  return {
      {"full", full()},
      {"causal", causal()},
      {"top left", causal(CausalAlignment::kTopLeft)},
      {"window", window(9, 4)},
      {"causal window", causal() && window(30, kUnbounded)},
      {"blocks", blocks(13)},
      {"dilated", dilated(3)},
      {"dilated window", dilated(7) && window(40, 20)},
      {"neighborhood", neighborhood({n.S}, {7}, {2})},
      {"prefix or causal", prefix(5) || causal()},
      {"prefix or window", prefix(5) || window(3, 3)},
      {"padding", mask_tensor(padding)},
      {"causal and padding", causal() && mask_tensor(padding)},
      {"documents", documents({.offsets = torch::tensor({int64_t{0}, n.S / 3, n.S - 11, n.S})})},
      {"scattered documents", documents({.ids = torch::randint(4, {n.B, n.S})})},
      {"global tokens", window(3, 3) || global_tokens(keys(0.05))},
      {"not window", !window(5, 5)},
      {"nothing", !full()},
      {"callable",
       mask_mod([](auto b, auto h, auto q, auto kv) { return (q + b + h) % 3 != kv % 2; })},
      {"in document", causal() && core::AnyMask(mask_mod([](auto, auto, auto q,
                                                            auto kv) { return kv % 3 < q % 4; },
                                                         in_document))
                                      .placed(torch::arange(n.S).remainder(n.S / 3).unsqueeze(0))},
      {"tiles", block_mask(window(9, 9), n.L, n.S)},
      {"callable", mask_mod([](auto, auto h, auto q, auto kv) { return abs(q - kv) <= 9 + h; })},
      {"tensor", mask_tensor(torch::rand({n.L, n.S}) < 0.5)},
  };
}

TEST(Chunked, IsTheReferenceUnderEveryMask) {
  torch::manual_seed(3);
  for (const Shape n : {Shape{2, 4, 90, 90}, Shape{1, 2, 37, 101}, Shape{1, 2, 70, 70}}) {
    for (const auto& [name, mask] : masks(n)) {
      const auto what = name + " L=" + std::to_string(n.L) + " S=" + std::to_string(n.S);
      expect_covers(mask, n, what);
      expect_the_reference(mask, {}, {}, n, what);
    }
  }
}

TEST(Chunked, FewerKeysThanQueries) {
  torch::manual_seed(4);
  const Shape n{1, 2, 80, 50};
  for (const auto& [name, mask] : std::vector<std::pair<std::string, core::AnyMask>>{
           {"window", window(9, 4)}, {"causal", causal()}, {"dilated", dilated(5)}}) {
    expect_covers(mask, n, name);
    expect_the_reference(mask, {}, {}, n, name);
  }
}

TEST(Chunked, ScoresThatLearn) {
  torch::manual_seed(5);
  const Shape n{2, 2, 70, 90};
  const auto learn = [](std::vector<int64_t> sizes) {
    return torch::rand(sizes, torch::kFloat64).requires_grad_();
  };
  const auto slopes = learn({n.H}), bias = learn({n.H, n.L, n.S}), rows = learn({32, n.H}),
             row = learn({n.L + n.S});
  const auto by_distance = table(row);
  const int64_t shift = n.L - 1;
  expect_the_reference(window(20, 3), alibi(slopes) + softcap(2.0), {slopes}, n, "alibi");
  expect_the_reference(window(20, 3), bias_tensor(bias.unsqueeze(0)), {bias}, n, "bias");
  expect_the_reference(dilated(3), relative_bias(rows), {rows}, n, "relative bias");
  const auto falling = learn({n.B, n.H, n.S});
  expect_the_reference(window(20, 3), decay(falling), {falling}, n, "decay");
  const auto hidden = torch::zeros({n.L, n.S}, torch::kFloat64)
                          .masked_fill(torch::rand({n.L, n.S}) < 0.3, -INFINITY);
  expect_the_reference(
      window(20, 3),
      bias_tensor(hidden.view({1, 1, n.L, n.S})) + alibi(slopes) +
          score_mod([=](auto s, auto, auto, auto, auto kv) { return -exp(-s) * by_distance(kv); }),
      {slopes, row}, n, "scores of -inf");
  expect_the_reference(dilated(2) && window(9, 9),
                       score_mod([=](auto s, auto, auto, auto q, auto kv) {
                         return s + by_distance(kv - q + shift);
                       }),
                       {row}, n, "table");
}

/// Pairs that the chunks of a problem visit, for each query.
double pairs_per_query(const core::AnyMask& mask, int64_t n) {
  const Shape shape{1, 8, n, n};
  int64_t pairs = 0;
  for (const auto& chunk : core::chunks(mask, shape, int64_t{1} << 24)) {
    pairs += chunk.pairs();
  }
  return static_cast<double>(pairs) / static_cast<double>(n);
}

TEST(Chunked, PairsFollowTheMask) {
  for (const int64_t n : {4096, 32768}) {
    const auto offsets = torch::arange(0, n + 1, 256);
    EXPECT_LE(pairs_per_query(window(64, 64), n), 3 * 129) << n;
    EXPECT_LE(pairs_per_query(window(512, 0), n), 3 * 513) << n;
    const auto by_hand = [](auto, auto, auto q, auto kv) { return abs(q - kv) <= 64; };
    EXPECT_LE(pairs_per_query(mask_mod(by_hand), n), 3 * 129 + 64) << n;
    EXPECT_LE(pairs_per_query(causal() && window(64, 64), n), 3 * 65 + 64) << n;
    EXPECT_LE(pairs_per_query(blocks(128), n), 3 * 128) << n;
    EXPECT_LE(pairs_per_query(documents(offsets), n), 3 * 256) << n;
    EXPECT_LE(pairs_per_query(prefix(100), n), 100) << n;
    EXPECT_LE(pairs_per_query(prefix(64) || window(64, 64), n), 3 * 193) << n;
    EXPECT_LE(pairs_per_query(dilated(16) && window(512, 512), n), 4 * 65) << n;
    EXPECT_LE(pairs_per_query(mask_tensor((torch::arange(n) < 200).view({1, 1, 1, n})), n), 200);
  }
  EXPECT_EQ(pairs_per_query(dilated(16), 4096), 256);
}

}  // namespace
}  // namespace attzoo::testing::chunked_test
