#include <attzoo/delta_net.hpp>
#include <attzoo/gated_delta_net.hpp>

#include <cmath>

#include "support/recurrence_contract.hpp"

namespace attzoo::testing::gated_delta_net_test {
namespace {

struct GatedDeltaNetTraits {
  using Module = GatedDeltaNet;
  static std::vector<GatedDeltaNetOptions> options() {
    return {{.d_model = 12, .num_heads = 2, .bias = true},
            {.d_model = 8,
             .num_heads = 2,
             .num_value_heads = 4,
             .head_dim = 3,
             .value_head_dim = 2,
             .conv_size = 1,
             .input_dim = 7},
            {.d_model = 12, .num_heads = 1, .num_value_heads = 3, .head_dim = 4, .conv_size = 3}};
  }
  static Defined define(GatedDeltaNetImpl& m, const torch::Tensor& x) {
    const auto& o = m.options;
    const int64_t H = o.num_heads, HV = *o.num_value_heads, keys = H * *o.head_dim;
    const auto qkv = convolved(torch::cat({m.w_q(x), m.w_k(x), m.w_v(x)}, -1), m.conv);
    const auto shared = [&](const torch::Tensor& t) {
      return of_length_1(split_heads(t, H)).repeat_interleave(HV / H, 1);
    };
    const auto q = shared(qkv.slice(-1, 0, keys)), k = shared(qkv.slice(-1, keys, 2 * keys));
    const auto v = split_heads(qkv.slice(-1, 2 * keys), HV);
    const auto beta = split_heads(torch::sigmoid(m.w_b(x)), HV);
    const auto dt = torch::log1p(torch::exp(m.w_a(x) + m.dt_bias));
    const auto left = split_heads(torch::exp(-torch::exp(m.A_log) * dt), HV);
    auto sums = carried(q, v, [&](const torch::Tensor& S, int64_t i) {
      const auto R = row(left, i) * S;
      return R + column(k, i) * (row(beta, i) * (row(v, i) - torch::matmul(row(k, i), R)));
    });
    sums = sums / std::sqrt(static_cast<double>(*o.head_dim));
    const auto gate = m.w_g(x);
    return {v, sums, m.w_o(join(normed(sums, m.norm)) * gate * torch::sigmoid(gate))};
  }
};
INSTANTIATE_TEST_SUITE_P(GatedDeltaNet, RecurrenceContract, recurrence_of<GatedDeltaNetTraits>());

/// Without decay it is DeltaNet, behind a gate.
TEST(GatedDeltaNet, WithoutDecayIsDeltaNet) {
  torch::manual_seed(3);
  GatedDeltaNet gated(GatedDeltaNetOptions{.d_model = 12, .num_heads = 2});
  DeltaNet plain(DeltaNetOptions{.d_model = 12, .num_heads = 2, .norm_eps = 1e-6});
  gated->to(torch::kFloat64);
  plain->to(torch::kFloat64);
  auto state = state_dict(*gated);
  for (const auto* name : {"A_log", "dt_bias", "w_a.weight", "w_g.weight"}) state.erase(name);
  load_state_dict(*plain, state);
  const torch::NoGradGuard no_grad;
  gated->A_log.fill_(-1000);
  for (auto* w_o : {&gated->w_o, &plain->w_o}) (*w_o)->weight.copy_(torch::eye(12));
  const auto x = torch::randn({2, 90, 12}, torch::kFloat64);
  const auto a = gated(x), b = plain(x);
  EXPECT_TRUE(torch::allclose(a.weights, b.weights, 1e-10, 1e-12));
  const auto gate = torch::silu(gated->w_g(x));
  EXPECT_TRUE(torch::allclose(a.output, b.output * gate, 1e-10, 1e-12));
}

TEST(GatedDeltaNet, Errors) {
  const auto bad = [](GatedDeltaNetOptions o, std::vector<std::string> parts) {
    parts.push_back("GatedDeltaNet");
    expect_error([&] { GatedDeltaNet m(o); }, parts);
  };
  bad({.d_model = 12, .num_heads = 5}, {"num_heads", "d_model", "5", "12"});
  bad({.d_model = 12, .num_heads = 2, .num_value_heads = 3}, {"num_value_heads", "3", "2"});
  bad({.d_model = 12, .num_heads = 2, .num_value_heads = 0}, {"num_value_heads", "0"});
  bad({.d_model = 12, .num_heads = 2, .head_dim = 0}, {"head_dim", "0"});
  bad({.d_model = 12, .num_heads = 2, .value_head_dim = -1}, {"value_head_dim", "-1"});
}

}  // namespace
}  // namespace attzoo::testing::gated_delta_net_test
