#include <attzoo/gated_delta_net.hpp>
#include <attzoo/kimi_delta.hpp>

#include <cmath>

#include "support/recurrence_contract.hpp"

namespace attzoo::testing::kimi_delta_test {
namespace {

struct KimiDeltaTraits {
  using Module = KimiDeltaAttention;
  static std::vector<KimiDeltaAttentionOptions> options() {
    return {{.d_model = 12, .num_heads = 2, .bias = true},
            {.d_model = 8, .num_heads = 3, .head_dim = 4, .conv_size = 1, .input_dim = 7},
            {.d_model = 8, .num_heads = 2, .conv_size = 3}};
  }
  static Defined define(KimiDeltaAttentionImpl& m, const torch::Tensor& x) {
    const auto& o = m.options;
    const int64_t H = o.num_heads, dh = *o.head_dim;
    const auto qkv = convolved(torch::cat({m.w_q(x), m.w_k(x), m.w_v(x)}, -1), m.conv).chunk(3, -1);
    const auto q = of_length_1(split_heads(qkv[0], H)), k = of_length_1(split_heads(qkv[1], H)),
               v = split_heads(qkv[2], H);
    const auto beta = split_heads(torch::sigmoid(m.w_b(x)), H);
    const auto dt = torch::log1p(torch::exp(m.w_f2(m.w_f1(x)) + m.dt_bias));
    const auto A = torch::exp(m.A_log).repeat_interleave(dh);
    const auto left = split_heads(torch::exp(-A * dt), H);
    auto sums = carried(q, v, [&](const torch::Tensor& S, int64_t i) {
      const auto R = column(left, i) * S;
      return R + column(k, i) * (row(beta, i) * (row(v, i) - torch::matmul(row(k, i), R)));
    });
    sums = sums / std::sqrt(static_cast<double>(dh));
    return {v, sums, m.w_o(join(normed(sums, m.norm)) * torch::sigmoid(m.w_g2(m.w_g1(x))))};
  }
};
INSTANTIATE_TEST_SUITE_P(KimiDelta, RecurrenceContract, recurrence_of<KimiDeltaTraits>());

/// Where all channels of a head forget at one rate, it is Gated DeltaNet's recurrence.
TEST(KimiDelta, OfOneRateIsGatedDeltaNet) {
  torch::manual_seed(4);
  KimiDeltaAttention kimi(KimiDeltaAttentionOptions{.d_model = 12, .num_heads = 2});
  GatedDeltaNet gated(GatedDeltaNetOptions{.d_model = 12, .num_heads = 2});
  kimi->to(torch::kFloat64);
  gated->to(torch::kFloat64);
  const torch::NoGradGuard no_grad;
  // One rate for all channels: W_f2 repeats its first row of each head.
  const auto one = torch::randn({2, 6}, torch::kFloat64);
  kimi->w_f2->weight.copy_(one.repeat_interleave(6, 0));
  kimi->dt_bias.copy_(gated->dt_bias.repeat_interleave(6));
  kimi->A_log.copy_(gated->A_log);
  gated->w_a->weight.copy_(torch::matmul(one, kimi->w_f1->weight));
  for (const auto* name : {"w_q.weight", "w_k.weight", "w_v.weight", "w_b.weight", "conv.weight"}) {
    gated->named_parameters()[name].copy_(kimi->named_parameters()[name]);
  }
  const auto x = torch::randn({2, 90, 12}, torch::kFloat64);
  EXPECT_TRUE(torch::allclose(kimi(x).weights, gated(x).weights, 1e-10, 1e-12));
}

}  // namespace
}  // namespace attzoo::testing::kimi_delta_test
