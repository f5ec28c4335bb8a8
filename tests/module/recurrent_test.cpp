#include <gtest/gtest.h>
#include <attzoo/functional/short_convolution.hpp>
#include <attzoo/module/recurrent.hpp>

#include "support/expect_error.hpp"

namespace attzoo::testing::recurrent_test {
namespace {

struct CountsOptions {
  int64_t d_model = 0;
  int64_t num_heads = 1;
  std::optional<int64_t> input_dim = std::nullopt;
  double dropout = 0.0;
  bool bias = false;
};

/// A recurrence of one's own: sums of the tokens, times a rate.
class CountsImpl : public RecurrentAttention<CountsImpl, CountsOptions> {
 public:
  static constexpr const char* kName = "Counts";
  explicit CountsImpl(const CountsOptions& o) : RecurrentAttention(o) { reset(); }
  void reset() override {
    RecurrentAttention::reset();
    w_o = make_projection("w_o", input_dim(), d_model());
  }
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    auto call = begin(x, inputs);
    const auto ones = torch::ones_like(call.x).slice(2, 0, 1).unsqueeze(1);  // [B, 1, n, 1]
    const auto values = (call.x + call.shift(call.x)).unsqueeze(1);
    const auto o = call.recur(ones, ones, values,
                              {.decay = torch::full({1}, -0.1, torch::kFloat64), .scale = 1.0});
    return finish(call, o.squeeze(1));
  }
};
using Counts = Holder<CountsImpl>;

TEST(Recurrent, OfOnesOwn) {
  torch::manual_seed(2);
  Counts m({.d_model = 5, .input_dim = 4});
  m->to(torch::kFloat64);
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({2, 90, 4}, torch::kFloat64);
  auto state = torch::zeros({2, 4}, torch::kFloat64), before = state;
  std::vector<torch::Tensor> rows;
  for (int64_t t = 0; t < 90; ++t) {
    state = std::exp(-0.1) * state + x.select(1, t) + before;
    before = x.select(1, t);
    rows.push_back(m->w_o(state));
  }
  const auto want = torch::stack(rows, 1);
  EXPECT_TRUE(torch::allclose(m(x).output, want, 1e-10, 1e-12));
  const auto cache = m->make_cache(2);
  auto got = m(x.slice(1, 0, 50), {.cache = cache}).output;
  EXPECT_TRUE(torch::allclose(got, want.slice(1, 0, 50), 1e-10, 1e-12));
  for (int64_t t = 50; t < 90; ++t) {
    got = m(x.slice(1, t, t + 1), {.cache = cache}).output;
    EXPECT_TRUE(torch::allclose(got, want.slice(1, t, t + 1), 1e-10, 1e-12)) << t;
  }
  // The weights are those of the values, x_t + x_{t-1}.
  const torch::Tensor weights = m(x).weights;
  const auto values = x + torch::constant_pad_nd(x, {0, 0, 1, -1});
  EXPECT_TRUE(
      torch::allclose(m->w_o(torch::matmul(weights.squeeze(1), values)), want, 1e-10, 1e-12));
}

TEST(Recurrent, NamesWhatHasNoMeaning) {
  Counts m({.d_model = 4});
  const auto x = torch::randn({1, 6, 4});
  expect_error(
      [&] {
        m(x, {.mask = torch::ones({6, 6}, torch::kBool)});
      },
      {"Counts", "mask", "pairs", "key_padding_mask"});
  expect_error([&] { m(x, {.causal = false}); }, {"Counts", "causal", "later"});
  expect_error([&] { m(x, {.context = x}); }, {"Counts", "context", "no meaning"});
  expect_error([&] { m(x, {.position_offset = 3}); }, {"Counts", "position_offset"});
}

/// A call that fails leaves its cache as it was.
TEST(Recurrent, AFailedCallChangesNothing) {
  Counts m({.d_model = 4});
  const torch::NoGradGuard no_grad;
  const auto cache = m->make_cache(1);
  const auto x = torch::randn({1, 6, 4});
  const auto want = m(x).output;
  m(x.slice(1, 0, 4), {.cache = cache});
  expect_error(
      [&] {
        m(x.slice(1, 4), {.key_padding_mask = torch::zeros({1, 2}, torch::kBool), .cache = cache});
      },
      {"Counts", "padding"});
  EXPECT_EQ(cache.length(), 4);
  EXPECT_TRUE(
      torch::allclose(m(x.slice(1, 4), {.cache = cache}).output, want.slice(1, 4), 1e-5, 1e-6));
}

}  // namespace
}  // namespace attzoo::testing::recurrent_test
