#include <attzoo/streaming.hpp>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::streaming_test {
namespace {

constexpr int64_t kSinks = 2, kWindow = 4;

struct StreamingTraits : PlainTraits {
  using Module = StreamingSelfAttention;
  static StreamingSelfAttentionOptions options() {
    return {.d_model = 12,
            .num_heads = 3,
            .num_sinks = kSinks,
            .window_size = kWindow,
            .dropout = 0,
            .bias = true};
  }
  static torch::Tensor allowed(int64_t n) {
    const auto i = torch::arange(n).unsqueeze(1), j = torch::arange(n).unsqueeze(0);
    return ((i - j).abs() < kWindow) | (j < kSinks);
  }
};
INSTANTIATE_TEST_SUITE_P(Streaming, MechanismContract, mechanism<StreamingTraits>());

StreamingSelfAttention turning(bool cache_positions) {
  auto o = StreamingTraits::options();
  o.cache_positions = cache_positions;
  o.num_heads = 2;
  o.num_kv_heads = 1;
  o.rope =
      RopeOptions{.base = 50, .scaling = YarnRopeScaling{.factor = 4, .original_max_position = 8}};
  o.causal = true;
  StreamingSelfAttention m(o);
  m->to(torch::kFloat64);
  return m;
}

/// As the paper's code: one token after the other, from a list of the keys that are kept, which are
/// turned by their places in the list when they are read.
torch::Tensor token_by_token(StreamingSelfAttention m, const torch::Tensor& x) {
  const int64_t n = x.size(1), d = m->d_head();
  const auto rope = [&](const torch::Tensor& t, int64_t first) {
    auto o = *m->options.rope.options();
    o.position_offset = first;
    return apply_rope(t, o);
  };
  const auto q = split_heads(m->w_q(x), 2);
  const auto k = split_heads(m->w_k(x), 1), v = split_heads(m->w_v(x), 1);
  std::vector<torch::Tensor> rows;
  for (int64_t i = 0; i < n; ++i) {
    std::vector<int64_t> kept;
    for (int64_t j = 0; j <= i; ++j) {
      if (j < kSinks || i - j < kWindow) kept.push_back(j);
    }
    const auto index = torch::tensor(kept);
    const auto keys = rope(k.index_select(2, index), 0);
    const auto query = rope(q.slice(2, i, i + 1), static_cast<int64_t>(kept.size()) - 1);
    const auto s = torch::matmul(query, keys.transpose(2, 3)) / std::sqrt(static_cast<double>(d));
    rows.push_back(torch::matmul(torch::softmax(s, -1), v.index_select(2, index)));
  }
  return m->w_o(torch::cat(rows, 2).transpose(1, 2).flatten(2));
}

TEST(Streaming, PositionsAreThoseInTheCache) {
  torch::manual_seed(1);
  auto m = turning(true);
  auto x = torch::randn({2, 23, 12}, torch::kFloat64).requires_grad_();
  const auto got = m(x).output, want = token_by_token(m, x);
  EXPECT_TRUE(torch::allclose(got, want, 1e-10, 1e-12));
  const auto cotangent = torch::randn_like(got);
  const auto gradient = [&](const torch::Tensor& y) {
    return torch::autograd::grad({(y * cotangent).sum()}, {x})[0];
  };
  EXPECT_TRUE(torch::allclose(gradient(got), gradient(want), 1e-10, 1e-12));
  // A text that fits into the cache has the same positions; a longer one has not.
  auto plain = turning(false);
  load_state_dict(*plain, state_dict(*m));
  const auto fits = kSinks + kWindow;
  EXPECT_TRUE(torch::allclose(plain(x).output.slice(1, 0, fits), got.slice(1, 0, fits)));
  EXPECT_FALSE(torch::allclose(plain(x).output, got));
}

TEST(Streaming, GoesOnForEverInConstantMemory) {
  const torch::NoGradGuard no_grad;
  for (const bool cache_positions : {false, true}) {
    auto m = turning(cache_positions);
    const auto x = torch::randn({2, 600, 12}, torch::kFloat64);
    const auto want = m(x).output;
    auto cache = m->make_cache(2);
    int64_t bytes = 0;
    for (int64_t i = 0; i < 600; ++i) {
      const auto got = m(x.slice(1, i, i + 1), {.cache = cache}).output;
      ASSERT_TRUE(torch::allclose(got, want.slice(1, i, i + 1), 1e-10, 1e-12)) << i;
      if (i == 100) bytes = cache.bytes();
    }
    EXPECT_EQ(cache.bytes(), bytes);
    EXPECT_LE(bytes, 2 * (2 * (kWindow + 32) + 2 * kSinks) * (2 * 6 * 8 + 1));
    cache.truncate(580);
    const auto again = m(x.slice(1, 580, 590), {.cache = cache}).output;
    EXPECT_TRUE(torch::allclose(again, want.slice(1, 580, 590), 1e-10, 1e-12));
  }
}

TEST(Streaming, PaddingAndDocumentsHaveSinksOfTheirOwn) {
  for (const bool cache_positions : {false, true}) {
    const AnyAttention m(turning(cache_positions));
    expect_packs(m, "streaming");
    expect_documents_are_alone(m, {}, "streaming");
    expect_goes_on_as_alone(m, "streaming");
  }
}

TEST(Streaming, WithoutSinksItIsLocal) {
  expect_equivalent(
      StreamingSelfAttention({.d_model = 12, .num_heads = 3, .num_sinks = 0, .window_size = 4}),
      LocalSelfAttention({.d_model = 12, .num_heads = 3, .window_size = 6}));
}

TEST(Streaming, Errors) {
  expect_error([] { StreamingSelfAttention({.d_model = 12, .num_heads = 3, .num_sinks = -1}); },
               {"StreamingSelfAttention", "num_sinks", "-1"});
  expect_error([] { StreamingSelfAttention({.d_model = 12, .num_heads = 3, .window_size = 0}); },
               {"StreamingSelfAttention", "window_size", "0"});
  auto m = turning(true);
  const auto x = torch::randn({1, 5, 12}, torch::kFloat64);
  expect_error([&] { m(x, {.positions = torch::arange(5)}); },
               {"StreamingSelfAttention", "cache_positions"});
  expect_error([&] { m(x, {.global_attention = torch::ones({5})}); },
               {"StreamingSelfAttention", "global_attention"});
  const torch::NoGradGuard no_grad;
  auto cache = m->make_cache(1);
  m->options.window_size = 5;
  expect_error([&] { m(x, {.cache = cache}); }, {"StreamingSelfAttention", "window_size"});
}

}  // namespace
}  // namespace attzoo::testing::streaming_test
