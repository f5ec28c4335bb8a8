#include <attzoo/forgetting.hpp>

#include "support/error_rule.hpp"
#include "support/mechanism_contract.hpp"

namespace attzoo::testing::forgetting_test {
namespace {

ForgettingSelfAttentionOptions small(bool causal = true) {
  return {.d_model = 12,
          .num_heads = 2,
          .num_kv_heads = 1,
          .dropout = 0,
          .bias = true,
          .rope = true,
          .causal = causal};
}

ForgettingSelfAttention make(const ForgettingSelfAttentionOptions& o,
                             torch::ScalarType dtype = torch::kFloat64) {
  ForgettingSelfAttention m(o);
  m->to(dtype);
  m->eval();
  return m;
}

/// By its definition, a pair at a time.
AttentionResult by_definition(ForgettingSelfAttention m, const torch::Tensor& x) {
  const auto& o = m->options;
  const int64_t n = x.size(1), H = o.num_heads, Hkv = o.num_kv_heads.value_or(H);
  const auto q = apply_rope(split_heads(m->w_q(x), H)),
             k = apply_rope(split_heads(m->w_k(x), Hkv)).repeat_interleave(H / Hkv, 1),
             v = split_heads(m->w_v(x), Hkv).repeat_interleave(H / Hkv, 1);
  const auto gates = torch::log(torch::sigmoid(m->w_f(x))).transpose(1, 2);  // [B, H, n]
  auto s = torch::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(m->d_head()));
  std::vector<torch::Tensor> rows;
  for (int64_t i = 0; i < n; ++i) {
    std::vector<torch::Tensor> row;
    for (int64_t j = 0; j < n; ++j) {
      const auto between = gates.slice(2, std::min(i, j) + 1, std::max(i, j) + 1).sum(2);
      const bool seen = !o.causal || (j <= i && i - j < o.sliding_window.value_or(n));
      row.push_back(seen ? s.select(2, i).select(2, j) + between
                         : torch::full_like(between, kNegativeInfinity));
    }
    rows.push_back(torch::stack(row, -1));
  }
  s = torch::stack(rows, 2);
  const auto w = torch::softmax(s, -1);
  return {m->w_o(torch::matmul(w, v).transpose(1, 2).flatten(2)),
          LazyWeights(w.sizes().vec(),
                      [w](int64_t begin, int64_t end) { return w.slice(2, begin, end); }),
          torch::logsumexp(s, -1)};
}

TEST(Forgetting, IsItsDefinition) {
  torch::manual_seed(1);
  for (const int64_t n : {1, 2, 21}) {
    for (const int which : {0, 1, 2}) {
      auto o = small(which > 0);
      if (which == 2) o.sliding_window = 5;
      auto m = make(o);
      auto x = torch::randn({2, n, 12}, torch::kFloat64).requires_grad_();
      const auto got = m(x), want = by_definition(m, x);
      EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-10, 1e-12));
      EXPECT_TRUE(torch::allclose(got.weights, want.weights, 1e-10, 1e-12));
      EXPECT_TRUE(torch::allclose(got.lse, want.lse, 1e-10, 1e-12));
      const auto cotangent = torch::randn_like(got.output);
      Tensors leaves{x};
      for (const auto& p : m->named_parameters()) leaves.push_back(p.value());
      const auto gradients = [&](const AttentionResult& r) {
        return torch::autograd::grad({(r.output * cotangent).sum() + r.lse.sin().sum()}, leaves, {},
                                     /*retain_graph=*/true, /*create_graph=*/false,
                                     /*allow_unused=*/true);
      };
      const auto a = gradients(got), b = gradients(want);
      for (size_t i = 0; i < a.size(); ++i) {
        const auto other = b[i].defined() ? b[i] : torch::zeros_like(leaves[i]);
        EXPECT_TRUE(torch::allclose(a[i], other, 1e-9, 1e-11)) << n << " " << which << " " << i;
      }
    }
  }
}

TEST(Forgetting, LowTypesFollowTheErrorRule) {
  torch::manual_seed(2);
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    auto low = make(small(), dtype), gold = make(small());
    const torch::NoGradGuard no_grad;
    for (const auto& [name, value] : state_dict(*low)) state_dict(*gold).at(name).copy_(value);
    const auto x = torch::randn({2, 33, 12}, dtype);
    expect_within_rule(low(x).output, by_definition(gold, x.to(torch::kFloat64)).output,
                       by_definition(low, x).output, 2, 33, c10::toString(dtype));
  }
}

TEST(Forgetting, LongTextsLoseNoDigits) {
  // Behind 2^17 tokens of gates that are nearly shut, the last ones attend as they do alone.
  const torch::NoGradGuard no_grad;
  auto o = small();
  o.rope = false;
  o.sliding_window = 16;
  o.forget_bias = -30;
  auto m = make(o, torch::kFloat32);
  const int64_t n = (1 << 17) + 64;
  auto x = torch::randn({1, n, 12});
  const auto all = m(x).output.slice(1, n - 32), alone = m(x.slice(1, n - 64)).output.slice(1, 32);
  EXPECT_LE((all - alone).abs().max().item<double>(), 1e-6);
}

TEST(Forgetting, GoesOnFromACache) {
  const torch::NoGradGuard no_grad;
  for (const bool windowed : {false, true}) {
    auto o = small();
    if (windowed) o.sliding_window = 6;
    auto m = make(o);
    const AnyAttention any(m);
    expect_goes_on_as_alone(any, "forgetting");
    const auto x = torch::randn({2, 200, 12}, torch::kFloat64);
    const auto want = m(x).output;
    const auto expect = [&](Cache cache, int64_t begin, int64_t end) {
      const auto got = m(x.slice(1, begin, end), {.cache = cache}).output;
      EXPECT_TRUE(torch::allclose(got, want.slice(1, begin, end), 1e-10, 1e-12)) << begin;
    };
    auto cache = m->make_cache(2, 200);
    expect(cache, 0, 90);
    for (int64_t i = 90; i < 180; i += 3) expect(cache, i, i + 3);
    cache.truncate(170);
    auto copy = cache.clone();
    expect(cache, 170, 190);
    expect(copy, 170, 171);
    copy.reorder(torch::tensor({1, 0}));
    const auto turned = m(x.flip(0).slice(1, 171, 180), {.cache = copy}).output;
    EXPECT_TRUE(torch::allclose(turned, want.flip(0).slice(1, 171, 180), 1e-10, 1e-12));
    cache.reset();
    expect(cache, 0, 7);
  }
}

TEST(Forgetting, DocumentsAreAlone) {
  const AnyAttention m(make(small(false)));
  expect_packs(m, "forgetting");
  expect_documents_are_alone(m, {.causal = true}, "forgetting");
  expect_documents_are_apart(m, "forgetting");
}

TEST(Forgetting, OpenGatesForgetNothing) {
  auto o = small(false);
  o.num_kv_heads = 2;
  auto m = make(o);
  const torch::NoGradGuard no_grad;
  m->w_f->weight.zero_();
  m->w_f->bias.fill_(200);
  MultiHeadSelfAttention plain(
      {.d_model = 12, .num_heads = 2, .dropout = 0, .bias = true, .rope = true});
  plain->to(torch::kFloat64);
  auto state = state_dict(*m);
  state.erase("w_f.weight");
  state.erase("w_f.bias");
  load_state_dict(*plain, state);
  const auto x = torch::randn({2, 30, 12}, torch::kFloat64);
  EXPECT_TRUE(torch::allclose(m(x).output, plain(x).output, 1e-10, 1e-12));
}

TEST(Forgetting, LivesAsAModule) {
  expect_lives_as_a_module(make(small()));
  std::stringstream text;
  text << *make(small());
  EXPECT_NE(text.str().find("attzoo::ForgettingSelfAttention(d_model=12"), std::string::npos);
}

TEST(Forgetting, Errors) {
  expect_error([] { ForgettingSelfAttention({.d_model = 12, .num_heads = 5}); },
               {"ForgettingSelfAttention", "num_heads", "5"});
  expect_error([] { ForgettingSelfAttention({.d_model = 12, .num_heads = 2, .num_kv_heads = 3}); },
               {"ForgettingSelfAttention", "num_kv_heads", "3"});
  expect_error(
      [] { ForgettingSelfAttention({.d_model = 12, .num_heads = 2, .forget_bias = std::nan("")}); },
      {"ForgettingSelfAttention", "forget_bias", "nan"});
  auto m = make(small());
  const auto x = torch::randn({1, 5, 12}, torch::kFloat64);
  expect_error([&] { m(x, {.context = x}); }, {"ForgettingSelfAttention", "context"});
  expect_error([&] { m->make_context_cache(x); }, {"ForgettingSelfAttention", "context"});
  const auto q = torch::randn({1, 2, 5, 4});
  expect_error([&] { decay(torch::zeros({2, 5})); }, {"decay", "[B, H, S]", "[2, 5]"});
  expect_error(
      [&] {
        attention(q, q, q, causal(), decay(torch::zeros({1, 2, 4})));
      },
      {"decay", "[1, 2, 4]"});
  const auto k = q.slice(2, 1);
  expect_error(
      [&] {
        attention(q, k, k, full(), decay(torch::zeros({1, 2, 4})));
      },
      {"decay", "5 queries", "4 keys"});
}

}  // namespace
}  // namespace attzoo::testing::forgetting_test
