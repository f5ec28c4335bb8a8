#include <attzoo/gated_linear.hpp>

#include <cmath>

#include "support/recurrence_contract.hpp"

namespace attzoo::testing::gated_linear_test {
namespace {

struct GatedLinearTraits {
  using Module = GatedLinearAttention;
  static std::vector<GatedLinearAttentionOptions> options() {
    return {{.d_model = 12, .num_heads = 2, .gate_rank = 3, .bias = true},
            {.d_model = 8,
             .num_heads = 2,
             .head_dim = 3,
             .value_head_dim = 5,
             .gate_rank = 1,
             .gate_normalizer = 2,
             .input_dim = 7}};
  }
  static Defined define(GatedLinearAttentionImpl& m, const torch::Tensor& x) {
    const auto& o = m.options;
    const int64_t H = o.num_heads;
    const auto q = split_heads(m.w_q(x), H), k = split_heads(m.w_k(x), H),
               v = split_heads(m.w_v(x), H);
    const auto a = torch::sigmoid(m.w_a2(m.w_a1(x))).pow(1 / o.gate_normalizer);
    const auto left = split_heads(a, H);
    auto sums = carried(q, v, [&](const torch::Tensor& S, int64_t i) {
      return column(left, i) * S + column(k, i) * row(v, i);
    });
    sums = sums / std::sqrt(static_cast<double>(*o.head_dim));
    const auto gate = m.w_g(x);
    return {v, sums, m.w_o(join(normed(sums, m.norm)) * gate * torch::sigmoid(gate))};
  }
};
INSTANTIATE_TEST_SUITE_P(GatedLinear, RecurrenceContract, recurrence_of<GatedLinearTraits>());

TEST(GatedLinear, Errors) {
  const auto bad = [](GatedLinearAttentionOptions o, std::vector<std::string> parts) {
    parts.push_back("GatedLinearAttention");
    expect_error([&] { GatedLinearAttention m(o); }, parts);
  };
  bad({.d_model = 12, .num_heads = 5}, {"num_heads", "5"});
  bad({.d_model = 12, .gate_rank = 0}, {"gate_rank", "0"});
  bad({.d_model = 12, .gate_normalizer = 0}, {"gate_normalizer", "0"});
  bad({.d_model = 12, .gate_normalizer = std::nan("")}, {"gate_normalizer", "nan"});
}

}  // namespace
}  // namespace attzoo::testing::gated_linear_test
