#include <attzoo/delta_net.hpp>

#include <cmath>

#include "support/recurrence_contract.hpp"

namespace attzoo::testing::delta_net_test {
namespace {

struct DeltaNetTraits {
  using Module = DeltaNet;
  static std::vector<DeltaNetOptions> options() {
    return {{.d_model = 12, .num_heads = 2, .bias = true},
            {.d_model = 8,
             .num_heads = 2,
             .head_dim = 3,
             .value_head_dim = 5,
             .conv_size = 1,
             .input_dim = 7},
            {.d_model = 12, .num_heads = 3, .value_head_dim = 2, .conv_size = 3}};
  }
  static Defined define(DeltaNetImpl& m, const torch::Tensor& x) {
    const auto& o = m.options;
    const int64_t H = o.num_heads, keys = H * *o.head_dim;
    const auto qkv = convolved(torch::cat({m.w_q(x), m.w_k(x), m.w_v(x)}, -1), m.conv);
    const auto q = of_length_1(split_heads(qkv.slice(-1, 0, keys), H));
    const auto k = of_length_1(split_heads(qkv.slice(-1, keys, 2 * keys), H));
    const auto v = split_heads(qkv.slice(-1, 2 * keys), H);
    const auto beta = split_heads(torch::sigmoid(m.w_b(x)), H);
    auto sums = carried(q, v, [&](const torch::Tensor& S, int64_t i) {
      const auto wrong = row(v, i) - torch::matmul(row(k, i), S);
      return S + column(k, i) * (row(beta, i) * wrong);
    });
    sums = sums / std::sqrt(static_cast<double>(*o.head_dim));
    return {v, sums, m.w_o(join(normed(sums, m.norm)))};
  }
};
INSTANTIATE_TEST_SUITE_P(DeltaNet, RecurrenceContract, recurrence_of<DeltaNetTraits>());

/// A token with beta 1 replaces what was said of its key: asked for it, the state says its value.
TEST(DeltaNet, SaysWhatWasWrittenLast) {
  torch::manual_seed(2);
  DeltaNet m(DeltaNetOptions{.d_model = 6, .num_heads = 1, .conv_size = 1, .norm_eps = 0});
  m->to(torch::kFloat64);
  const torch::NoGradGuard no_grad;
  m->w_q->weight.copy_(m->w_k->weight);
  m->w_b->weight.zero_();
  auto x = torch::randn({1, 1, 6}, torch::kFloat64);
  const auto alone = m(x).output;
  // The norm takes the scale back, and beta = 1/2: twice the same token says the same of its value.
  EXPECT_TRUE(torch::allclose(m(x.expand({1, 2, 6})).output.slice(1, 1), alone, 1e-4, 1e-5));
}

}  // namespace
}  // namespace attzoo::testing::delta_net_test
