#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/nn/modules/container/any.h>
#include <torch/serialize.h>
#include <attzoo/core/recurrence/linear_attention.hpp>
#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/linear.hpp>

#include <sstream>

#include "support/documents_contract.hpp"
#include "support/error_rule.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing::linear_test {
namespace {

constexpr auto kDouble = torch::kFloat64;

template <class Module = LinearSelfAttention>
Module make(LinearSelfAttentionOptions options) {
  torch::manual_seed(3);
  Module m(options);
  m->to(kDouble);
  m->eval();
  return m;
}

LinearSelfAttentionOptions options(int64_t heads = 1, bool causal = false) {
  return {.d_model = 12,
          .num_heads = heads,
          .feature_dim = 6,
          .input_dim = 10,
          .dropout = 0,
          .bias = true,
          .causal = causal};
}

/// The definition, quadratic: allowed [B or 1, 1, L, S].
template <class Map, class Module>
std::pair<torch::Tensor, torch::Tensor> dense(Module& m, const torch::Tensor& x,
                                              const torch::Tensor& context,
                                              const torch::Tensor& allowed) {
  const int64_t H = m->options.num_heads;
  const auto split = [H](const torch::Tensor& t) {
    return t.view({t.size(0), t.size(1), H, -1}).transpose(1, 2);
  };
  const auto q = Map()(split(m->w_q(x))), k = Map()(split(m->w_k(context))),
             v = split(m->w_v(context));
  auto s = torch::matmul(q, k.transpose(-2, -1)) * allowed;
  s = s / (s.sum(-1, true) + m->options.eps);
  return {m->w_o(torch::matmul(s, v).transpose(1, 2).flatten(2)), H == 1 ? s.squeeze(1) : s};
}

torch::Tensor tril(int64_t L, int64_t S) { return torch::ones({1, 1, L, S}, kDouble).tril(S - L); }

template <class Map>
void check_definition() {
  for (const int64_t heads : {1, 3}) {
    auto m = make<LinearSelfAttentionWith<Map>>(options(heads));
    for (const auto& [L, S] : {std::pair{1, 1}, {9, 9}, {200, 200}, {5, 9}, {9, 5}, {70, 200}}) {
      const auto x = torch::randn({2, L, 10}, kDouble), context = torch::randn({2, S, 10}, kDouble);
      for (const bool causal : {false, true}) {
        const auto got = m(x, {.causal = causal, .context = context});
        const auto [out, weights] =
            dense<Map>(m, x, context, causal ? tril(L, S) : torch::ones({1, 1, L, S}, kDouble));
        EXPECT_TRUE(torch::allclose(got.output, out, 1e-9, 1e-11)) << L << " " << S << causal;
        EXPECT_EQ(got.weights.sizes(), weights.sizes());
        EXPECT_TRUE(torch::allclose(got.weights, weights, 1e-9, 1e-11));
        EXPECT_TRUE(torch::allclose(got.weights.rows(0, 1), weights.slice(-2, 0, 1), 1e-9, 1e-11));
      }
    }
  }
}

TEST(Linear, IsItsDefinition) {
  check_definition<EluPlusOne>();
  check_definition<ReluMap>();
  check_definition<ExpMap>();
  struct Square {
    torch::Tensor operator()(const torch::Tensor& z) const { return z * z; }
  };
  check_definition<Square>();
}

TEST(Linear, PaddingChangesNothing) {
  for (const bool causal : {false, true}) {
    auto m = make(options(3, causal));
    const std::vector<int64_t> lengths{9, 4, 1};
    auto x = torch::randn({3, 9, 10}, kDouble);
    x[1][7][0] = std::nan("");  // what is padded is not looked at
    const auto padded = m(x, {.key_padding_mask = create_padding_mask(lengths)}).output;
    for (int64_t b = 0; b < 3; ++b) {
      const auto n = lengths[static_cast<size_t>(b)];
      const auto alone = m(x.slice(0, b, b + 1).slice(1, 0, n)).output;
      EXPECT_TRUE(torch::allclose(padded.slice(0, b, b + 1).slice(1, 0, n), alone, 1e-10, 1e-12));
    }
  }
}

TEST(Linear, CausalNeverLooksAhead) {
  auto m = make(options(3, true));
  auto x = torch::randn({1, 300, 10}, kDouble);
  const auto before = m(x).output.slice(1, 0, 150);
  x.slice(1, 150).normal_();
  EXPECT_TRUE(torch::equal(before, m(x).output.slice(1, 0, 150)));
}

TEST(Linear, Gradients) {
  for (const bool causal : {false, true}) {
    auto m = make(options(2, causal));
    auto x = torch::randn({2, 5, 10}, kDouble).requires_grad_();
    auto context = torch::randn({2, 6, 10}, kDouble).requires_grad_();
    Tensors leaves{x, context};
    for (const auto& p : m->named_parameters()) leaves.push_back(p.value());
    const auto cotangent = torch::randn({2, 5, 12}, kDouble);
    const auto f = [&] { return (m(x, {.context = context}).output * cotangent).sum(); };
    gradcheck(f, leaves, "linear");
    gradgradcheck(f, {x, context}, "linear");
    gradcheck([&] { return torch::Tensor(m(x).weights).square().sum(); }, {x}, "linear weights");
  }
}

TEST(Linear, KeepsHalfTypes) {
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    LinearSelfAttention m({.d_model = 12, .causal = true});
    m->to(dtype);
    EXPECT_EQ(m(torch::randn({1, 9, 12}).to(dtype)).output.scalar_type(), dtype);
  }
}

/// Tensor operations in the dtype of the module, sums in float32: what the rule compares with.
torch::Tensor plain_in_dtype(LinearSelfAttention& m, const torch::Tensor& x, bool causal) {
  const auto wide = [](const torch::Tensor& t) { return t.to(torch::kFloat32); };
  const auto q = torch::elu(wide(m->w_q(x))) + 1, k = torch::elu(wide(m->w_k(x))) + 1;
  const auto kv = k.unsqueeze(-1) * wide(m->w_v(x)).unsqueeze(-2);  // [B, n, F, E]
  const auto sum = [&](const torch::Tensor& t) { return causal ? t.cumsum(1) : t.sum(1, true); };
  const auto values = (q.unsqueeze(-1) * sum(kv)).sum(2);
  const auto normalizer = (q * sum(k)).sum(-1, true) + m->options.eps;
  return m->w_o((values / normalizer).to(x.scalar_type()));
}

/// 4096 keys: their sums pass float16's 65504 by far.
TEST(Linear, LongSequencesInHalfTypes) {
  const int64_t n = 4096;
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    for (const bool causal : {false, true}) {
      torch::manual_seed(6);
      const LinearSelfAttentionOptions o{.d_model = 16, .dropout = 0, .causal = causal};
      LinearSelfAttention low(o), gold(o);
      low->to(dtype);
      gold->to(kDouble);
      {
        torch::NoGradGuard no_grad;
        for (size_t i = 0; i < gold->parameters().size(); ++i) {
          gold->parameters()[i].copy_(low->parameters()[i]);
        }
      }
      auto x = torch::randn({1, n, 16}).to(dtype).requires_grad_();
      auto x64 = x.detach().to(kDouble).requires_grad_();
      const auto cotangent = torch::randn({1, n, 16}).to(dtype);
      const auto gradients = [&](LinearSelfAttention& m, const torch::Tensor& out,
                                 const torch::Tensor& leaf) {
        auto leaves = m->parameters();
        leaves.push_back(leaf);
        return torch::autograd::grad({(out * cotangent.to(out.scalar_type())).sum()}, leaves, {},
                                     true);
      };
      const auto got = low(x), exact = gold(x64);
      const auto plain = plain_in_dtype(low, x, causal);
      const std::string what = std::string(c10::toString(dtype)) + (causal ? " causal" : "");
      expect_within_rule(got.output, exact.output, plain, 2, n, what);
      const auto a = gradients(low, got.output, x), b = gradients(gold, exact.output, x64),
                 c = gradients(low, plain, x);
      for (size_t i = 0; i < a.size(); ++i) {
        expect_within_rule(a[i], b[i], c[i], 3, n, what + " gradient " + std::to_string(i));
      }
      const auto w = got.weights.rows(n - 8, n);
      EXPECT_EQ(w.scalar_type(), dtype);
      expect_within_rule(w, exact.weights.rows(n - 8, n), w, 2, n, what + " weights");
      // Derivatives of derivatives go the same way.
      const auto twice = [&](LinearSelfAttention& m, const torch::Tensor& leaf) {
        const auto g = torch::autograd::grad({m(leaf).output.square().mean()}, {leaf}, {}, true,
                                             /*create_graph=*/true)[0];
        return torch::autograd::grad({(g * cotangent.to(g.scalar_type())).sum()}, {leaf})[0];
      };
      const auto second = twice(low, x), second64 = twice(gold, x64);
      EXPECT_TRUE(second.isfinite().all().item<bool>()) << what;
      EXPECT_LE((second.to(kDouble) - second64).norm().item<double>(),
                0.1 * second64.norm().item<double>())
          << what;
      // Autocast: a float32 module whose projections run in the half type.
      if (dtype != torch::kBFloat16) continue;
      LinearSelfAttention single(o);
      {
        torch::NoGradGuard no_grad;
        for (size_t i = 0; i < gold->parameters().size(); ++i) {
          single->parameters()[i].copy_(low->parameters()[i]);
        }
      }
      at::autocast::set_autocast_enabled(torch::kCPU, true);
      at::autocast::set_autocast_dtype(torch::kCPU, dtype);
      const auto under = single(x.detach().to(torch::kFloat32));
      const auto rows = under.weights.rows(n - 8, n);
      at::autocast::set_autocast_enabled(torch::kCPU, false);
      at::autocast::clear_cache();
      expect_within_rule(under.output, exact.output, plain, 2, n, what + " autocast");
      expect_within_rule(rows, exact.weights.rows(n - 8, n), w, 2, n, what + " autocast weights");
    }
  }
}

TEST(Linear, ExpMapInHalfTypes) {
  LinearSelfAttentionWith<ExpMap> m({.d_model = 8, .dropout = 0});
  m->to(torch::kHalf);
  {
    torch::NoGradGuard no_grad;
    m->w_q->weight.fill_(1.5);  // features exp(12): beyond float16
  }
  auto x = torch::ones({1, 20, 8}, torch::kHalf).requires_grad_();
  const auto r = m(x);
  EXPECT_TRUE(
      torch::allclose(r.weights.tensor(), torch::full({1, 20, 20}, 0.05, torch::kHalf), 1e-3, 0));
  EXPECT_TRUE(torch::allclose(r.output, m->w_o(m->w_v(x)), 1e-2, 1e-3));
  r.output.sum().backward();
  EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
}

/// eps 0 and nothing to attend to: rows of zeros, with gradients.
TEST(Linear, NothingToAttendToWithoutEps) {
  for (const bool python_weights : {false, true}) {
    auto o = options(2);
    o.eps = 0;
    o.python_weights = python_weights;
    auto m = make(o);
    const auto zero = m->w_o(torch::zeros({12}, kDouble));
    const auto check = [&](const AttentionInputs& in, int64_t empty_rows) {
      auto x = torch::randn({2, 6, 10}, kDouble).requires_grad_();
      const auto r = m(x, in);
      EXPECT_TRUE(torch::equal(r.output.slice(1, 0, empty_rows), zero.expand({2, empty_rows, 12})));
      const torch::Tensor w = r.weights;
      EXPECT_TRUE(w.isfinite().all().item<bool>());
      if (!python_weights) {
        EXPECT_EQ(w.slice(2, 0, empty_rows).abs().sum().item<double>(), 0);
      }
      auto leaves = m->parameters();
      leaves.push_back(x);
      const auto grads = torch::autograd::grad({r.output.square().sum() + w.square().sum()}, leaves,
                                               {}, std::nullopt, true, true);
      for (const auto& g : grads) {
        EXPECT_TRUE(!g.defined() || g.isfinite().all().item<bool>());
      }
    };
    check({.key_padding_mask = torch::zeros({2, 6}, torch::kBool)}, 6);
    check({.causal = true, .context = torch::randn({2, 4, 10}, kDouble)}, 2);
    check({.context = torch::randn({2, 0, 10}, kDouble)}, 6);
  }
}

TEST(Linear, DocumentsAreAlone) {
  for (const bool python_weights : {false, true}) {
    auto o = options(python_weights ? 1 : 3);
    o.rope = !python_weights;
    if (o.rope) o.feature_dim = 12;
    o.python_weights = python_weights;
    auto m = make(o);
    expect_packs(m, python_weights ? "linear, estimated weights" : "linear");
  }
}

TEST(Linear, FeatureMapsKeepShapes) {
  struct Narrow {
    torch::Tensor operator()(const torch::Tensor& z) const { return z.slice(-1, 1); }
  };
  LinearSelfAttentionWith<Narrow> m({.d_model = 12});
  expect_error(
      [&] {
        m(torch::randn({1, 3, 12}));
      },
      {"LinearSelfAttention", "FeatureMap", "[1, 1, 3, 12]", "[1, 1, 3, 11]"});
}

TEST(Linear, LivesAsAModule) {
  auto m = make(options(3, true));
  const auto x = torch::randn({2, 6, 10}, kDouble);
  const auto want = m(x).output;
  const auto copy = std::dynamic_pointer_cast<LinearSelfAttentionImpl<>>(m->clone());
  EXPECT_TRUE(torch::equal(copy->forward(x).output, want));
  std::stringstream stream;
  torch::save(m, stream);
  LinearSelfAttention loaded(m->get_config());
  loaded->to(kDouble);
  torch::load(loaded, stream);
  EXPECT_TRUE(torch::equal(loaded(x).output, want));
  torch::nn::AnyModule any(m);
  EXPECT_TRUE(torch::equal(any.forward<AttentionResult>(x).output, want));
  std::stringstream text;
  text << m;
  EXPECT_NE(text.str().find("attzoo::LinearSelfAttention(d_model=12"), std::string::npos);
  EXPECT_EQ(m->w_q->weight.sizes(), (std::vector<int64_t>{6, 10}));
  EXPECT_EQ(m(torch::randn({0, 6, 10}, kDouble)).output.sizes(), (std::vector<int64_t>{0, 6, 12}));
  EXPECT_EQ(m(torch::randn({2, 0, 10}, kDouble)).output.sizes(), (std::vector<int64_t>{2, 0, 12}));
}

TEST(Linear, DropoutActsOnTheAttendedVectors) {
  auto o = options();
  o.dropout = 0.5;
  auto m = make(o);
  m->train();
  const auto x = torch::randn({2, 64, 10}, kDouble);
  torch::manual_seed(1);
  const auto a = m(x).output, b = m(x).output;
  torch::manual_seed(1);
  EXPECT_TRUE(torch::equal(a, m(x).output));
  EXPECT_FALSE(torch::equal(a, b));
}

TEST(Linear, Errors) {
  const auto bad = [](auto change, std::vector<std::string> parts) {
    auto o = options();
    change(o);
    parts.push_back("LinearSelfAttention");
    expect_error([&] { LinearSelfAttention m(o); }, parts);
  };
  bad([](auto& o) { o.d_model = 0; }, {"d_model", "0"});
  bad([](auto& o) { o.feature_dim = 0; }, {"feature_dim", "0"});
  bad([](auto& o) { o.num_heads = 5; }, {"num_heads", "5", "12"});
  bad([](auto& o) { o.num_heads = 4; }, {"num_heads", "feature_dim", "4", "6"});
  bad([](auto& o) { o.eps = -1; }, {"eps", "-1"});
  bad([](auto& o) { o.eps = std::nan(""); }, {"eps", "nan"});
  bad([](auto& o) { o.dropout = std::nan(""); }, {"dropout", "nan"});
  bad([](auto& o) { o.feature_dim = int64_t{1} << 40; }, {"feature_dim", "1099511627776"});
  bad([](auto& o) { o.d_model = int64_t{3} << 40; }, {"d_model", "3298534883328"});
  bad([](auto& o) { o.dropout = 2; }, {"dropout", "2"});
  bad([](auto& o) { o.num_heads = 2, o.rope = true; }, {"rope", "even", "3"});
  auto m = make(options());
  const auto x = torch::randn({2, 6, 10}, kDouble);
  expect_error(
      [&] {
        m(x, {.mask = torch::ones({6, 6}, torch::kBool)});
      },
      {"LinearSelfAttention", "mask", "key_padding_mask", "causal"});
  expect_error(
      [&] {
        m(x, {.key_padding_mask = torch::ones({2, 7}, torch::kBool)});
      },
      {"LinearSelfAttention", "key_padding_mask", "[2, 7]"});
  expect_error([&] { m(x[0]); }, {"LinearSelfAttention", "x", "[6, 10]"});
  expect_error([&] { m(x, {.global_attention = torch::ones({6})}); }, {"global_attention"});
}

}  // namespace
}  // namespace attzoo::testing::linear_test
