#include <attzoo/functional/recurrence.hpp>
#include <attzoo/rwkv7.hpp>

#include <cmath>

#include "support/recurrence_contract.hpp"

namespace attzoo::testing::rwkv7_test {
namespace {

struct RWKV7Traits {
  using Module = RWKV7;
  static std::vector<RWKV7Options> options() {
    return {{.d_model = 8,
             .num_heads = 2,
             .decay_rank = 2,
             .rate_rank = 3,
             .gate_rank = 4,
             .bias = true},
            {.d_model = 8,
             .num_heads = 3,
             .head_dim = 4,
             .decay_rank = 1,
             .rate_rank = 2,
             .gate_rank = 3,
             .input_dim = 7}};
  }
  static Defined define(RWKV7Impl& m, const torch::Tensor& x) {
    const auto& o = m.options;
    const int64_t H = o.num_heads, n = x.size(1);
    const auto before = torch::constant_pad_nd(x, {0, 0, 1, 0}).slice(1, 0, n);
    const auto mixed = [&](int64_t c) { return x + m.mu[c] * (before - x); };
    const auto heads = [&](const torch::Tensor& t) { return split_heads(t, H); };
    const auto r = m.w_r(mixed(0)), plain = m.w_k(mixed(2)), v = heads(m.w_v(mixed(3)));
    const auto w = -std::exp(-0.5) * torch::sigmoid(m.w2(torch::tanh(m.w1(mixed(1)))));
    const auto a = torch::sigmoid(m.a2(m.a1(mixed(4))));
    const auto gate = m.g2(torch::sigmoid(m.g1(mixed(5))));
    const auto e = of_length_1(heads(plain * m.k_k), 1e-24);
    const auto k = plain * (1 + (a - 1) * m.k_a);
    const auto left = torch::exp(heads(w)), rate = heads(a), keys = heads(k);
    const auto sums = carried(heads(r), v, [&](const torch::Tensor& S, int64_t i) {
      const auto said = torch::matmul(row(e, i), S);
      return column(left, i) * S - column(rate * e, i) * said + column(keys, i) * row(v, i);
    });
    const auto centred = sums - sums.mean(-1, /*keepdim=*/true);
    const auto variance = centred.square().mean(-1, /*keepdim=*/true) + o.norm_eps;
    const auto rows = join(centred / variance.sqrt()) * m.norm_weight + m.norm_bias;
    const auto own = heads(r * k * m.r_k).sum(-1, /*keepdim=*/true) * v;
    return {v, sums, m.w_o((rows + join(own)) * gate)};
  }
};
INSTANTIATE_TEST_SUITE_P(RWKV7, RecurrenceContract, recurrence_of<RWKV7Traits>());

/// With a = -k and b = beta k, no decay and beta v written, its recurrence is the delta rule.
TEST(RWKV7, RecurrenceIsTheDeltaRule) {
  torch::manual_seed(10);
  const auto q = torch::randn({2, 2, 90, 4}, torch::kFloat64),
             k = of_length_1(torch::randn_like(q)),
             v = torch::randn({2, 2, 90, 3}, torch::kFloat64),
             beta = torch::rand({2, 2, 90}, torch::kFloat64);
  const auto b = beta.unsqueeze(-1);
  const auto delta = recurrence(q, k, v, {.beta = beta}),
             rwkv = recurrence(q, k, b * v, {.a = -k, .b = b * k});
  EXPECT_TRUE(torch::allclose(rwkv.output, delta.output, 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(rwkv.state, delta.state, 1e-10, 1e-12));
}

TEST(RWKV7, RanksAreTheAuthors) {
  RWKV7 m(768, 12);
  EXPECT_EQ(m->options.decay_rank, 64);
  EXPECT_EQ(m->options.rate_rank, 64);
  EXPECT_EQ(m->options.gate_rank, 128);
}

TEST(RWKV7, Errors) {
  const auto bad = [](RWKV7Options o, std::vector<std::string> parts) {
    parts.push_back("RWKV7");
    expect_error([&] { RWKV7 m(o); }, parts);
  };
  bad({.d_model = 12, .num_heads = 5}, {"num_heads", "5", "12"});
  bad({.d_model = 12, .decay_rank = 0}, {"decay_rank", "0"});
  bad({.d_model = 12, .rate_rank = -1}, {"rate_rank", "-1"});
  bad({.d_model = 12, .gate_rank = 0}, {"gate_rank", "0"});
}

}  // namespace
}  // namespace attzoo::testing::rwkv7_test
