// What today's models put around attention: each option of MultiHeadSelfAttention and
// GroupedSelfAttention against its definition, written out here on tensors.

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/serialize.h>
#include <attzoo/grouped.hpp>
#include <attzoo/io/state_dict.hpp>
#include <attzoo/multi_head.hpp>

#include <functional>
#include <random>
#include <sstream>

#include "support/error_rule.hpp"
#include "support/expect_error.hpp"

namespace attzoo::testing::model_options_test {
namespace {

using Options = GroupedSelfAttentionOptions;

struct Variant {
  std::string name;
  std::function<void(Options&)> change;
};

std::vector<Variant> variants() {
  const auto all = [](Options& o) {
    o.head_dim = 10;
    o.bias = true;
    o.out_bias = false;
    o.qk_norm = true;
    o.qk_norm_eps = 1e-2;
    o.softcap = 0.8;
    o.sinks = true;
    o.output_gate = true;
    o.sliding_window = 5;
    o.rope = RopeOptions{.base = 300,
                         .pairs = RopePairs::kHalves,
                         .dimensions = 6,
                         .scaling = YarnRopeScaling{.factor = 4, .original_max_position = 16}};
  };
  return {
      {"plain", [](Options&) {}},
      {"head_dim", [](Options& o) { o.head_dim = 7; }},
      {"out_bias", [](Options& o) { o.out_bias = true; }},
      {"no_out_bias", [](Options& o) { o.bias = true, o.out_bias = false; }},
      {"qk_norm", [](Options& o) { o.qk_norm = true; }},
      {"qk_norm_rope", [](Options& o) { o.qk_norm = true, o.qk_norm_eps = 0.1, o.rope = true; }},
      {"softcap", [](Options& o) { o.softcap = 0.5; }},
      {"sinks", [](Options& o) { o.sinks = true; }},
      {"output_gate", [](Options& o) { o.output_gate = true; }},
      {"output_gate_bias", [](Options& o) { o.output_gate = true, o.bias = true; }},
      {"sliding_window", [](Options& o) { o.sliding_window = 4; }},
      {"sliding_window_1", [](Options& o) { o.sliding_window = 1, o.sinks = true; }},
      {"sliding_window_wide", [](Options& o) { o.sliding_window = 1000; }},
      {"all", all}};
}

Options options_of(const Variant& variant, int64_t heads = 4, int64_t kv_heads = 2) {
  Options o{.d_model = 16,
            .num_query_heads = heads,
            .num_kv_heads = kv_heads,
            .input_dim = 11,
            .dropout = 0,
            .causal = true};
  variant.change(o);
  if (o.head_dim) o.d_model = 13;  // of which the heads are no part
  return o;
}

GroupedSelfAttention make(const Options& o, torch::ScalarType dtype = torch::kFloat64) {
  GroupedSelfAttention m(o);
  const torch::NoGradGuard no_grad;
  for (auto& p : m->parameters()) p.add_(torch::randn_like(p) * 0.3);
  m->to(dtype);
  m->eval();
  return m;
}

struct Wanted {
  torch::Tensor output, weights, lse;
};

/// y = W_o (sigmoid(W_g x) * concat_h sum_j p_hij v_j), p = softmax([cap(q k / sqrt(D)) + bias,
/// sink]) without its last column. `allowed` broadcasts to [B, H, L, S].
Wanted by_definition(const Options& o, const std::map<std::string, torch::Tensor>& p,
                     const torch::Tensor& x, const torch::Tensor& context,
                     const torch::Tensor& allowed, const torch::Tensor& bias = {},
                     const torch::Tensor& positions = {}) {
  const int64_t B = x.size(0), L = x.size(1), S = context.size(1), H = o.num_query_heads;
  const int64_t D = o.head_dim.value_or(o.d_model / H);
  const auto apply = [&](const std::string& name, const torch::Tensor& t) {
    auto y = torch::matmul(t, p.at(name + ".weight").t());
    return p.count(name + ".bias") ? y + p.at(name + ".bias") : y;
  };
  const auto heads = [&](const torch::Tensor& t) {
    return t.reshape({B, t.size(1), t.size(2) / D, D}).permute({0, 2, 1, 3});
  };
  auto q = heads(apply("w_q", x)), k = heads(apply("w_k", context));
  if (o.qk_norm) {
    const auto norm = [&](const torch::Tensor& t, const std::string& name) {
      return t * torch::rsqrt((t * t).mean(-1, true) + o.qk_norm_eps) * p.at(name + ".weight");
    };
    q = norm(q, "norm_q");
    k = norm(k, "norm_k");
  }
  if (o.rope) {
    auto placed = *o.rope.options();
    if (positions.defined()) placed.positions = positions;
    q = apply_rope(q, placed);
    k = apply_rope(k, placed);
  }
  const int64_t group = H / o.num_kv_heads;
  k = k.repeat_interleave(group, 1);
  const auto v = heads(apply("w_v", context)).repeat_interleave(group, 1);
  auto s = torch::einsum("bhid,bhjd->bhij", {q, k}) / std::sqrt(static_cast<double>(D));
  if (o.softcap) s = torch::tanh(s / *o.softcap) * *o.softcap;
  if (bias.defined()) s = s + bias;
  auto may = allowed;
  if (o.sliding_window) {
    may = may & torch::ones({L, S}, torch::kBool).triu(S - L - *o.sliding_window + 1);
  }
  auto e = torch::exp(s) * may.to(s.scalar_type());
  auto sum = e.sum(-1, true);
  if (o.sinks) sum = sum + torch::exp(p.at("sinks")).view({1, H, 1, 1});
  const auto none = sum == 0;
  sum = sum.masked_fill(none, 1.0);
  const auto weights = e / sum;
  auto joined = torch::einsum("bhij,bhjd->bhid", {weights, v}).permute({0, 2, 1, 3});
  joined = joined.reshape({B, L, H * D});
  if (o.output_gate) joined = joined / (1 + torch::exp(-apply("w_g", x)));
  return {apply("w_o", joined), weights, torch::log(sum).masked_fill(none, -INFINITY).squeeze(-1)};
}

torch::Tensor causal_mask(int64_t L, int64_t S) {
  return torch::ones({L, S}, torch::kBool).tril(S - L);
}

/// Outputs, weights, lse, and the gradients of a function of all three.
void expect_same(GroupedSelfAttention& m, const AttentionResult& got, const Wanted& want,
                 const std::vector<torch::Tensor>& inputs, const std::string& what) {
  const auto close = [&](const torch::Tensor& a, const torch::Tensor& b, const std::string& part) {
    ASSERT_EQ(a.sizes(), b.sizes()) << what << " " << part;
    EXPECT_TRUE(torch::allclose(a, b, 1e-9, 1e-11)) << what << " " << part;
  };
  const torch::Tensor weights = got.weights;
  close(got.output, want.output, "output");
  close(weights, want.weights, "weights");
  close(got.lse, want.lse, "lse");
  auto leaves = inputs;
  for (const auto& p : m->parameters()) leaves.push_back(p);
  const auto of_output = torch::randn_like(want.output), of_weights = torch::randn_like(weights),
             of_lse = torch::randn_like(want.lse);
  const auto gradients = [&](const torch::Tensor& o, const torch::Tensor& w,
                             const torch::Tensor& lse) {
    const auto finite = lse.masked_fill(want.lse.detach() == -INFINITY, 0.0);
    const auto loss = (o * of_output).sum() + (w * of_weights).sum() + (finite * of_lse).sum();
    return torch::autograd::grad({loss}, leaves, {}, true, false, true);
  };
  const auto a = gradients(got.output, weights, got.lse),
             b = gradients(want.output, want.weights, want.lse);
  for (size_t i = 0; i < leaves.size(); ++i) {
    ASSERT_EQ(a[i].defined(), b[i].defined()) << what << " gradient " << i;
    if (a[i].defined()) close(a[i], b[i], c10::str("gradient ", i));
  }
}

std::map<std::string, torch::Tensor> parameters(GroupedSelfAttention& m) {
  std::map<std::string, torch::Tensor> all;
  for (const auto& p : m->named_parameters()) all[p.key()] = p.value();
  return all;
}

TEST(ModelOptions, AreTheirDefinitions) {
  torch::manual_seed(21);
  std::mt19937 random(21);
  for (const auto& variant : variants()) {
    for (const int64_t n : {1, 3, 17, 70}) {
      const int64_t kv = std::vector<int64_t>{1, 2, 4}[random() % 3];
      const auto o = options_of(variant, 4, kv);
      auto m = make(o);
      const auto p = parameters(m);
      auto x = torch::randn({2, n, 11}, torch::kFloat64).requires_grad_();
      const auto causal = causal_mask(n, n);
      const auto what = c10::str(variant.name, " n=", n, " kv=", kv);
      expect_same(m, m(x), by_definition(o, p, x, x, causal), {x}, what);
      const auto mask = torch::rand({2, n, n}) < 0.6;
      expect_same(m, m(x, {.mask = mask}), by_definition(o, p, x, x, causal & mask.unsqueeze(1)),
                  {x}, what + " mask");
      auto bias = torch::randn({4, n, n}, torch::kFloat64).unsqueeze(0).requires_grad_();
      expect_same(m, m(x, {.mask = bias}), by_definition(o, p, x, x, causal, bias), {x, bias},
                  what + " bias");
      const auto real = torch::rand({2, n}) < 0.7;
      expect_same(m, m(x, {.key_padding_mask = real}),
                  by_definition(o, p, x, x, causal & real.view({2, 1, 1, n})), {x},
                  what + " padding");
      const auto ids = std::get<0>((torch::rand({2, n}) < 0.2).cumsum(1).sort(1));
      const auto together = (ids.unsqueeze(2) == ids.unsqueeze(1)).unsqueeze(1);
      const auto begin =
          torch::searchsorted(ids.contiguous(), ids.contiguous());  // of each token's document
      expect_same(
          m, m(x, {.documents = {.ids = ids}}),
          by_definition(o, p, x, x, causal & together, {}, (torch::arange(n) - begin).unsqueeze(1)),
          {x}, what + " documents");
      auto context = torch::randn({2, n + 4, 11}, torch::kFloat64).requires_grad_();
      expect_same(m, m(x, {.context = context}),
                  by_definition(o, p, x, context, causal_mask(n, n + 4)), {x, context},
                  what + " context");
      if (o.sliding_window) continue;
      expect_same(m, m(x, {.causal = false}),
                  by_definition(o, p, x, x, torch::ones({n, n}, torch::kBool)), {x},
                  what + " all tokens");
    }
  }
}

TEST(ModelOptions, OfMultiHeadAreThoseOfGrouped) {
  torch::manual_seed(22);
  for (const auto& variant : variants()) {
    const auto o = options_of(variant, 4, 4);
    auto grouped = make(o);
    MultiHeadSelfAttention m({.d_model = o.d_model,
                              .num_heads = 4,
                              .input_dim = o.input_dim,
                              .dropout = 0,
                              .bias = o.bias,
                              .rope = o.rope,
                              .causal = true,
                              .head_dim = o.head_dim,
                              .out_bias = o.out_bias,
                              .qk_norm = o.qk_norm,
                              .qk_norm_eps = o.qk_norm_eps,
                              .softcap = o.softcap,
                              .sinks = o.sinks,
                              .output_gate = o.output_gate,
                              .sliding_window = o.sliding_window});
    m->to(torch::kFloat64);
    load_state_dict(*m, state_dict(*grouped));
    const auto x = torch::randn({2, 20, 11}, torch::kFloat64);
    const auto want = grouped(x);
    EXPECT_TRUE(torch::equal(m(x).output, want.output)) << variant.name;
    EXPECT_TRUE(torch::equal(m(x).weights.tensor(), want.weights.tensor())) << variant.name;
    MultiHeadSelfAttention again(m->get_config());
    again->to(torch::kFloat64);
    load_state_dict(*again, state_dict(*m));
    EXPECT_TRUE(torch::equal(again(x).output, want.output)) << variant.name;
  }
}

TEST(ModelOptions, GoOnFromACache) {
  torch::manual_seed(23);
  const torch::NoGradGuard no_grad;
  for (const auto& variant : variants()) {
    auto m = make(options_of(variant));
    const auto x = torch::randn({2, 90, 11}, torch::kFloat64);
    const auto want = m(x).output;
    for (const int64_t prompt : {1, 40}) {
      auto cache = m->make_cache(2, 90);
      for (int64_t at = 0, L = prompt; at < 90; at += L, L = at % 3 == 0 ? 9 : 1) {
        const int64_t end = std::min<int64_t>(90, at + L);
        const auto got = m(x.slice(1, at, end), {.cache = cache}).output;
        EXPECT_TRUE(torch::allclose(got, want.slice(1, at, end), 1e-10, 1e-12))
            << variant.name << " " << at;
      }
    }
    // Sequences of different lengths, padded on the left.
    const auto real = torch::arange(30).unsqueeze(0) >= torch::tensor({{0}, {11}});
    auto cache = m->make_cache(2, 90);
    m(x.slice(1, 0, 30), {.key_padding_mask = real, .cache = cache});
    for (int64_t at = 30; at < 36; ++at) {
      const auto got = m(x.slice(1, at, at + 1), {.cache = cache}).output[1];
      const auto alone = m(x.slice(0, 1, 2).slice(1, 11, at + 1)).output[0].slice(0, at - 11);
      EXPECT_TRUE(torch::allclose(got, alone, 1e-10, 1e-12)) << variant.name << " " << at;
    }
    // A half type for a wider module.
    auto low = m->make_cache(2, 90, {.dtype = torch::kBFloat16});
    const auto got = m(x.slice(1, 0, 20), {.cache = low}).output;
    EXPECT_EQ(got.scalar_type(), torch::kFloat64);
    EXPECT_TRUE(torch::allclose(got, want.slice(1, 0, 20), 0.1, 0.1)) << variant.name;
  }
  // Only the window is kept.
  const auto bytes = [](std::optional<int64_t> window, std::optional<int64_t> capacity) {
    return GroupedSelfAttention({.d_model = 16,
                                 .num_query_heads = 4,
                                 .num_kv_heads = 2,
                                 .causal = true,
                                 .sliding_window = window})
        ->make_cache(1, capacity)
        .bytes();
  };
  EXPECT_EQ(bytes(8, 1'000'000), bytes(8, std::nullopt));
  EXPECT_LT(bytes(8, std::nullopt), 200 * 2 * 8 * 4);
  EXPECT_EQ(bytes(std::nullopt, 1000), 1000 * 2 * 8 * 4);
}

TEST(ModelOptions, NoGradientIsLostInACache) {
  for (const auto* name : {"sinks", "norm_q.weight", "norm_k.weight", "w_g.weight", "w_g.bias",
                           "w_q.bias", "w_v.weight"}) {
    auto m = make(options_of(variants().back()));
    for (auto& p : m->named_parameters()) p.value().requires_grad_(p.key() == name);
    const auto x = torch::randn({1, 2, 11}, torch::kFloat64);
    const auto cache = m->make_cache(1, 8);
    expect_error([&] { m(x, {.cache = cache}); }, {"GroupedSelfAttention", "gradients"});
    m->named_parameters()[name].requires_grad_(false);
    EXPECT_FALSE(m(x, {.cache = cache}).output.requires_grad());
  }
}

TEST(ModelOptions, InHalfTypes) {
  torch::manual_seed(24);
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    for (const auto& variant : variants()) {
      const auto o = options_of(variant);
      auto low = make(o, dtype);
      auto p = parameters(low), p64 = p;
      for (auto& [name, t] : p64) t = t.detach().to(torch::kFloat64);
      const auto x = torch::randn({2, 33, 11}, torch::kFloat64).to(dtype);
      const auto x64 = x.to(torch::kFloat64);
      const auto causal = causal_mask(33, 33);
      const auto exact = by_definition(o, p64, x64, x64, causal);
      const auto plain = by_definition(o, p, x, x, causal);
      const auto got = low(x);
      const auto what = variant.name + " " + c10::toString(dtype);
      EXPECT_EQ(got.output.scalar_type(), dtype);
      expect_within_rule(got.output, exact.output, plain.output, 2, 33, what);
      EXPECT_EQ(got.weights.tensor().scalar_type(), dtype);
      expect_within_rule(got.weights.tensor(), exact.weights, plain.weights, 2, 33, what);
    }
  }
}

TEST(ModelOptions, LiveInModules) {
  torch::manual_seed(25);
  for (const auto& variant : variants()) {
    const auto o = options_of(variant);
    auto m = make(o);
    const auto x = torch::randn({2, 9, 11}, torch::kFloat64);
    const auto want = m(x).output;
    const auto copy = std::dynamic_pointer_cast<GroupedSelfAttentionImpl>(m->clone());
    EXPECT_TRUE(torch::equal(copy->forward(x).output, want)) << variant.name;
    std::stringstream stream;
    torch::save(m, stream);
    GroupedSelfAttention loaded(m->get_config());
    loaded->to(torch::kFloat64);
    torch::load(loaded, stream);
    EXPECT_TRUE(torch::equal(loaded(x).output, want)) << variant.name;
  }
  auto m = make(options_of(variants().back()));
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const auto& p : m->named_parameters()) shapes[p.key()] = p.value().sizes().vec();
  const std::map<std::string, std::vector<int64_t>> want{
      {"w_q.weight", {40, 11}}, {"w_q.bias", {40}},       {"w_k.weight", {20, 11}},
      {"w_k.bias", {20}},       {"w_v.weight", {20, 11}}, {"w_v.bias", {20}},
      {"w_o.weight", {13, 40}}, {"w_g.bias", {40}},       {"w_g.weight", {40, 11}},
      {"sinks", {4}},           {"norm_q.weight", {10}},  {"norm_k.weight", {10}}};
  EXPECT_EQ(shapes, want);
  std::stringstream text;
  text << m << GroupedSelfAttention(16, 4, 2);
  for (const auto* part : {"head_dim=10", "out_bias=false", "qk_norm=true", "qk_norm_eps=0.01",
                           "softcap=0.8", "sinks=true", "output_gate=true", "sliding_window=5",
                           "pairs=halves", "yarn", "rope=false, causal=false)"}) {
    EXPECT_NE(text.str().find(part), std::string::npos) << part << " in " << text.str();
  }
}

TEST(ModelOptions, Errors) {
  const auto bad = [](auto change, std::vector<std::string> parts) {
    for (const bool grouped : {false, true}) {
      auto named = parts;
      named.push_back(grouped ? "GroupedSelfAttention" : "MultiHeadSelfAttention");
      if (grouped) {
        GroupedSelfAttentionOptions o{.d_model = 16, .num_query_heads = 4, .num_kv_heads = 2};
        change(o);
        expect_error([&] { GroupedSelfAttention m(o); }, named);
      } else {
        MultiHeadSelfAttentionOptions o{.d_model = 16, .num_heads = 4};
        change(o);
        expect_error([&] { MultiHeadSelfAttention m(o); }, named);
      }
    }
  };
  const double nan = std::nan("");
  for (const int64_t n : {int64_t{0}, int64_t{-3}, INT64_MAX, INT64_MIN}) {
    bad([&](auto& o) { o.head_dim = n; }, {"head_dim", std::to_string(n)});
  }
  bad([](auto& o) { o.head_dim = int64_t{1} << 33; }, {"head_dim=8589934592", "2^36"});
  bad([](auto& o) { o.head_dim = 7, o.rope = true; }, {"rope", "even", "7"});
  for (const int64_t n : {int64_t{0}, int64_t{-1}, INT64_MIN}) {
    bad([&](auto& o) { o.sliding_window = n; }, {"sliding_window", std::to_string(n)});
  }
  for (const double cap : {0.0, -1.0, 1e31, 1e-31, nan, double{INFINITY}}) {
    bad([&](auto& o) { o.softcap = cap; }, {"softcap"});
  }
  for (const double eps : {-1e-6, nan, double{INFINITY}}) {
    bad([&](auto& o) { o.qk_norm = true, o.qk_norm_eps = eps; }, {"qk_norm_eps"});
  }
  expect_error([] { GroupedSelfAttention({.d_model = 16, .num_query_heads = 0, .head_dim = 4}); },
               {"GroupedSelfAttention", "num_query_heads", "0"});
  GroupedSelfAttention m(
      {.d_model = 16, .num_query_heads = 4, .num_kv_heads = 2, .sliding_window = 3});
  const auto x = torch::randn({1, 5, 16});
  expect_error([&] { m(x); }, {"GroupedSelfAttention", "sliding_window", "causal"});
  EXPECT_EQ(m(x, {.causal = true}).output.size(1), 5);
}

}  // namespace
}  // namespace attzoo::testing::model_options_test
