#include <attzoo/core/attention/chunked.hpp>
#include <attzoo/functional/debug.hpp>
#include <attzoo/stick_breaking.hpp>

#include <cmath>

#include "support/documents_contract.hpp"
#include "support/error_rule.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"
#include "support/wrapper_contract.hpp"

namespace attzoo::testing::stick_breaking_test {
namespace {

using Options = StickBreakingSelfAttentionOptions;

StickBreakingSelfAttention stick(Options o = {}, torch::ScalarType dtype = torch::kFloat64) {
  o.d_model = 12;
  o.num_heads = 3;
  o.input_dim = 10;
  o.bias = true;
  StickBreakingSelfAttention m(o);
  m->to(dtype);
  m->eval();
  return m;
}

torch::Tensor by_heads(const torch::Tensor& t) { return t.unflatten(2, {3, 4}).transpose(1, 2); }

/// Weights and what is left, by a loop over keys from the query backwards: scores [..., S], allowed
/// bool, broadcastable.
std::pair<torch::Tensor, torch::Tensor> break_sticks(const torch::Tensor& scores,
                                                     const torch::Tensor& allowed) {
  auto left = torch::ones_like(scores.select(-1, 0));
  std::vector<torch::Tensor> shares;
  const auto may = allowed.expand_as(scores);
  for (int64_t j = scores.size(-1) - 1; j >= 0; --j) {
    const auto share = torch::sigmoid(scores.select(-1, j)) * may.select(-1, j);
    shares.insert(shares.begin(), share * left);
    left = left * (1 - share);
  }
  return {torch::stack(shares, -1), left};
}

struct Broken {
  torch::Tensor output, weights, left;
};

/// The mechanism by its definition. `allowed`: bool, broadcastable to [B, H, L, L].
Broken by_loops(StickBreakingSelfAttention& m, const torch::Tensor& x, const torch::Tensor& allowed,
                const torch::Tensor& bias = {}) {
  const int64_t n = x.size(1);
  const auto q = by_heads(m->w_q(x)), k = by_heads(m->w_k(x)), v = by_heads(m->w_v(x));
  auto scores = torch::matmul(q, k.transpose(-2, -1)) / 2 / m->options.temperature;
  if (bias.defined()) scores = scores + bias;
  auto [weights, left] = break_sticks(scores, allowed & torch::ones({n, n}, torch::kBool).tril(-1));
  if (m->options.remainder) weights = weights + torch::diag_embed(left);
  return {m->w_o(torch::matmul(weights, v).transpose(1, 2).flatten(2)), weights, left};
}

torch::Tensor everybody() { return torch::ones({1, 1}, torch::kBool); }

void expect_broken(const AttentionResult& got, const Broken& want) {
  EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(got.weights, want.weights, 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(got.lse.exp(), want.left, 1e-10, 1e-12));
}

TEST(StickBreaking, IsItsDefinition) {
  torch::manual_seed(1);
  for (const bool remainder : {false, true}) {
    auto m = stick({.remainder = remainder, .temperature = 0.7});
    for (const int64_t n : {1, 2, 7, 33, 700}) {  // the last one in several chunks
      const auto x = torch::randn({2, n, 10}, torch::kFloat64);
      expect_broken(m(x), by_loops(m, x, everybody()));
    }
    // The first token sees nobody: what it says is its own value, or nothing.
    const auto x = torch::randn({1, 3, 10}, torch::kFloat64);
    const auto own = m->w_v(x).slice(1, 0, 1);
    EXPECT_TRUE(torch::allclose(m(x).output.slice(1, 0, 1),
                                m->w_o(remainder ? own : torch::zeros_like(own))));
  }
}

TEST(StickBreaking, GradientsAreThoseOfTheDefinition) {
  torch::manual_seed(2);
  for (const bool remainder : {false, true}) {
    auto m = stick({.remainder = remainder});
    auto x = torch::randn({2, 300, 10}, torch::kFloat64).requires_grad_();
    std::vector<torch::Tensor> leaves{x};
    for (const auto& p : m->parameters()) leaves.push_back(p);
    const auto want = by_loops(m, x, everybody());
    const auto cotangent = torch::randn_like(want.output);
    const auto by_hand = torch::autograd::grad({(want.output * cotangent).sum()}, leaves),
               got = torch::autograd::grad({(m(x).output * cotangent).sum()}, leaves);
    for (size_t i = 0; i < leaves.size(); ++i) {
      EXPECT_TRUE(torch::allclose(got[i], by_hand[i], 1e-9, 1e-11)) << i;
    }
    auto few = torch::randn({2, 5, 10}, torch::kFloat64).requires_grad_();
    const auto f = [&] {
      const auto r = m(few);
      return r.output.sin().sum() + r.lse.sin().sum() + torch::Tensor(r.weights).square().sum();
    };
    gradcheck(f, {few}, "stick");
    gradgradcheck(f, {few}, "stick");
  }
}

TEST(StickBreaking, HiddenKeysBreakOffNothing) {
  torch::manual_seed(3);
  for (const bool remainder : {false, true}) {
    auto m = stick({.remainder = remainder});
    const auto x = torch::randn({2, 40, 10}, torch::kFloat64);
    const auto real = torch::rand({2, 40}) < 0.6, mask = torch::rand({2, 3, 40, 40}) < 0.7;
    const auto bias = torch::randn({40, 40}, torch::kFloat64);
    const auto keys = real.view({2, 1, 1, 40});
    expect_broken(m(x, {.key_padding_mask = real}), by_loops(m, x, keys));
    expect_broken(m(x, {.mask = mask, .key_padding_mask = real}), by_loops(m, x, mask & keys));
    expect_broken(m(x, {.mask = bias}), by_loops(m, x, everybody(), bias));
    const auto near = torch::ones({40, 40}, torch::kBool).triu(-6);
    expect_broken(m(x, {.pattern = window(6, 0)}), by_loops(m, x, near));
    auto within = stick({.remainder = remainder, .sliding_window = 7});
    load_state_dict(*within, state_dict(*m));
    expect_broken(within(x), by_loops(m, x, near));
    // A score of -inf hides as a mask does.
    const auto infinite =
        torch::zeros({2, 3, 40, 40}, torch::kFloat64).masked_fill(mask.logical_not(), -INFINITY);
    expect_broken(m(x, {.mask = infinite}), by_loops(m, x, mask));
  }
}

TEST(StickBreaking, WhatIsHiddenHasNoEffect) {
  torch::manual_seed(7);
  const auto q = torch::randn({1, 2, 300, 4}).requires_grad_();
  const auto seen = torch::arange(300).remainder(7) != 3;
  const auto mask = causal() && !window(0, 0) && mask_tensor(seen.view({1, 1, 1, 300}));
  std::vector<torch::Tensor> all;
  for (const double hidden : {0.0, std::nan(""), HUGE_VAL}) {
    torch::manual_seed(8);
    const auto hide = [&](const torch::Tensor& t) {
      return t.masked_fill(seen.logical_not().view({300, 1}), hidden).requires_grad_();
    };
    const auto k = hide(torch::randn({1, 2, 300, 4})), v = hide(torch::randn({1, 2, 300, 5}));
    const auto r = attention(q, k, v, mask, {.stick_breaking = true});
    auto got = torch::autograd::grad({r.output.square().sum() + r.lse.sum()}, {q, k, v});
    got.push_back(r.output);
    for (size_t i = 0; i < got.size(); ++i) {
      if (all.size() < got.size()) {
        all.push_back(got[i]);
      } else {
        EXPECT_TRUE(torch::allclose(got[i], all[i], 1e-5, 1e-6)) << i << ", " << hidden;
      }
    }
  }
}

TEST(StickBreaking, TokenByTokenAsTheWholePass) {
  torch::manual_seed(4);
  for (const auto& o : {Options{}, Options{.remainder = true}, Options{.rope = true},
                        Options{.remainder = true, .sliding_window = 5}}) {
    auto m = stick(o);
    expect_packs(m, "stick");
    expect_goes_on_as_alone(m, "stick");
    const torch::NoGradGuard no_grad;
    const auto x = torch::randn({2, 150, 10}, torch::kFloat64);
    const auto want = m(x);
    const auto cache = m->make_cache(2, 150);
    for (int64_t at = 0, end = 30; at < 150;
         at = end, end = std::min<int64_t>(150, at + at % 3 + 1)) {
      const auto got = m(x.slice(1, at, end), {.cache = cache});
      EXPECT_TRUE(torch::allclose(got.output, want.output.slice(1, at, end), 1e-10, 1e-12)) << at;
      EXPECT_TRUE(torch::allclose(got.lse, want.lse.slice(2, at, end), 1e-10, 1e-12)) << at;
      const torch::Tensor w = got.weights;
      if (!o.sliding_window) {
        EXPECT_TRUE(torch::allclose(w, want.weights.rows(at, end).slice(3, 0, end), 1e-10, 1e-12));
      }
    }
  }
}

TEST(StickBreaking, WeightsSumToOneAtMost) {
  for (const auto dtype : {torch::kFloat32, torch::kFloat64}) {
    const double most = dtype == torch::kFloat32 ? 1 + 64 * 0x1p-23 : 1 + 64 * 0x1p-52;
    for (const double size : {1e-3, 1.0, 100.0, 1e4}) {
      const auto q = torch::randn({1, 2, 600, 8}, dtype) * size, v = torch::eye(600, dtype);
      const auto leaf = q.detach().requires_grad_();
      const auto r = attention(leaf, q, v.expand({1, 2, 600, 600}), causal() && !window(0, 0),
                               {.stick_breaking = true});
      const auto sums = r.output.sum(-1);
      EXPECT_TRUE((r.output >= 0).all().item<bool>());
      EXPECT_TRUE((sums <= most).all().item<bool>()) << size;
      EXPECT_TRUE(torch::allclose(sums + r.lse.exp(), torch::ones_like(sums), 1e-4, 1e-5)) << size;
      const auto grad = torch::autograd::grad({r.output.square().sum()}, {leaf})[0];
      EXPECT_TRUE(grad.isfinite().all().item<bool>()) << size;
    }
  }
}

/// Scores far below 0 leave the stick whole: the rest's log is the sum of thousands of tiny ones.
TEST(StickBreaking, TinyAndHugeSharesAreExact) {
  const auto of = [](double score, int64_t n) {
    const auto one = torch::ones({1, 1, n, 1}, torch::kFloat64);
    return attention(one * score, one, one, causal() && !window(0, 0),
                     {.scale = 1.0, .stick_breaking = true});
  };
  const auto rare = of(-30, 3001);
  const double share = 1 / (1 + std::exp(30.0));
  EXPECT_NEAR(rare.lse[0][0][3000].item<double>() / (3000 * std::log1p(-share)), 1, 1e-12);
  EXPECT_NEAR(rare.output[0][0][3000].item<double>() / (3000 * share), 1, 1e-9);
  const auto sure = of(40, 2000);  // the next one takes all
  EXPECT_NEAR(sure.lse[0][0][1999].item<double>() / (-1999 * 40.0), 1, 1e-12);
  const torch::Tensor last = sure.weights.rows(1999, 2000);
  EXPECT_NEAR(last[0][0][0][1998].item<double>(), 1, 1e-12);
  EXPECT_NEAR(last[0][0][0][1997].item<double>() / std::exp(-40.0), 1, 1e-9);
}

TEST(StickBreaking, HalfTypesFollowTheErrorRule) {
  torch::manual_seed(5);
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    auto low = stick({.remainder = true}, dtype), gold = stick({.remainder = true});
    const torch::Tensor x = torch::randn({2, 33, 10}, dtype);
    for (const auto& p : state_dict(*low)) state_dict(*gold).at(p.first).detach().copy_(p.second);
    const auto leaf = x.detach().requires_grad_(), plain = x.detach().requires_grad_(),
               exact = x.to(torch::kFloat64).requires_grad_();
    const auto cotangent = torch::randn({2, 33, 12}, dtype);
    const auto grad = [&](const torch::Tensor& out, const torch::Tensor& of) {
      return torch::autograd::grad({(out * cotangent.to(out.scalar_type())).sum()}, {of})[0];
    };
    const auto got = low(leaf).output, reference = by_loops(low, plain, everybody()).output,
               want = by_loops(gold, exact, everybody()).output;
    expect_within_rule(got, want, reference, 2, 33, "stick output");
    expect_within_rule(grad(got, leaf), grad(want, exact), grad(reference, plain), 3, 33,
                       "stick gradient");
  }
}

TEST(StickBreaking, CostsWhatItsMaskReaches) {
  const auto pairs = [](int64_t n, const AnyMask& mask) {
    int64_t all = 0;
    for (const auto& c : core::chunks(mask, {1, 2, n, n}, int64_t{1} << 18)) all += c.pairs();
    return static_cast<double>(all) / static_cast<double>(n);
  };
  const core::WindowMask before{{1 << 30, -1}};
  for (const int64_t n : {4096, 16384}) {
    EXPECT_LE(pairs(n, before && causal()), 0.55 * static_cast<double>(n));
    EXPECT_LE(pairs(n, before && causal() && window(64, 0)), 3 * 65 + 64);
  }
}

TEST(StickBreaking, GroupedHeadsAndDropout) {
  torch::manual_seed(6);
  const auto q = torch::randn({2, 4, 20, 3}, torch::kFloat64),
             k = torch::randn({2, 2, 20, 3}, torch::kFloat64),
             v = torch::randn({2, 2, 20, 5}, torch::kFloat64);
  const auto mask = causal() && !window(0, 0);
  const auto all = [](const torch::Tensor& t) { return t.repeat_interleave(2, 1); };
  const auto one = attention(q, k, v, mask, {.stick_breaking = true}),
             two = attention(q, all(k), all(v), mask, {.stick_breaking = true});
  EXPECT_TRUE(torch::allclose(one.output, two.output, 1e-12, 1e-14));
  const auto dropped =
      attention(q, k, v, mask, {.dropout = 0.4, .seed = 3, .stick_breaking = true});
  EXPECT_TRUE(
      torch::allclose(dropped.output, torch::matmul(dropped.weights, all(v)), 1e-12, 1e-14));
  const torch::Tensor w = dropped.weights;
  EXPECT_TRUE(
      torch::allclose(w, torch::where(w == 0, w, one.weights.tensor() / 0.6), 1e-12, 1e-14));
  EXPECT_NE(explain(q, k, v, mask, {}, {.stick_breaking = true}).find("fused CPU kernels: taken"),
            std::string::npos);
}

/// The fused kernels, forward and backward, of any shape, mask, score and type.
TEST(StickBreaking, FusedIsTheReference) {
  torch::manual_seed(9);
  const auto draw = [](int64_t low, int64_t high) {
    return torch::randint(low, high + 1, {1}).item<int64_t>();
  };
  for (int i = 0; i < 60; ++i) {
    const int64_t B = draw(1, 2), Hkv = draw(1, 2), H = Hkv * draw(1, 3), L = draw(1, 140),
                  S = i % 3 == 0 ? draw(1, 400) : L, D = draw(1, 70), E = draw(1, 70);
    const auto low = std::vector{torch::kFloat32, torch::kBFloat16, torch::kHalf}[i % 3u];
    const auto numbers = [&](torch::IntArrayRef sizes) {
      return torch::randn(sizes).to(low).to(torch::kFloat64);
    };
    const auto make = [&](int64_t batch, int64_t heads, int64_t n, int64_t d) {
      return numbers({batch, n, heads, d}).transpose(1, 2);
    };
    const auto q = make(B, H, L, D), k = make(B, Hkv, S, D), v = make(B, Hkv, S, E),
               dense = torch::rand({B, 1, L, S}) < 0.5, bias = numbers({1, H, L, S}),
               cotangent = numbers({B, H, L, E}), of_lse = numbers({B, H, L});
    const std::vector<AnyMask> masks{{},
                                     causal(),
                                     causal() && !window(0, 0),
                                     window(20, 3),
                                     dilated(3),
                                     mask_tensor(dense),
                                     !causal()};
    const auto& mask = masks[static_cast<size_t>(i) % masks.size()];
    const bool modified = i % 2 == 0;
    const AttentionOptions options{
        .dropout = i % 5 == 4 ? 0.3 : 0.0, .seed = 7, .stick_breaking = true};
    const auto results = [&](torch::ScalarType dtype, bool learns) {
      std::vector<torch::Tensor> leaves;
      for (const auto& t : {q, k, v, bias}) {
        leaves.push_back(t.to(dtype).detach().requires_grad_(learns));
      }
      const auto score = modified ? AnyScore(bias_tensor(leaves[3]) + softcap(4)) : AnyScore();
      const auto r = attention(leaves[0], leaves[1], leaves[2], mask, score, options);
      std::vector<torch::Tensor> all{r.output, r.lse};
      if (!learns) return all;
      if (!modified) leaves.pop_back();
      const auto sum =
          (r.output * cotangent.to(dtype)).sum() + (r.lse * of_lse.to(r.lse.scalar_type())).sum();
      for (const auto& g : torch::autograd::grad({sum}, leaves)) all.push_back(g);
      return all;
    };
    const auto by_reference = [&](torch::ScalarType dtype) {
      const EagerReferenceGuard eager;
      return results(dtype, true);
    };
    SCOPED_TRACE("case " + std::to_string(i));
    const auto gold = by_reference(torch::kFloat64), got = results(torch::kFloat64, true),
               few = results(torch::kFloat64, false);
    for (size_t j = 0; j < gold.size(); ++j) {
      EXPECT_TRUE(torch::allclose(got[j], gold[j], 1e-10, 1e-11)) << j;
      if (j < 2) {
        EXPECT_TRUE(torch::allclose(few[j], gold[j], 1e-10, 1e-11)) << j;
      }
    }
    const auto rounded = by_reference(low), fused = results(low, true);
    for (size_t j = 0; j < gold.size(); ++j) {
      // What is less than 2^-80 of a stick is 0 in float.
      const auto counts = gold[j].abs() > gold[j].abs().max() * 1e-20;
      expect_within_rule(fused[j], gold[j] * counts, rounded[j], j < 2 ? 2 : 3, S,
                         std::string(torch::toString(low)) + " " + std::to_string(j));
    }
  }
}

TEST(StickBreaking, LivesAsAModule) {
  auto m = stick({.remainder = true});
  expect_gradients(m);
  expect_lives_as_a_module(m);
  std::stringstream text;
  text << *m;
  EXPECT_NE(text.str().find("StickBreakingSelfAttention(d_model=12, num_heads=3, remainder=true"),
            std::string::npos)
      << text.str();
}

TEST(StickBreaking, Errors) {
  const torch::NoGradGuard no_grad;  // as caches want it
  auto m = stick();
  const auto x = torch::ones({2, 6, 10}, torch::kFloat64);
  const auto bad = [&](const AttentionInputs& in, std::vector<std::string> parts) {
    parts.push_back("StickBreakingSelfAttention");
    expect_error([&] { m(x, in); }, parts);
  };
  bad({.causal = false}, {"causal"});
  bad({.context = x}, {"context"});
  bad({.score = sink(torch::zeros({3}))}, {"sink"});
  bad({.global_attention = torch::ones({6})}, {"global_attention"});
  bad({.causal = false, .cache = m->make_cache(2, 12)}, {"causal"});
  bad({.context = x, .cache = m->make_cache(2, 12)}, {"a cache has no meaning with a context"});
  expect_error([&] { m->make_context_cache(x); }, {"StickBreakingSelfAttention", "context"});
  expect_error([] { StickBreakingSelfAttention({.d_model = 8, .num_heads = 3}); },
               {"num_heads", "3"});
  expect_error([] { StickBreakingSelfAttention({.d_model = 8, .num_heads = 2, .temperature = 0}); },
               {"temperature", "0"});
  expect_error(
      [] { StickBreakingSelfAttention({.d_model = 8, .num_heads = 2, .sliding_window = 0}); },
      {"sliding_window", "0"});
  const auto q = torch::ones({1, 2, 3, 4});
  expect_error(
      [&] { attention(q, q, q, causal(), sink(torch::zeros({2})), {.stick_breaking = true}); },
      {"attention", "sink", "stick_breaking"});
}

}  // namespace
}  // namespace attzoo::testing::stick_breaking_test
