#include <attzoo/relative.hpp>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::relative_test {
namespace {

/// T5's bucket of the distance j - i, a number at a time.
int64_t bucket_of(int64_t distance, bool bidirectional, int64_t buckets, int64_t max_distance) {
  int64_t first = 0;
  if (bidirectional) {
    buckets /= 2;
    if (distance > 0) first = buckets;
    distance = std::abs(distance);
  } else {
    distance = std::max<int64_t>(0, -distance);
  }
  const int64_t exact = buckets / 2;
  if (distance < exact) return first + distance;
  const auto of = [&](int64_t n) {
    return std::log(static_cast<double>(n) / static_cast<double>(exact));
  };
  const double share = of(distance) / of(max_distance) * static_cast<double>(buckets - exact);
  return first + std::min(buckets - 1, exact + static_cast<int64_t>(share));
}

torch::Tensor biases(const torch::Tensor& table, int64_t n, bool bidirectional, int64_t max) {
  std::vector<torch::Tensor> rows;
  for (int64_t i = 0; i < n; ++i) {
    std::vector<int64_t> row;
    for (int64_t j = 0; j < n; ++j) {
      row.push_back(bucket_of(j - i, bidirectional, table.size(0), max));
    }
    rows.push_back(table.index_select(0, torch::tensor(row)).t());  // [H, n]
  }
  return torch::stack(rows, 1).unsqueeze(0);  // [1, H, n, n]
}

struct RelativeTraits : PlainTraits {
  using Module = RelativeSelfAttention;
  static RelativeSelfAttentionOptions options() {
    return {.d_model = 12,
            .num_heads = 3,
            .num_buckets = 8,
            .max_distance = 9,
            .bidirectional = true,
            .scaled = true,
            .dropout = 0,
            .bias = true};
  }
  /// None for a context, which is told here by its length.
  static torch::Tensor score_bias(RelativeSelfAttention& m, int64_t L, int64_t S) {
    if (L != S || S == 0) return torch::zeros({1, 1, 1, 1}, torch::kFloat64);
    return biases(m->relative_attention_bias, S, true, 9);
  }
};
INSTANTIATE_TEST_SUITE_P(Relative, MechanismContract, mechanism<RelativeTraits>());

TEST(Relative, IsT5sFormula) {
  torch::manual_seed(2);
  for (const bool causal : {false, true}) {
    RelativeSelfAttention m({.d_model = 12,
                             .num_heads = 2,
                             .num_buckets = 10,
                             .max_distance = 20,
                             .causal = causal,
                             .head_dim = 5});
    m->to(torch::kFloat64);
    auto x = torch::randn({2, 41, 12}, torch::kFloat64).requires_grad_();
    const auto q = split_heads(m->w_q(x), 2), k = split_heads(m->w_k(x), 2),
               v = split_heads(m->w_v(x), 2);
    auto s =
        torch::matmul(q, k.transpose(2, 3)) + biases(m->relative_attention_bias, 41, !causal, 20);
    if (causal) s = s.masked_fill(create_causal_mask(41).logical_not(), kNegativeInfinity);
    const auto want = m->w_o(torch::matmul(torch::softmax(s, -1), v).transpose(1, 2).flatten(2));
    const auto got = m(x).output;
    EXPECT_TRUE(torch::allclose(got, want, 1e-10, 1e-12));
    const auto cotangent = torch::randn_like(got);
    Tensors leaves{x};
    for (const auto& p : m->named_parameters()) leaves.push_back(p.value());
    const auto a = torch::autograd::grad({(got * cotangent).sum()}, leaves),
               b = torch::autograd::grad({(want * cotangent).sum()}, leaves);
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_TRUE(torch::allclose(a[i], b[i], 1e-9, 1e-11)) << i;
    }
  }
}

TEST(Relative, LaterLayersUseTheTableOfTheFirst) {
  RelativeSelfAttention first(12, 3), own(12, 3),
      later({.d_model = 12, .num_heads = 3, .has_relative_bias = false});
  EXPECT_EQ(state_dict(*later).count("relative_attention_bias"), 0u);
  auto state = state_dict(*own);
  state.erase("relative_attention_bias");
  load_state_dict(*later, state);
  torch::NoGradGuard no_grad;
  own->relative_attention_bias.copy_(first->relative_attention_bias);
  const auto x = torch::randn({2, 9, 12}), context = torch::randn({2, 7, 12});
  EXPECT_TRUE(torch::equal(later(x, {.score = first->bias()}).output, own(x).output));
  EXPECT_FALSE(torch::allclose(later(x).output, own(x).output));
  EXPECT_TRUE(
      torch::equal(later(x, {.context = context}).output, own(x, {.context = context}).output));
  expect_error([&] { later->bias(); }, {"RelativeSelfAttention", "has_relative_bias"});
}

TEST(Relative, LoadsByTheNamesOfT5) {
  RelativeSelfAttention a(12, 3), b(12, 3);
  NameMap names;
  for (const std::string part : {"q", "k", "v", "o"}) names.rename_layer(part, "w_" + part);
  names.rename("relative_attention_bias.weight", "relative_attention_bias");
  std::map<std::string, torch::Tensor> upstream;
  for (const auto& [name, tensor] : state_dict(*a)) {
    upstream[name.starts_with("w_") ? name.substr(2) : name + ".weight"] = tensor;
  }
  load_state_dict(*b, upstream, names);
  const auto x = torch::randn({1, 9, 12});
  EXPECT_TRUE(torch::equal(a(x).output, b(x).output));
}

TEST(Relative, Errors) {
  const auto bad = [](RelativeSelfAttentionOptions o, std::vector<std::string> parts) {
    o.d_model = 12, o.num_heads = 3;
    parts.push_back("RelativeSelfAttention");
    expect_error([&] { RelativeSelfAttention m(o); }, parts);
  };
  bad({.num_buckets = 3}, {"num_buckets", "3"});
  bad({.num_buckets = int64_t{1} << 40}, {"num_buckets", "1099511627776"});
  bad({.num_buckets = 32, .max_distance = 8}, {"max_distance", "8"});
  bad({.num_buckets = 32, .max_distance = 16, .causal = true}, {"max_distance", "16"});
}

}  // namespace
}  // namespace attzoo::testing::relative_test
