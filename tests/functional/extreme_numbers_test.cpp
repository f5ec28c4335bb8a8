// What holds where numbers are extreme. What a mask hides has no effect, whatever it holds,
// infinities and NaNs in queries, keys, values and cotangents, forward and backward, on every path.
// Gradients are exact where scores are far from 0.

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/attzoo.hpp>
#include <attzoo/core/attention/chunked.hpp>
#include <attzoo/core/pair_products.hpp>

#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "support/error_rule.hpp"

namespace attzoo::extreme_numbers_test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity(),
                 kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kTokens = 150;

enum class Path { kFused, kChunked, kEager };

torch::Tensor attend(Path path, const core::Qkv& t, const core::AnyMask& mask,
                     const core::AnyScore& score, double dropout = 0) {
  if (path == Path::kChunked) {
    static const core::ChunkedBackend chunked(1);
    return core::run(chunked, t, {mask, score.resolve(t.shape()), 0.2, {dropout, 5}}).output;
  }
  std::optional<EagerReferenceGuard> eager;
  if (path == Path::kEager) eager.emplace();
  return attention(t.q, t.k, t.v, mask, score, {.scale = 0.2, .dropout = dropout, .seed = 5})
      .output;
}

struct Junk {
  double value;
  bool in_queries, in_keys, in_values, in_cotangents = false;
};

/// The output of the last L queries, and the gradients of these, of keys and of values; tokens in
/// `hidden` [n] hold junk, or else zeros.
std::vector<torch::Tensor> results(const std::function<torch::Tensor(const core::Qkv&)>& f,
                                   const torch::Tensor& hidden, int64_t L, torch::ScalarType dtype,
                                   const Junk& junk, bool in_double = false) {
  torch::manual_seed(3);
  const auto tokens = [&](int64_t heads, bool holds_junk) {
    return torch::randn({2, heads, kTokens, 32}, torch::kFloat64)
        .masked_fill(hidden.view({-1, 1}), holds_junk ? junk.value : 0.0)
        .to(dtype)
        .to(in_double ? torch::kFloat64 : dtype);
  };
  const auto last = [&](const torch::Tensor& t) { return t.slice(2, kTokens - L); };
  const core::Qkv t{last(tokens(4, junk.in_queries)).detach().requires_grad_(),
                    tokens(2, junk.in_keys).requires_grad_(),
                    tokens(2, junk.in_values).requires_grad_()};
  const auto output = f(t);
  auto all =
      torch::autograd::grad({output}, {t.q, t.k, t.v}, {last(tokens(4, junk.in_cotangents))});
  all.insert(all.begin(), output);
  return all;
}

/// All that no hidden token owns is as if they were zeros.
void expect_no_effect(const std::function<torch::Tensor(const core::Qkv&)>& f,
                      const torch::Tensor& hidden, int64_t L, torch::ScalarType dtype,
                      const Junk& junk, const std::string& what) {
  const Junk none{0, false, false, false};
  const auto gold = results(f, hidden, L, dtype, none, true),
             zeros = results(f, hidden, L, dtype, none);
  const auto got = results(f, hidden, L, dtype, junk);
  const char* names[] = {"output", "dq", "dk", "dv"};
  for (size_t i = 0; i < got.size(); ++i) {
    const auto own = [&](const torch::Tensor& t) {
      const auto seen = hidden.logical_not().nonzero().squeeze(1);
      const auto first = kTokens - t.size(2);
      return t.index_select(2, seen.masked_select(seen >= first) - first);
    };
    SCOPED_TRACE(what + ", " + names[i] + ", L " + std::to_string(L) + ", " +
                 std::to_string(junk.value));
    EXPECT_TRUE(torch::isfinite(own(got[i])).all().item<bool>());
    testing::expect_within_rule(own(got[i]), own(gold[i]), own(zeros[i]), 3, kTokens, "rule");
  }
}

/// Every kind of junk in the tokens.
void check(const std::string& what, const core::AnyMask& mask, const core::AnyScore& score,
           const torch::Tensor& hidden, int64_t L, bool queries_too, double dropout = 0) {
  for (const auto path : {Path::kFused, Path::kChunked, Path::kEager}) {
    const bool fused = path == Path::kFused;
    for (const auto dtype : {torch::kFloat32, torch::kFloat64, torch::kBFloat16, torch::kHalf}) {
      for (const double value : {kNaN, -kInf}) {
        if (!fused && (dtype != torch::kFloat32 || value == -kInf)) continue;  // all of one kind
        for (const Junk& junk :
             {Junk{value, queries_too, true, true, queries_too}, Junk{value, false, true, false},
              Junk{value, false, false, true}, Junk{value, queries_too, false, false},
              Junk{value, false, false, false, queries_too}}) {
          expect_no_effect(
              [&](const core::Qkv& t) { return attend(path, t, mask, score, dropout); }, hidden, L,
              dtype, junk, what);
        }
      }
    }
  }
}

TEST(ExtremeNumbers, HaveNoEffectWhereHidden) {
  const auto i = torch::arange(kTokens);
  const auto second = i >= 70, scattered = i % 7 == 3;
  const auto ids = second.to(torch::kInt64).unsqueeze(0);
  const auto same = documents({.ids = ids});
  const auto id = table(ids.expand({2, -1}));
  const auto lambda =
      mask_mod([=](auto b, auto, auto q, auto kv) { return id(b, q) == id(b, kv) && kv <= q; });
  const auto bias = torch::randn({1, 4, kTokens, kTokens}).masked_fill(scattered, -kInf);
  check("documents", same, {}, second, kTokens, true);
  check("documents, causal, dropout", same && causal(), {}, second, kTokens, true, 0.3);
  check("documents, ALiBi", same, alibi(alibi_slopes(4)), second, kTokens, true);
  check("a lambda, softcap", lambda, softcap(3), second, kTokens, true);
  check("window", window(40, 0) && same, {}, second, kTokens, true);
  check("dilated", dilated(2) && same, {}, second, kTokens, true);
  for (const int64_t L : {kTokens, int64_t{12}, int64_t{1}}) {
    check("scattered padding", mask_tensor(scattered.logical_not().view({1, 1, 1, -1})), {},
          scattered, L, false);
    check("a dense mask",
          mask_tensor(
              scattered.logical_not().view({1, 1, 1, -1}).expand({1, 1, L, kTokens}).contiguous()),
          {}, scattered, L, false);
    check("-inf in a bias", full(), bias_tensor(bias.slice(2, kTokens - L)), scattered, L, false);
    check("window, dilated",
          dilated(3) && window(60, 0) && mask_tensor((i < 149).view({1, 1, 1, -1})), {}, i >= 149,
          L, false);
  }
}

TEST(ExtremeNumbers, ShowWhereTheyCount) {
  for (const auto path : {Path::kFused, Path::kChunked, Path::kEager}) {
    for (const int64_t L : {kTokens, int64_t{3}}) {
      auto t = core::Qkv{torch::randn({1, 1, L, 8}), torch::randn({1, 1, kTokens, 8}),
                         torch::randn({1, 1, kTokens, 8})};
      t.v[0][0][148][2] = kNaN;
      t.k[0][0][0][1] = kNaN;
      // Keys 1 and on for all but the last query, which sees key 0 too.
      const auto q = torch::arange(L).view({-1, 1}), kv = torch::arange(kTokens);
      const auto allowed = (kv <= q + (kTokens - L)) & ((kv > 0) | (q == L - 1));
      const auto out = attend(path, t, mask_tensor(allowed), {})[0][0];
      const auto nan = torch::isnan(out);
      EXPECT_TRUE(nan[L - 1].all().item<bool>());
      EXPECT_TRUE(nan[L - 2][2].item<bool>());
      EXPECT_EQ(nan.sum().item<int64_t>(), 8 + 1);
    }
  }
}

/// Tables that learn have no gradient of what is hidden.
TEST(ExtremeNumbers, LeaveLearnedTablesAloneWhereHidden) {
  const auto second = torch::arange(kTokens) >= 70;
  const auto same = documents({.ids = second.to(torch::kInt64).unsqueeze(0)});
  for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16}) {
    const auto gradient = [&](double value) {
      torch::manual_seed(4);
      const auto learned = torch::zeros({kTokens}, torch::kFloat64).requires_grad_();
      const auto of_key = table(learned);
      const auto x = [&] {
        return torch::randn({1, 2, kTokens, 32}, torch::kFloat64)
            .masked_fill(second.view({-1, 1}), value)
            .to(dtype);
      };
      const auto out =
          attention(x(), x(), x(), same,
                    score_mod([=](auto s, auto, auto, auto, auto kv) { return s + of_key(kv); }))
              .output;
      return torch::autograd::grad({out}, {learned}, {torch::ones_like(out) * x()})[0].slice(0, 0,
                                                                                             70);
    };
    const auto zeros = gradient(0);
    testing::expect_within_rule(gradient(kNaN).to(dtype), zeros, zeros.to(dtype), 3, kTokens,
                                "table");
  }
}

TEST(ExtremeNumbers, HaveNoEffectWhereHiddenInLinearAttention) {
  for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
    for (const bool eager : {false, true}) {
      for (const double value : {kNaN, kInf}) {
        const auto hidden = torch::arange(kTokens) >= 100;
        const auto run = [&](double x) {
          torch::manual_seed(6);
          const auto tokens = [&] {
            return torch::rand({1, 2, kTokens, 8}, torch::kFloat64)
                .masked_fill(hidden.view({-1, 1}), x)
                .to(dtype)
                .requires_grad_();
          };
          const auto q = tokens(), k = tokens(), v = tokens();
          std::optional<EagerReferenceGuard> guard;
          if (eager) guard.emplace();
          const auto out = linear_attention(q, k, v, {.causal = true}).output.slice(2, 0, 100);
          // Of the queries alone: the later ones meet the keys of all before.
          return std::vector<torch::Tensor>{
              out, torch::autograd::grad({out.sum()}, {q})[0].slice(2, 0, 100)};
        };
        const auto got = run(value), zeros = run(0);
        for (size_t i = 0; i < got.size(); ++i) {
          testing::expect_within_rule(got[i], zeros[i], zeros[i], 2, kTokens, "linear");
        }
      }
    }
  }
}

/// The eager reference's products, against the definition pair by pair.
TEST(PairProducts, AreDifferentiableTwice) {
  torch::manual_seed(8);
  const auto a = torch::randn({2, 4, 5, 3}, torch::kFloat64).requires_grad_();
  const auto b = torch::randn({2, 2, 6, 3}, torch::kFloat64).requires_grad_();
  const auto visible = torch::rand({2, 1, 5, 6}) < 0.6;
  const auto heads = b.repeat_interleave(2, 1);
  const auto derivatives = [&](const torch::Tensor& products, const torch::Tensor& sums) {
    const auto first =
        torch::autograd::grad({products.sin().sum() + sums.cos().sum()}, {a, b}, {}, true, true);
    const auto second = torch::autograd::grad({(first[0] * first[0]).sum() + first[1].sin().sum()},
                                              {a, b}, {}, true);
    return std::vector<torch::Tensor>{products, sums, first[0], first[1], second[0], second[1]};
  };
  const auto got_products = core::pair_products(a, b, visible);
  const auto got = derivatives(got_products, core::sum_over_pairs(got_products, b, visible));
  const auto want_products = torch::matmul(a, heads.transpose(-2, -1)) * visible;
  const auto want = derivatives(want_products, torch::matmul(want_products, heads));
  for (size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(torch::allclose(got[i], want[i])) << i;
}

/// The weights of a row sum to 1, so the gradients of all values sum to the cotangents.
void expect_whole_weights(const std::string& what, const torch::Tensor& q, const torch::Tensor& k,
                          const core::AnyMask& mask, const core::AnyScore& score) {
  for (const auto path : {Path::kFused, Path::kChunked, Path::kEager}) {
    const auto v = torch::ones({k.size(0), k.size(1), k.size(2), 4}, k.options()).requires_grad_();
    const auto out = attend(path, {q.detach().requires_grad_(), k, v}, mask, score);
    const auto grad = torch::autograd::grad({out}, {v}, {torch::ones_like(out)})[0];
    const double sum = grad.to(torch::kFloat64).sum().item<double>(),
                 want = static_cast<double>(out.numel());
    const bool half = q.scalar_type() == torch::kBFloat16;
    EXPECT_NEAR(sum / want, 1, half ? 4e-3 : 1e-5) << what << ", path " << static_cast<int>(path);
  }
}

TEST(ExtremeNumbers, HasExactGradientsWhereScoresAreFarFromZero) {
  torch::manual_seed(31);
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    const auto random = [&](int64_t n) { return torch::randn({1, 2, n, 32}).to(dtype); };
    for (const double padding : {-1e9, -1e4, 1e6}) {
      for (const int64_t L : {64, 12, 1}) {
        auto bias = torch::full({L, 64}, padding);
        expect_whole_weights("all", random(L), random(64), full(), bias_tensor(bias));
        bias.slice(1, 20) = 0;
        expect_whole_weights("left-padded", random(L), random(64), causal(), bias_tensor(bias));
      }
    }
    expect_whole_weights("large logits", 1e3 * random(80), 3e3 * random(80), causal(), {});
    const auto equal = torch::full({1, 1, 2, 32}, 1e3).to(dtype);
    expect_whole_weights("equal keys", equal.narrow(2, 0, 1).expand({1, 1, 30, 32}), equal, full(),
                         {});
  }
}

TEST(ExtremeNumbers, HasExactGradientsOfTablesWhereScoresAreFarFromZero) {
  torch::manual_seed(32);
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    const auto q = torch::randn({1, 2, 40, 32}).to(dtype).requires_grad_(),
               k = torch::randn({1, 2, 40, 32}).to(dtype),
               v = torch::randn({1, 2, 40, 8}).to(dtype);
    const auto learned = torch::randn({40}, torch::kFloat64).requires_grad_();
    const auto of_key = table(learned);
    const auto score = bias_tensor(torch::full({40, 40}, -1e6)) +
                       score_mod([=](auto s, auto, auto, auto, auto kv) { return s + of_key(kv); });
    const auto gradient = [&](Path path) {
      const auto out = attend(path, {q, k, v}, causal(), score);
      return torch::autograd::grad({out}, {learned}, {v.narrow(2, 0, 40)})[0];
    };
    const auto got = gradient(Path::kFused), want = gradient(Path::kEager);
    testing::expect_within_rule(got.to(dtype), want, want.to(dtype), 3, 40, "table");
  }
}

TEST(ExtremeNumbers, RoundsOnceUnderASink) {
  torch::manual_seed(33);
  const auto x = [] { return torch::randn({1, 2, 50, 32}).to(torch::kBFloat16); };
  const auto q = x(), k = x(), v = x();
  const auto score = sink(torch::tensor({0.5, 2.0}));
  const auto exact = [&](const torch::Tensor& t) { return t.to(torch::kFloat64); };
  const auto got = attention(q, k, v, causal(), score);
  const auto want = attention(exact(q), exact(k), exact(v), causal(), score);
  const auto share_off = [](const torch::Tensor& a, const torch::Tensor& b) {
    return (a != b.to(torch::kBFloat16)).to(torch::kFloat64).mean().item<double>();
  };
  EXPECT_LE(share_off(got.weights, want.weights), 0.01);  // 0.2 where rounded twice
  // On units for bfloat16 weights are rounded before they meet the values.
  const EagerReferenceGuard eager;
  EXPECT_LE(share_off(attention(q, k, v, causal(), score).output, want.output), 0.01);
}

}  // namespace
}  // namespace attzoo::extreme_numbers_test
