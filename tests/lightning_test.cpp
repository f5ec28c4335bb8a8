#include <attzoo/lightning.hpp>

#include <cmath>

#include "support/recurrence_contract.hpp"

namespace attzoo::testing::lightning_test {
namespace {

struct LightningTraits {
  using Module = LightningAttention;
  static std::vector<LightningAttentionOptions> options() {
    return {
        {.d_model = 12, .num_heads = 2, .bias = true},
        {.d_model = 8, .num_heads = 3, .head_dim = 4, .layer = 2, .num_layers = 5, .input_dim = 7}};
  }
  static Defined define(LightningAttentionImpl& m, const torch::Tensor& x) {
    const auto& o = m.options;
    const int64_t H = o.num_heads;
    const auto heads = [&](const torch::Tensor& t) {
      return split_heads(t * torch::sigmoid(t), H);
    };
    const auto q = heads(m.w_q(x)), k = heads(m.w_k(x)), v = heads(m.w_v(x));
    std::vector<double> each;
    for (int64_t h = 0; h < H; ++h) {
      const double slope = std::pow(2, -8.0 * static_cast<double>(h + 1) / static_cast<double>(H));
      const double layers = static_cast<double>(o.num_layers - 1) + 1e-5;
      each.push_back(std::exp(-slope * (1 - static_cast<double>(o.layer) / layers + 1e-5)));
    }
    const auto left = torch::tensor(each, torch::kFloat64).to(x.dtype()).view({1, H, 1, 1});
    const auto sums = carried(q, v, [&](const torch::Tensor& S, int64_t i) {
      return left * S + column(k, i) * row(v, i);
    });
    return {v, sums, m.w_o(torch::sigmoid(m.w_g(x)) * normed(join(sums), m.norm))};
  }
};
INSTANTIATE_TEST_SUITE_P(Lightning, RecurrenceContract, recurrence_of<LightningTraits>());

TEST(Lightning, LastLayersForgetSlowly) {
  LightningAttention first(
      LightningAttentionOptions{.d_model = 8, .num_heads = 2, .num_layers = 4});
  auto o = first->get_config();
  o.layer = 3;
  LightningAttention last(o);
  EXPECT_TRUE(torch::allclose(first->decay(),
                              torch::tensor({-0.0625, -0.00390625}, torch::kFloat64) * (1 + 1e-5),
                              1e-14, 0));
  EXPECT_TRUE((last->decay() < 0).all().item<bool>());
  EXPECT_TRUE((last->decay() > first->decay() / 1000).all().item<bool>());
}

TEST(Lightning, Errors) {
  const auto bad = [](LightningAttentionOptions o, std::vector<std::string> parts) {
    parts.push_back("LightningAttention");
    expect_error([&] { LightningAttention m(o); }, parts);
  };
  bad({.d_model = 12, .num_heads = 5}, {"num_heads", "5", "12"});
  bad({.d_model = 12, .layer = 1}, {"layer", "1", "num_layers"});
  bad({.d_model = 12, .layer = -1}, {"layer", "-1"});
  bad({.d_model = 12, .num_layers = 0}, {"num_layers", "0"});
  // Read at each call, as options that no parameter depends on.
  LightningAttention m(LightningAttentionOptions{.d_model = 12, .num_layers = 2});
  m->options.layer = 2;
  expect_error([&] { m(torch::randn({1, 3, 12})); }, {"LightningAttention", "layer", "2"});
}

}  // namespace
}  // namespace attzoo::testing::lightning_test
