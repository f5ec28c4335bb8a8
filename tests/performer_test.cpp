#include <ATen/ops/allclose.h>
#include <gtest/gtest.h>
#include <torch/serialize.h>
#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/multi_head.hpp>
#include <attzoo/performer.hpp>

#include <cmath>
#include <sstream>

#include "support/documents_contract.hpp"
#include "support/error_rule.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing::performer_test {
namespace {

constexpr auto kDouble = torch::kFloat64;

/// Query by query, over the keys that `allowed` [B, L, S] says; `of_all` [B, S], if defined, are
/// those whose largest projection scales all.
torch::Tensor by_definition(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                            const torch::Tensor& P, const PerformerAttentionOptions& o,
                            const torch::Tensor& allowed, const torch::Tensor& of_all = {}) {
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3))));
  const double eps = o.eps.value_or(o.relu_kernel ? 1e-3 : 1e-4);
  const double ratio = 1 / std::sqrt(static_cast<double>(P.size(0)));
  const auto projected = [&](const torch::Tensor& x) { return x.matmul(P.t()) * std::sqrt(scale); };
  const auto features = [&](const torch::Tensor& x, const torch::Tensor& of_max) {
    if (o.relu_kernel) return torch::relu(projected(x)) + eps;
    const auto most = projected(of_max).max().detach();
    const auto half = x.square().sum(-1, true) * (scale / 2);
    return ratio * (torch::exp(projected(x) - half - most) + eps);
  };
  std::vector<torch::Tensor> all;
  for (int64_t b = 0; b < q.size(0); ++b) {
    for (int64_t h = 0; h < q.size(1); ++h) {
      for (int64_t i = 0; i < q.size(2); ++i) {
        const auto seen = allowed[b][i].nonzero().flatten();
        if (seen.numel() == 0) {
          all.push_back(torch::zeros({v.size(3)}, v.options()));
          continue;
        }
        const auto keys = k[b][h].index_select(0, seen);
        const auto scaling =
            of_all.defined() ? k[b][h].index_select(0, of_all[b].nonzero().flatten()) : keys;
        const auto of_q = features(q[b][h][i].unsqueeze(0), q[b][h][i].unsqueeze(0));
        const auto w = features(keys, scaling).matmul(of_q.t());  // [seen, 1]
        const auto sum = w.sum() + (o.causal ? 1e-6 * of_q.sum() : torch::zeros({}, kDouble));
        all.push_back((w * v[b][h].index_select(0, seen)).sum(0) / sum);
      }
    }
  }
  return torch::stack(all).view({q.size(0), q.size(1), q.size(2), v.size(3)});
}

/// Output, weights and gradients.
void expect_definition(int64_t L, int64_t S, PerformerAttentionOptions o,
                       const torch::Tensor& allowed, const torch::Tensor& of_all,
                       const std::string& what) {
  const int64_t B = allowed.size(0);
  const auto leaf = [B](int64_t n, int64_t size) {
    return (2 * torch::randn({B, 2, n, size}, kDouble)).requires_grad_();
  };
  const auto q = leaf(L, 4), k = leaf(S, 4), v = leaf(S, 5);
  const auto P = orthogonal_features(6, 4).to(kDouble);
  const auto got = performer_attention(q, k, v, P, o);
  const auto want = by_definition(q, k, v, P, o, allowed, of_all);
  const auto cotangent = torch::randn_like(want);
  const auto gradients = [&](const torch::Tensor& out) {
    return torch::autograd::grad({(out * cotangent).sum()}, {q, k, v}, {}, true, false, true);
  };
  EXPECT_TRUE(torch::allclose(got.output, want, 1e-9, 1e-10))
      << what << " " << (got.output - want).abs().max().item<double>();
  EXPECT_TRUE(torch::allclose(got.weights.tensor().matmul(v), want, 1e-9, 1e-10)) << what;
  if (L > 1) {
    EXPECT_TRUE(torch::allclose(got.weights.rows(1, L).matmul(v), want.slice(2, 1), 1e-9, 1e-10))
        << what;
  }
  const auto a = gradients(got.output), b = gradients(want);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(torch::allclose(a[i], b[i].defined() ? b[i] : torch::zeros_like(a[i]), 1e-7, 1e-8))
        << what << " gradient " << i;
  }
}

TEST(PerformerAttention, IsItsDefinition) {
  torch::manual_seed(5);
  for (const bool relu : {false, true}) {
    for (const auto& [L, S] : {std::pair{1, 1}, {9, 9}, {70, 70}, {5, 9}, {9, 5}}) {
      const auto all = torch::ones({L > 9 ? 1 : 2, L, S}, torch::kBool);
      const auto what = c10::str(L, " ", S, relu ? " relu" : "");
      expect_definition(L, S, {.relu_kernel = relu}, all, {}, what);
      expect_definition(L, S, {.relu_kernel = relu, .scale = 0.3, .eps = relu ? 0.1 : 0.0}, all, {},
                        what);
      const auto lower = all.tril(S - L);
      expect_definition(L, S, {.relu_kernel = relu, .causal = true}, lower, {}, what + " causal");
      expect_definition(L, S, {.relu_kernel = relu, .causal = true, .max_of_all_keys = true}, lower,
                        all.select(1, 0), what + " causal, max of all");
    }
  }
}

TEST(PerformerAttention, PaddingAndDocuments) {
  torch::manual_seed(6);
  const int64_t n = 11;
  auto real = torch::ones({2, n}, torch::kBool);
  real[0].slice(0, 0, 3).fill_(false);
  real[1].slice(0, 7).fill_(false);
  const auto ids = torch::tensor({0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2}, torch::kInt64);
  const auto ids2 = torch::stack({ids, torch::arange(n).div(6, "floor")});
  for (const bool relu : {false, true}) {
    for (const bool causal : {false, true}) {
      const auto seen = real.unsqueeze(1).expand({2, n, n});
      const auto allowed = causal ? seen.tril() : seen;
      const PerformerAttentionOptions o{.relu_kernel = relu, .causal = causal};
      auto padded = o, packed = o, both = o;
      padded.key_padding_mask = real;
      expect_definition(n, n, padded, allowed, {}, "padding");
      packed.documents = {.ids = ids};
      const auto one = (ids.unsqueeze(1) == ids.unsqueeze(0)).expand({2, n, n});
      expect_definition(n, n, packed, causal ? one.tril() : one, {}, "documents");
      both.documents = {.ids = ids2};
      both.key_padding_mask = real;
      const auto two = ids2.unsqueeze(2) == ids2.unsqueeze(1);
      expect_definition(n, n, both, allowed & two, {}, "documents of rows, padded");
    }
  }
}

/// Weights that grow by exp(60) within the sequence, and back.
TEST(PerformerAttention, IsStableWhereKeysGrow) {
  torch::manual_seed(7);
  const int64_t n = 200;
  const auto size = torch::linspace(0.1, 12, n, kDouble).view({1, 1, n, 1});
  for (const bool grows : {true, false}) {
    const auto q = torch::randn({1, 2, n, 8}, kDouble), v = torch::randn({1, 2, n, 3}, kDouble);
    const auto k = torch::randn({1, 2, n, 8}, kDouble) * (grows ? size : size.flip(2));
    const auto P = orthogonal_features(16, 8).to(kDouble);
    const PerformerAttentionOptions o{.causal = true};
    const auto allowed = torch::ones({1, n, n}, torch::kBool).tril();
    const auto want = by_definition(q, k, v, P, o, allowed);
    EXPECT_TRUE(torch::allclose(performer_attention(q, k, v, P, o).output, want, 1e-8, 1e-9));
    const auto single = performer_attention(q.to(torch::kFloat32), k.to(torch::kFloat32),
                                            v.to(torch::kFloat32), P.to(torch::kFloat32), o);
    EXPECT_TRUE(single.output.isfinite().all().item<bool>());
    EXPECT_LT((single.output - want).abs().max().item<double>(), 1e-3);
  }
}

TEST(OrthogonalFeatures, AreOrthogonalInBlocks) {
  torch::manual_seed(8);
  const int64_t D = 16;
  for (const bool equal : {false, true}) {
    const auto P = orthogonal_features(40, D, {.equal_norms = equal}).to(kDouble);
    EXPECT_EQ(P.sizes(), (std::vector<int64_t>{40, D}));
    const auto norms = P.norm(2, {1});
    for (int64_t row = 0; row < 40; row += D) {
      const auto unit = P.slice(0, row, row + D) / norms.slice(0, row, row + D).unsqueeze(1);
      EXPECT_TRUE(
          torch::allclose(unit.matmul(unit.t()), torch::eye(unit.size(0), kDouble), 0, 1e-5));
    }
    if (equal) {
      EXPECT_TRUE(torch::allclose(norms, torch::full_like(norms, 4.0), 1e-5));
    }
  }
  // |row|^2 is chi square of D degrees: mean D, variance 2 D.
  const int64_t F = 16000;
  const double mean = orthogonal_features(F, D).square().sum(1).mean().item<double>();
  EXPECT_LT(std::abs(mean - D), 5 * std::sqrt(2.0 * D / F));
  const auto a = orthogonal_features(20, D, {.seed = 3}),
             b = orthogonal_features(20, D, {.seed = 3});
  EXPECT_TRUE(torch::equal(a, b));
  EXPECT_FALSE(torch::equal(a, orthogonal_features(20, D, {.seed = 4})));
  expect_error([] { orthogonal_features(0, 4); }, {"orthogonal_features", "features", "0"});
  expect_error([] { orthogonal_features(4, -1); }, {"orthogonal_features", "head_dim", "-1"});
}

/// Mean of samples, and its standard error.
std::pair<double, double> mean_and_error(const torch::Tensor& samples) {
  return {samples.mean().item<double>(),
          samples.std().item<double>() / std::sqrt(static_cast<double>(samples.numel()))};
}

/// The estimate of exp(q . k) of one block of D orthogonal rows has some variance V and no bias,
/// and blocks are independent: that of n blocks has V / n. Errors are those of the mean, by the
/// sample.
TEST(Performer, KernelEstimateIsUnbiasedAndItsErrorFallsWithTheFeatures) {
  torch::manual_seed(9);
  const int64_t D = 8, draws = 1000;
  const auto q = torch::randn({1, 1, 6, D}, kDouble), k = torch::randn({1, 1, 6, D}, kDouble);
  const auto exact = torch::exp((q * k).sum(-1) / std::sqrt(8.0)).flatten();
  std::vector<std::pair<double, double>> square;
  for (const int64_t features : {2 * D, 8 * D}) {
    std::vector<torch::Tensor> estimates;
    for (int64_t i = 0; i < draws; ++i) {
      const core::Favor f{orthogonal_features(features, D).to(kDouble), false, 1 / std::sqrt(8.0),
                          0.0};
      const auto phi = [&](const torch::Tensor& x) {
        return core::favor_keys(f, x, {}).features.exp() * f.ratio();
      };
      estimates.push_back((phi(q) * phi(k)).sum(-1).flatten());
    }
    const auto all = torch::stack(estimates);
    for (int64_t pair = 0; pair < 6; ++pair) {
      const auto [mean, error] = mean_and_error(all.select(1, pair));
      EXPECT_LT(std::abs(mean - exact[pair].item<double>()), 5 * error) << features;
    }
    // Relative, so that all pairs count; the mean over pairs is one sample of a draw.
    square.push_back(mean_and_error((all / exact - 1).square().mean(1)));
  }
  const auto [few, few_error] = square[0];
  const auto [many, many_error] = square[1];
  const double ratio = 4 * many / few;
  EXPECT_LT(std::abs(ratio - 1), 5 * ratio * std::hypot(few_error / few, many_error / many));
}

PerformerSelfAttention make(PerformerSelfAttentionOptions o) {
  torch::manual_seed(3);
  PerformerSelfAttention m(o);
  m->to(kDouble);
  m->eval();
  return m;
}

PerformerSelfAttentionOptions options(bool causal = false, bool relu = false) {
  return {.d_model = 12,
          .num_heads = 3,
          .num_features = 10,
          .relu_kernel = relu,
          .input_dim = 10,
          .bias = true,
          .causal = causal};
}

/// Of a module to multi-head attention with its weights, over draws of the features: each fourfold
/// number of them makes it less, by more than five standard errors.
TEST(Performer, ApproachesMultiHeadAttention) {
  for (const bool causal : {false, true}) {
    std::vector<std::pair<double, double>> errors;
    for (const int64_t features : {16, 64, 256}) {
      auto m = make({.d_model = 16,
                     .num_heads = 2,
                     .num_features = features,
                     .feature_eps = 0.0,
                     .causal = causal});
      MultiHeadSelfAttention exact({.d_model = 16, .num_heads = 2, .causal = causal});
      exact->to(kDouble);
      const torch::NoGradGuard no_grad;
      for (const auto& p : exact->named_parameters()) {
        p.value().copy_(m->named_parameters()[p.key()]);
      }
      const auto x = torch::randn({2, 40, 16}, kDouble), want = exact(x).output;
      std::vector<double> samples;
      for (uint64_t draw = 0; draw < 60; ++draw) {
        m->redraw_features(draw);
        samples.push_back((m(x).output - want).square().mean().item<double>());
      }
      errors.push_back(mean_and_error(torch::tensor(samples, kDouble)));
    }
    for (size_t i = 1; i < errors.size(); ++i) {
      const auto [before, a] = errors[i - 1];
      const auto [now, b] = errors[i];
      EXPECT_GT(before - now, 5 * std::hypot(a, b)) << causal << " " << before << " " << now;
    }
  }
}

TEST(Performer, PaddingChangesNothing) {
  for (const bool causal : {false, true}) {
    for (const bool relu : {false, true}) {
      auto m = make(options(causal, relu));
      const std::vector<int64_t> lengths{9, 4, 1};
      auto x = torch::randn({3, 9, 10}, kDouble);
      x[1][7][0] = std::nan("");  // what is padded is not looked at
      auto leaf = x.clone().requires_grad_();
      const auto padded = m(leaf, {.key_padding_mask = create_padding_mask(lengths)}).output;
      torch::Tensor sum = torch::zeros({}, kDouble);
      for (int64_t b = 0; b < 3; ++b) {
        const auto n = lengths[static_cast<size_t>(b)];
        const auto alone = m(x.slice(0, b, b + 1).slice(1, 0, n)).output;
        const auto own = padded.slice(0, b, b + 1).slice(1, 0, n);
        EXPECT_TRUE(torch::allclose(own, alone, 1e-10, 1e-12));
        sum = sum + own.square().sum();
      }
      sum.backward();
      EXPECT_TRUE(leaf.grad()[0].isfinite().all().item<bool>());
    }
  }
}

TEST(Performer, CausalNeverLooksAhead) {
  for (const bool relu : {false, true}) {
    auto m = make(options(true, relu));
    auto x = torch::randn({1, 300, 10}, kDouble);
    const auto before = m(x).output.slice(1, 0, 150);
    x.slice(1, 150).normal_(0, 3);
    EXPECT_TRUE(torch::equal(before, m(x).output.slice(1, 0, 150)));
  }
}

/// The largest projections are constants to autograd, which is right where they cancel: with eps 0,
/// and 1e-6 of causal sums does not. IsItsDefinition has the gradients of all others.
TEST(Performer, Gradients) {
  for (const auto& [causal, relu] : {std::pair{false, false}, {false, true}, {true, true}}) {
    auto o = options(causal, relu);
    if (!relu) o.feature_eps = 0.0;
    auto m = make(o);
    auto x = torch::randn({2, 5, 10}, kDouble).requires_grad_();
    auto context = torch::randn({2, 6, 10}, kDouble).requires_grad_();
    Tensors leaves{x, context};
    for (const auto& p : m->named_parameters()) leaves.push_back(p.value());
    const auto cotangent = torch::randn({2, 5, 12}, kDouble);
    gradcheck([&] { return (m(x, {.context = context}).output * cotangent).sum(); }, leaves,
              "performer");
  }
}

TEST(Performer, CachesAreTheWholePass) {
  const torch::NoGradGuard no_grad;
  for (const bool relu : {false, true}) {
    auto m = make(options(true, relu));
    const auto x = torch::randn({2, 150, 10}, kDouble) *
                   torch::linspace(0.1, 3, 150, kDouble).view({1, 150, 1});
    const auto want = m(x).output;
    for (const int64_t step : {1, 7, 40, 150}) {
      auto cache = m->make_cache(2);
      const auto bytes = cache.bytes();
      std::vector<torch::Tensor> parts;
      for (int64_t i = 0; i < 150; i += step) {
        parts.push_back(
            m(x.slice(1, i, std::min<int64_t>(i + step, 150)), {.cache = cache}).output);
      }
      EXPECT_TRUE(torch::allclose(torch::cat(parts, 1), want, 1e-9, 1e-10)) << step;
      EXPECT_EQ(cache.bytes(), bytes);
      auto copy = cache.clone();
      m->redraw_features(5);  // the cache goes on with those that it began with
      cache.truncate(125);
      EXPECT_TRUE(torch::allclose(m(x.slice(1, 125), {.cache = cache}).output, want.slice(1, 125),
                                  1e-9, 1e-10));
      m->redraw_features(0);
      const auto other = torch::randn({2, 1, 10}, kDouble);
      copy.reorder(torch::tensor({1, 0}));
      EXPECT_TRUE(torch::allclose(m(other, {.cache = copy}).output,
                                  m(torch::cat({x.flip(0), other}, 1)).output.slice(1, 150), 1e-9,
                                  1e-10));
    }
    // Padding before the first token, and documents of which the last goes on.
    auto real = torch::ones({2, 150}, torch::kBool);
    real[1].slice(0, 0, 20).fill_(false);
    const auto padded = m(x, {.key_padding_mask = real}).output;
    auto cache = m->make_cache(2);
    const auto head =
        m(x.slice(1, 0, 30), {.key_padding_mask = real.slice(1, 0, 30), .cache = cache});
    const auto tail = m(x.slice(1, 30), {.cache = cache}).output;
    EXPECT_TRUE(torch::allclose(head.output, padded.slice(1, 0, 30), 1e-9, 1e-10));
    EXPECT_TRUE(torch::allclose(tail, padded.slice(1, 30), 1e-9, 1e-10));
    auto packed = m->make_cache(2);
    const auto offsets = torch::tensor({0, 12, 30});
    m(x.slice(1, 0, 30), {.documents = {.offsets = offsets}, .cache = packed});
    EXPECT_TRUE(torch::allclose(m(x.slice(1, 30), {.cache = packed}).output,
                                m(x.slice(1, 12)).output.slice(1, 18), 1e-9, 1e-10));
  }
}

TEST(Performer, DocumentsAreAlone) {
  for (const bool relu : {false, true}) {
    auto o = options(false, relu);
    o.rope = true;
    auto m = make(o);
    expect_packs(m, relu ? "performer, relu" : "performer");
  }
}

TEST(Performer, KeepsHalfTypes) {
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    for (const bool causal : {false, true}) {
      PerformerSelfAttention low({.d_model = 16, .num_heads = 2, .causal = causal});
      PerformerSelfAttention gold(low->get_config());
      low->to(dtype);
      gold->to(kDouble);
      {
        const torch::NoGradGuard no_grad;
        for (const auto& p : low->named_parameters()) {
          gold->named_parameters()[p.key()].copy_(p.value());
        }
        gold->projection_matrix.copy_(low->projection_matrix);
      }
      const auto x = torch::randn({1, 2000, 16}).to(dtype);
      const auto got = low(x);
      EXPECT_EQ(got.output.scalar_type(), dtype);
      // The rounding of the projections is what the half type loses: the same as with a softmax.
      MultiHeadSelfAttention plain({.d_model = 16, .num_heads = 2, .causal = causal});
      const auto exact = gold(x.to(kDouble)).output;
      EXPECT_LT((got.output.to(kDouble) - exact).abs().max().item<double>(),
                exact.abs().max().item<double>() * (dtype == torch::kHalf ? 0.01 : 0.08));
      EXPECT_EQ(got.weights.rows(0, 3).scalar_type(), dtype);
    }
  }
}

TEST(Performer, LivesAsAModule) {
  auto m = make(options(true));
  const auto x = torch::randn({2, 6, 10}, kDouble);
  m->redraw_features(77);
  const auto want = m(x).output;
  EXPECT_EQ(m->named_buffers()["projection_matrix"].sizes(), (std::vector<int64_t>{10, 4}));
  const auto copy = std::dynamic_pointer_cast<PerformerSelfAttentionImpl>(m->clone());
  EXPECT_TRUE(torch::equal(copy->forward(x).output, want));
  std::stringstream stream;
  torch::save(m, stream);
  PerformerSelfAttention loaded(m->get_config());
  loaded->to(kDouble);
  torch::load(loaded, stream);
  EXPECT_TRUE(torch::equal(loaded(x).output, want));
  EXPECT_FALSE(m->projection_matrix.requires_grad());
  torch::manual_seed(1);
  m->redraw_features();
  EXPECT_FALSE(torch::allclose(m(x).output, want));
  EXPECT_EQ(m(torch::randn({0, 6, 10}, kDouble)).output.sizes(), (std::vector<int64_t>{0, 6, 12}));
  EXPECT_EQ(m(torch::randn({2, 0, 10}, kDouble)).output.sizes(), (std::vector<int64_t>{2, 0, 12}));
  EXPECT_EQ(*PerformerSelfAttention({.d_model = 128, .num_heads = 2})->options.num_features, 266);
}

TEST(Performer, DropoutActsOnTheAttendedVectors) {
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

TEST(Performer, NothingToAttendTo) {
  for (const bool relu : {false, true}) {
    for (const bool causal : {false, true}) {
      auto m = make(options(causal, relu));
      const auto x = torch::randn({2, 6, 10}, kDouble);
      const auto r = m(x, {.key_padding_mask = torch::zeros({2, 6}, torch::kBool)});
      EXPECT_TRUE(torch::allclose(r.output, m->w_o->bias.expand({2, 6, 12})));
      EXPECT_EQ(r.weights.tensor().abs().sum().item<double>(), 0);
      const auto none = m(x, {.context = torch::randn({2, 0, 10}, kDouble)}).output;
      EXPECT_TRUE(torch::allclose(none, m->w_o->bias.expand({2, 6, 12})));
    }
  }
}

TEST(Performer, Errors) {
  const auto bad = [](auto change, std::vector<std::string> parts) {
    auto o = options();
    change(o);
    parts.push_back("PerformerSelfAttention");
    expect_error([&] { PerformerSelfAttention m(o); }, parts);
  };
  bad([](auto& o) { o.num_features = 0; }, {"num_features", "0"});
  bad([](auto& o) { o.num_features = int64_t{1} << 40; }, {"projection_matrix", "1099511627776"});
  bad([](auto& o) { o.num_heads = 5; }, {"num_heads", "5", "12"});
  bad([](auto& o) { o.feature_eps = -1; }, {"feature_eps", "-1"});
  bad([](auto& o) { o.feature_eps = std::nan(""); }, {"feature_eps", "nan"});
  auto m = make(options());
  const auto x = torch::randn({2, 6, 10}, kDouble);
  expect_error(
      [&] {
        m(x, {.mask = torch::ones({6, 6}, torch::kBool)});
      },
      {"PerformerSelfAttention", "mask", "key_padding_mask", "causal"});
  m->options.num_features = 3;
  expect_error([&] { m(x); }, {"PerformerSelfAttention", "num_features", "10", "3"});
  const auto q = torch::randn({1, 2, 3, 4}), P = orthogonal_features(5, 4);
  const auto call = [&](const torch::Tensor& p, const PerformerAttentionOptions& o) {
    return [=] { performer_attention(q, q, q, p, o); };
  };
  expect_error(call(P.t(), {}), {"performer_attention", "projection", "[4, 5]"});
  expect_error(call(P.to(torch::kInt64), {}), {"performer_attention", "projection", "Long"});
  expect_error(call(P, {.scale = 0.0}), {"performer_attention", "scale", "0"});
  expect_error(call(P, {.eps = -1.0}), {"performer_attention", "eps", "-1"});
  expect_error(call(P, {.key_padding_mask = torch::ones({1, 4}, torch::kBool)}),
               {"performer_attention", "key_padding_mask", "[1, 4]"});
  expect_error(call(P, {.documents = {.offsets = torch::tensor({0, 2})}}),
               {"performer_attention", "documents", "2"});
}

}  // namespace
}  // namespace attzoo::testing::performer_test
