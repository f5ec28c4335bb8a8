#include <attzoo/differential.hpp>

#include "support/error_rule.hpp"
#include "support/mechanism_contract.hpp"

namespace attzoo::testing::differential_test {
namespace {

DifferentialSelfAttentionOptions small(bool half_pairs = false) {
  return {.d_model = 16,
          .num_query_heads = 8,
          .num_kv_heads = 4,
          .half_pairs = half_pairs,
          .layer = 2,
          .dropout = 0,
          .bias = true,
          .rope = true,
          .causal = true,
          .head_dim = 4};
}

DifferentialSelfAttention make(const DifferentialSelfAttentionOptions& o,
                               torch::ScalarType dtype = torch::kFloat64) {
  DifferentialSelfAttention m(o);
  if (m->norm_weight.defined()) {
    const torch::NoGradGuard no_grad;
    m->norm_weight.uniform_(0.5, 1.5);
  }
  m->to(dtype);
  m->eval();
  return m;
}

/// By its definition, one pair of heads after the other: output and weights.
std::pair<torch::Tensor, torch::Tensor> by_definition(DifferentialSelfAttention m,
                                                      const torch::Tensor& x,
                                                      const torch::Tensor& context = {}) {
  const auto& o = m->options;
  const auto& from = context.defined() ? context : x;
  const int64_t H = o.num_query_heads, Hkv = o.num_kv_heads, d = m->d_head();
  auto q = split_heads(m->w_q(x), H), k = split_heads(m->w_k(from), Hkv);
  if (o.rope) q = apply_rope(q), k = apply_rope(k);
  const auto v = split_heads(m->w_v(from), Hkv);
  const double init = 0.8 - 0.6 * std::exp(-0.3 * static_cast<double>(o.layer));
  const auto l = torch::exp(torch::dot(m->lambda_q1, m->lambda_k1)) -
                 torch::exp(torch::dot(m->lambda_q2, m->lambda_k2)) + init;
  const auto index = [&](int64_t pair, int64_t i, int64_t heads) {
    return o.half_pairs ? pair + i * heads / 2 : 2 * pair + i;
  };
  std::vector<torch::Tensor> outputs, weights;
  for (int64_t a = 0; a < H / 2; ++a) {
    const int64_t j = a / (H / Hkv);
    std::vector<torch::Tensor> p;
    for (int64_t i = 0; i < 2; ++i) {
      auto s = torch::matmul(q.select(1, index(a, i, H)),
                             k.select(1, index(j, i, Hkv)).transpose(1, 2)) /
               std::sqrt(static_cast<double>(d));
      if (o.causal && !context.defined()) {
        s = s.masked_fill(create_causal_mask(x.size(1)).logical_not(), kNegativeInfinity);
      }
      p.push_back(torch::softmax(s, -1));
    }
    weights.push_back(p[0] - l * p[1]);
    const auto both =
        torch::cat({v.select(1, index(j, 0, Hkv)), v.select(1, index(j, 1, Hkv))}, -1);
    auto y = torch::matmul(weights.back(), both);
    y = y / torch::sqrt(y.square().mean(-1, true) + o.eps);
    if (m->norm_weight.defined()) y = y * m->norm_weight;
    outputs.push_back((1 - init) * y);
  }
  return {m->w_o(torch::cat(outputs, -1)), torch::stack(weights, 1)};
}

TEST(Differential, IsItsDefinition) {
  torch::manual_seed(1);
  for (const bool half_pairs : {false, true}) {
    for (const bool weight : {false, true}) {
      auto o = small(half_pairs);
      o.norm_weight = weight;
      auto m = make(o);
      auto x = torch::randn({2, 19, 16}, torch::kFloat64).requires_grad_();
      auto context = torch::randn({2, 7, 16}, torch::kFloat64).requires_grad_();
      Tensors leaves{x, context};
      for (const auto& p : m->named_parameters()) leaves.push_back(p.value());
      const auto got = m(x);
      const auto crossing = m(x, {.causal = false, .context = context});
      const auto want = by_definition(m, x), want_crossing = by_definition(m, x, context);
      EXPECT_TRUE(torch::allclose(got.output, want.first, 1e-10, 1e-12));
      EXPECT_TRUE(torch::allclose(got.weights, want.second, 1e-10, 1e-12));
      EXPECT_TRUE(torch::allclose(got.weights.rows(3, 7), want.second.slice(2, 3, 7)));
      EXPECT_TRUE(torch::allclose(crossing.output, want_crossing.first, 1e-10, 1e-12));
      EXPECT_EQ(got.lse.sizes(), (std::vector<int64_t>{2, 8, 19}));
      const auto cotangent = torch::randn_like(got.output);
      const auto a = torch::autograd::grad({((got.output + crossing.output) * cotangent).sum()},
                                           leaves),
                 b = torch::autograd::grad({((want.first + want_crossing.first) * cotangent).sum()},
                                           leaves);
      for (size_t i = 0; i < a.size(); ++i) {
        EXPECT_TRUE(torch::allclose(a[i], b[i], 1e-8, 1e-10)) << half_pairs << " " << i;
      }
    }
  }
}

TEST(Differential, LowTypesFollowTheErrorRule) {
  torch::manual_seed(2);
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    auto low = make(small(), dtype), gold = make(small());
    const torch::NoGradGuard no_grad;
    for (const auto& [name, value] : state_dict(*low)) state_dict(*gold).at(name).copy_(value);
    const auto x = torch::randn({2, 33, 16}, dtype);
    expect_within_rule(low(x).output, by_definition(gold, x.to(torch::kFloat64)).first,
                       by_definition(low, x).first, 2, 33, c10::toString(dtype));
  }
}

TEST(Differential, MasksAreThoseOfPairs) {
  auto m = make(small());
  const auto x = torch::randn({2, 9, 16}, torch::kFloat64);
  const auto mask = torch::rand({2, 4, 9, 9}) < 0.7;
  const torch::Tensor weights = m(x, {.mask = mask}).weights;
  EXPECT_TRUE((weights.masked_select(mask.logical_not()) == 0).all().item<bool>());
  // A row without a key is 0, and so is what becomes of it.
  auto none = torch::ones({9, 9}, torch::kBool);
  none[4] = false;
  EXPECT_TRUE(torch::equal(m(x, {.mask = none}).output[0][4], m->w_o->bias));
  expect_error(
      [&] {
        m(x, {.mask = torch::ones({2, 8, 9, 9}, torch::kBool)});
      },
      {"DifferentialSelfAttention", "mask", "[2, 8, 9, 9]"});
}

TEST(Differential, GoesOnFromACache) {
  const torch::NoGradGuard no_grad;
  for (const bool half_pairs : {false, true}) {
    auto m = make(small(half_pairs));
    expect_goes_on_as_alone(AnyAttention(m), "differential");
    const auto x = torch::randn({2, 60, 16}, torch::kFloat64);
    const auto want = m(x).output;
    auto cache = m->make_cache(2, 60);
    for (int64_t at = 0, end = 30; at < 60; at = end, end = std::min<int64_t>(60, at + 3)) {
      const auto got = m(x.slice(1, at, end), {.cache = cache}).output;
      EXPECT_TRUE(torch::allclose(got, want.slice(1, at, end), 1e-10, 1e-12)) << at;
    }
    const auto context = torch::randn({2, 5, 16}, torch::kFloat64);
    const auto of_cache = m(x, {.cache = m->make_context_cache(context)}).output;
    const auto of_context = m(x, {.causal = false, .context = context}).output;
    m->options.causal = false;
    EXPECT_TRUE(torch::allclose(m(x, {.cache = m->make_context_cache(context)}).output, of_context,
                                1e-10, 1e-12));
    EXPECT_EQ(of_cache.sizes(), of_context.sizes());
    // Half of what as many plain heads of keys and values would take, and no copies of values.
    EXPECT_EQ(cache.bytes(), 2 * 60 * 4 * (4 + 4) * 8);
  }
}

TEST(Differential, DocumentsAreAlone) {
  for (const bool half_pairs : {false, true}) {
    const AnyAttention m(make(small(half_pairs)));
    expect_packs(m, "differential");
    expect_documents_are_apart(m, "differential");
  }
}

TEST(Differential, LivesAsAModule) {
  expect_lives_as_a_module(make(small()));
  std::stringstream text;
  text << *make(small());
  EXPECT_NE(text.str().find("attzoo::DifferentialSelfAttention(d_model=16"), std::string::npos);
}

TEST(Differential, Errors) {
  const auto bad = [](auto change, std::vector<std::string> parts) {
    auto o = small();
    change(o);
    parts.push_back("DifferentialSelfAttention");
    expect_error([&] { DifferentialSelfAttention m(o); }, parts);
  };
  bad([](auto& o) { o.num_query_heads = 7, o.num_kv_heads = 7; }, {"num_query_heads", "7"});
  bad([](auto& o) { o.num_kv_heads = 1; }, {"num_kv_heads", "even", "1"});
  bad([](auto& o) { o.num_kv_heads = 6; }, {"num_kv_heads", "6"});
  bad([](auto& o) { o.layer = -1; }, {"layer", "-1"});
  bad([](auto& o) { o.eps = -1; }, {"eps", "-1"});
}

}  // namespace
}  // namespace attzoo::testing::differential_test
