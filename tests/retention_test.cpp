#include <attzoo/functional/linear_attention.hpp>
#include <attzoo/functional/recurrence.hpp>
#include <attzoo/functional/rope.hpp>
#include <attzoo/retention.hpp>

#include <cmath>

#include "support/recurrence_contract.hpp"

namespace attzoo::testing::retention_test {
namespace {

torch::Tensor gammas(int64_t H, torch::ScalarType dtype) {
  std::vector<double> each;
  for (int64_t h = 0; h < H; ++h) each.push_back(1 - std::pow(2, -5.0 - static_cast<double>(h)));
  return torch::tensor(each, torch::kFloat64).to(dtype).view({1, H, 1, 1});
}

struct RetentionTraits {
  using Module = MultiScaleRetention;
  static std::vector<MultiScaleRetentionOptions> options() {
    return {{.d_model = 12, .num_heads = 2, .head_dim = 4, .bias = true},
            {.d_model = 8,
             .num_heads = 2,
             .head_dim = 3,
             .value_head_dim = 5,
             .input_dim = 7,
             .rope = false},
            {.d_model = 8,
             .num_heads = 2,
             .value_head_dim = 3,
             .rope = RopeOptions{.base = 100, .pairs = RopePairs::kHalves}}};
  }
  static Defined define(MultiScaleRetentionImpl& m, const torch::Tensor& x) {
    const auto& o = m.options;
    const int64_t H = o.num_heads;
    auto q = split_heads(m.w_q(x), H), k = split_heads(m.w_k(x), H);
    const auto v = split_heads(m.w_v(x), H);
    if (o.rope) q = apply_rope(q, *o.rope.options()), k = apply_rope(k, *o.rope.options());
    const auto gamma = gammas(H, x.scalar_type());
    auto sums = carried(q, v, [&](const torch::Tensor& S, int64_t i) {
      return gamma * S + column(k, i) * row(v, i);
    });
    sums = sums / std::sqrt(static_cast<double>(*o.head_dim));
    const auto gate = m.w_g(x);
    return {v, sums, m.w_o(join(normed(sums, m.norm)) * gate * torch::sigmoid(gate))};
  }
};
INSTANTIATE_TEST_SUITE_P(Retention, RecurrenceContract, recurrence_of<RetentionTraits>());

/// The parallel form of the paper: (q k^T * D) v, D_ij = gamma^(i - j).
TEST(Retention, IsItsParallelForm) {
  torch::manual_seed(7);
  MultiScaleRetention m(MultiScaleRetentionOptions{.d_model = 8, .num_heads = 2});
  m->to(torch::kFloat64);
  const auto x = torch::randn({2, 150, 8}, torch::kFloat64);
  const auto q = apply_rope(split_heads(m->w_q(x), 2), *m->options.rope.options()),
             k = apply_rope(split_heads(m->w_k(x), 2), *m->options.rope.options());
  const auto place = torch::arange(150, torch::kFloat64);
  const auto apart = (place.unsqueeze(1) - place).clamp_min(0);
  const auto D = gammas(2, torch::kFloat64).pow(apart).tril();
  const auto want = torch::matmul(q, k.transpose(-2, -1)) * D / 2;
  EXPECT_TRUE(torch::allclose(m(x).weights, want, 1e-10, 1e-12));
}

/// Retention's sums depend on differences of positions alone.
TEST(Retention, PositionsAreRelative) {
  torch::manual_seed(8);
  MultiScaleRetention m(8, 2);
  m->to(torch::kFloat64);
  const auto x = torch::randn({2, 40, 8}, torch::kFloat64);
  const auto want = m(x).output;
  EXPECT_TRUE(torch::allclose(m(x, {.position_offset = 1000}).output, want, 1e-8, 1e-10));
  EXPECT_TRUE(torch::allclose(m(x, {.positions = torch::arange(7, 47)}).output, want, 1e-8, 1e-10));
  EXPECT_FALSE(
      torch::allclose(m(x, {.positions = 2 * torch::arange(40)}).output, want, 1e-3, 1e-3));
}

/// Without decay a recurrence is causal linear attention without its normaliser.
TEST(Retention, WithoutDecayIsLinearAttention) {
  torch::manual_seed(9);
  const auto q = torch::rand({2, 2, 90, 4}, torch::kFloat64), k = torch::rand_like(q),
             v = torch::randn({2, 2, 90, 3}, torch::kFloat64);
  const auto got = recurrence(q, k, v, {.decay = torch::zeros({2}, torch::kFloat64)}).output;
  const auto want = torch::matmul(torch::matmul(q, k.transpose(-2, -1)).tril(), v) / 2;
  EXPECT_TRUE(torch::allclose(got, want, 1e-10, 1e-12));
}

TEST(Retention, Errors) {
  const auto bad = [](MultiScaleRetentionOptions o, std::vector<std::string> parts) {
    parts.push_back("MultiScaleRetention");
    expect_error([&] { MultiScaleRetention m(o); }, parts);
  };
  bad({.d_model = 12, .num_heads = 5}, {"num_heads", "5", "12"});
  bad({.d_model = 12, .num_heads = 4}, {"rope", "even", "3"});
  bad({.d_model = 12, .num_heads = 2, .head_dim = -2}, {"head_dim", "-2"});
  bad({.d_model = 12, .num_heads = 2, .value_head_dim = 0}, {"value_head_dim", "0"});
}

}  // namespace
}  // namespace attzoo::testing::retention_test
