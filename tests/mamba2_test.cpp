#include <attzoo/mamba2.hpp>

#include <cmath>

#include "support/recurrence_contract.hpp"

namespace attzoo::testing::mamba2_test {
namespace {

struct Mamba2Traits {
  using Module = Mamba2;
  static std::vector<Mamba2Options> options() {
    return {{.d_model = 8, .num_heads = 2, .state_size = 5, .bias = true},
            {.d_model = 8,
             .num_heads = 4,
             .head_dim = 3,
             .state_size = 4,
             .num_groups = 2,
             .conv_size = 3,
             .dt_min = 0.2,
             .dt_max = 0.9,
             .input_dim = 7,
             .conv_bias = false},
            {.d_model = 6, .num_heads = 3, .state_size = 2, .num_groups = 3, .conv_size = 1}};
  }
  /// z, x, B, C and dt of u, by heads.
  struct Parts {
    torch::Tensor z, x, B, C, dt;
  };
  static Parts parts(Mamba2Impl& m, const torch::Tensor& u) {
    const auto& o = m.options;
    const int64_t H = o.num_heads, inner = m.w_o->weight.size(1), G = o.num_groups,
                  states = G * o.state_size;
    const auto in = m.w_in(u);
    const auto xBC = convolved(in.slice(-1, inner, 2 * inner + 2 * states), m.conv);
    const auto of_group = [&](int64_t begin) {
      return split_heads(xBC.slice(-1, begin, begin + states), G).repeat_interleave(H / G, 1);
    };
    auto dt = torch::log1p(torch::exp(in.slice(-1, 2 * inner + 2 * states) + m.dt_bias));
    dt = torch::clamp(dt, o.dt_min, o.dt_max.value_or(INFINITY));
    return {in.slice(-1, 0, inner), split_heads(xBC.slice(-1, 0, inner), H), of_group(inner),
            of_group(inner + states), split_heads(dt, H)};
  }
  static Defined define(Mamba2Impl& m, const torch::Tensor& u) {
    const auto& o = m.options;
    const int64_t H = o.num_heads, G = o.num_groups;
    const auto p = parts(m, u);
    const auto values = p.dt * p.x, left = torch::exp(-torch::exp(m.A_log).view({H, 1, 1}) * p.dt);
    const auto sums = carried(p.C, values, [&](const torch::Tensor& S, int64_t i) {
      return row(left, i) * S + column(p.B, i) * row(values, i);
    });
    const auto y = join(sums + m.D.view({H, 1, 1}) * p.x) * p.z * torch::sigmoid(p.z);
    const auto grouped = y.unflatten(-1, {G, y.size(-1) / G});
    const auto mean = grouped.square().mean(-1, /*keepdim=*/true) + o.norm_eps;
    return {values, sums, m.w_o((grouped / mean.sqrt()).flatten(-2) * m.norm->weight)};
  }
};
INSTANTIATE_TEST_SUITE_P(Mamba2, RecurrenceContract, recurrence_of<Mamba2Traits>());

/// The weights are the semiseparable matrix: C_i^T B_j times what is left of j at i.
TEST(Mamba2, WeightsAreASemiseparableMatrix) {
  for (const auto& o : Mamba2Traits::options()) {
    torch::manual_seed(6);
    Mamba2 m(o);
    m->to(torch::kFloat64);
    const auto u = torch::randn({2, 70, m->input_dim()}, torch::kFloat64);
    const auto p = Mamba2Traits::parts(*m, u);
    const auto left = torch::exp(-torch::exp(m->A_log).view({-1, 1}) * p.dt.squeeze(-1));
    const auto want = torch::zeros({2, o.num_heads, 70, 70}, torch::kFloat64);
    const torch::NoGradGuard no_grad;
    for (int64_t j = 0; j < 70; ++j) {
      auto product = torch::ones({2, o.num_heads}, torch::kFloat64);
      for (int64_t i = j; i < 70; ++i) {
        if (i > j) product = product * left.select(-1, i);
        want.select(-2, i).select(-1, j).copy_((p.C.select(2, i) * p.B.select(2, j)).sum(-1) *
                                               product);
      }
    }
    EXPECT_TRUE(torch::allclose(m(u).weights, want, 1e-10, 1e-12));
  }
}

TEST(Mamba2, Errors) {
  const auto bad = [](Mamba2Options o, std::vector<std::string> parts) {
    parts.push_back("Mamba2");
    expect_error([&] { Mamba2 m(o); }, parts);
  };
  bad({.d_model = 12, .num_heads = 5}, {"num_heads", "5"});
  bad({.d_model = 12, .state_size = 0}, {"state_size", "0"});
  bad({.d_model = 12, .state_size = int64_t{1} << 40}, {"2^36"});
  bad({.d_model = 12, .num_heads = 4, .num_groups = 3}, {"num_groups", "num_heads", "3", "4"});
  bad({.d_model = 12, .num_groups = 0}, {"num_groups", "0"});
  bad({.d_model = 12, .dt_min = -1}, {"dt_min", "-1"});
  bad({.d_model = 12, .dt_min = 2, .dt_max = 1}, {"dt_min", "2", "dt_max"});
  bad({.d_model = 12, .dt_max = std::nan("")}, {"dt_max"});
}

}  // namespace
}  // namespace attzoo::testing::mamba2_test
