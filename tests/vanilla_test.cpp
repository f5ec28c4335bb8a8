#include <torch/nn/init.h>
#include <attzoo/vanilla.hpp>

#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::vanilla_test {
namespace {

struct VanillaTraits : PlainTraits {
  using Module = VanillaSelfAttention;
  static VanillaSelfAttentionOptions options() {
    return {.d_model = 12, .dropout = 0, .bias = true};
  }
  static constexpr bool kHeadAxis = false;
};
INSTANTIATE_TEST_SUITE_P(Vanilla, MechanismContract, mechanism<VanillaTraits>());

using Rows = std::vector<std::vector<double>>;

Rows rows_of(const torch::Tensor& t) {
  Rows rows;
  for (int64_t i = 0; i < t.size(0); ++i) {
    const auto row = t[i].contiguous();
    rows.emplace_back(row.data_ptr<double>(), row.data_ptr<double>() + row.numel());
  }
  return rows;
}

/// x W^T + b, of one token.
std::vector<double> linear(const std::vector<double>& x, const torch::nn::Linear& layer) {
  const auto w = rows_of(layer->weight);
  std::vector<double> y;
  for (size_t i = 0; i < w.size(); ++i) {
    y.push_back(std::inner_product(x.begin(), x.end(), w[i].begin(),
                                   layer->bias[static_cast<int64_t>(i)].item<double>()));
  }
  return y;
}

/// Equation (1), number by number: the weights [n, n] and the output [n, d_model] of tokens x.
std::pair<Rows, Rows> by_hand(VanillaSelfAttention& m, const Rows& x, double temperature) {
  Rows weights, output, k, v;
  for (const auto& token : x) {
    k.push_back(linear(token, m->w_k));
    v.push_back(linear(token, m->w_v));
  }
  for (const auto& token : x) {
    const auto q = linear(token, m->w_q);
    std::vector<double> w;
    for (const auto& key : k) {
      const double score = std::inner_product(q.begin(), q.end(), key.begin(), 0.0);
      w.push_back(std::exp(score / std::sqrt(static_cast<double>(q.size())) / temperature));
    }
    const double sum = std::accumulate(w.begin(), w.end(), 0.0);
    std::vector<double> mean(v[0].size());
    for (size_t j = 0; j < v.size(); ++j) {
      w[j] /= sum;
      for (size_t d = 0; d < mean.size(); ++d) mean[d] += w[j] * v[j][d];
    }
    weights.push_back(w);
    output.push_back(linear(mean, m->w_o));
  }
  return {weights, output};
}

void expect_near(const Rows& got, const Rows& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].size(), want[i].size());
    for (size_t j = 0; j < got[i].size(); ++j) EXPECT_NEAR(got[i][j], want[i][j], 1e-12);
  }
}

TEST(Vanilla, IsEquationOne) {
  torch::manual_seed(2);
  VanillaSelfAttention m(
      {.d_model = 6, .input_dim = 4, .dropout = 0, .bias = true, .temperature = 1.5});
  m->to(torch::kFloat64);
  for (auto& p : m->parameters()) torch::nn::init::normal_(p);  // biases are 0 at first
  const auto x = torch::randn({1, 7, 4}, torch::kFloat64);
  const auto [weights, output] = by_hand(m, rows_of(x[0]), 1.5);
  const auto r = m(x);
  expect_near(rows_of(r.weights.tensor()[0]), weights);
  expect_near(rows_of(r.output[0].detach()), output);
}

TEST(Vanilla, EqualsOneHead) {
  VanillaSelfAttention vanilla(12);
  MultiHeadSelfAttention one(12, 1);
  vanilla->eval();
  one->eval();
  load_state_dict(*one, state_dict(*vanilla));
  const auto x = torch::randn({2, 9, 12});
  EXPECT_TRUE(torch::equal(vanilla(x).output, one(x).output));
  EXPECT_TRUE(torch::equal(vanilla(x).weights, torch::Tensor(one(x).weights).squeeze(1)));
}

TEST(Vanilla, OddWidthCannotRotate) {
  expect_error([] { VanillaSelfAttention({.d_model = 7, .rope = true}); },
               {"VanillaSelfAttention", "rope", "7"});
}

}  // namespace
}  // namespace attzoo::testing::vanilla_test
