#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/core/choose.hpp>
#include <attzoo/core/recurrence/by_tensors.hpp>
#include <attzoo/core/recurrence/linear_attention.hpp>
#include <attzoo/core/recurrence/recur.hpp>
#include <attzoo/functional/linear_attention.hpp>

#include <cmath>

#include "support/error_rule.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing::linear_attention_test {
namespace {

constexpr auto kDouble = torch::kFloat64;

/// Features: positive numbers, so that no normaliser is close to 0.
torch::Tensor features(std::vector<int64_t> sizes) { return torch::rand(sizes, kDouble) + 0.1; }
torch::Tensor leaf(std::vector<int64_t> sizes) {
  return torch::randn(sizes, kDouble).requires_grad_();
}

/// The definition with its pairs [B or 1, 1, L, S] written out: output and weights.
std::pair<torch::Tensor, torch::Tensor> dense(const torch::Tensor& q, const torch::Tensor& k,
                                              const torch::Tensor& v, const torch::Tensor& pairs,
                                              double eps = 1e-6) {
  const auto s = torch::matmul(q, k.transpose(-2, -1)) * pairs;
  const auto weights = s / (s.sum(-1, true) + eps);
  return {torch::matmul(weights, v), weights};
}

torch::Tensor all_pairs(int64_t L, int64_t S) { return torch::ones({1, 1, L, S}, kDouble); }

/// With the n x n reference and without it.
template <class F>
void either_way(F&& f) {
  for (const bool eager : {false, true}) {
    core::eager_reference() = eager;
    f();
    core::eager_reference() = false;
  }
}

void expect_close(const AttentionResult& got, const std::pair<torch::Tensor, torch::Tensor>& want,
                  const std::string& what) {
  EXPECT_TRUE(torch::allclose(got.output, want.first, 1e-9, 1e-11)) << what;
  EXPECT_EQ(got.weights.sizes(), want.second.sizes()) << what;
  EXPECT_TRUE(torch::allclose(got.weights, want.second, 1e-9, 1e-11)) << what;
  const auto last = want.second.slice(2, want.second.size(2) - 1);
  EXPECT_TRUE(torch::allclose(
      got.weights.rows(last.size(2) == 0 ? 0 : want.second.size(2) - 1, want.second.size(2)), last,
      1e-9, 1e-11))
      << what;
  EXPECT_FALSE(got.lse.defined());
}

TEST(LinearAttention, IsItsDefinition) {
  for (const auto& [L, S] : {std::pair{1, 1}, {9, 9}, {200, 200}, {5, 9}, {9, 5}, {70, 200}}) {
    const auto q = features({2, 3, L, 4}), k = features({2, 3, S, 4}),
               v = torch::randn({2, 3, S, 7}, kDouble);
    for (const bool causal : {false, true}) {
      const auto pairs = causal ? all_pairs(L, S).tril(S - L) : all_pairs(L, S);
      either_way([&, L = L, S = S] {
        expect_close(linear_attention(q, k, v, {.causal = causal}), dense(q, k, v, pairs),
                     c10::str("L=", L, " S=", S, " causal=", causal));
      });
    }
  }
}

TEST(LinearAttention, LeavesOutPaddedKeys) {
  const auto q = features({2, 2, 6, 3}), k = features({2, 2, 6, 3}),
             v = torch::randn({2, 2, 6, 3}, kDouble);
  const auto real = torch::arange(6).unsqueeze(0) < torch::tensor({{4}, {6}});
  const auto pairs = real.unsqueeze(1).unsqueeze(1).to(kDouble);
  const auto want = dense(q, k, v, pairs);
  k[0][1][5][2] = std::nan("");  // nobody looks at these
  v[0][0][4][1] = INFINITY;
  either_way([&] {
    expect_close(linear_attention(q, k, v, {.key_padding_mask = real}), want, "padding");
  });
}

TEST(LinearAttention, KeepsDocumentsApart) {
  const auto q = features({2, 2, 9, 3}), k = features({2, 2, 9, 3}),
             v = torch::randn({2, 2, 9, 5}, kDouble);
  const auto offsets = torch::tensor({0, 4, 4, 9});
  const auto ids = torch::tensor({{7, 7, 7, 2, 2, 2, 2, 2, 2}, {1, 0, 0, 0, 0, 0, 5, 5, 5}});
  const auto one = torch::tensor({{0, 0, 0, 0, 1, 1, 1, 1, 1}});
  for (const bool causal : {false, true}) {
    for (const bool by_ids : {false, true}) {
      const auto own = by_ids ? ids : one;
      auto pairs = (own.unsqueeze(2) == own.unsqueeze(1)).unsqueeze(1).to(kDouble);
      if (causal) pairs = pairs.tril();
      const Documents documents = by_ids ? Documents{.ids = ids} : Documents{.offsets = offsets};
      either_way([&] {
        expect_close(linear_attention(q, k, v, {.causal = causal, .documents = documents}),
                     dense(q, k, v, pairs), c10::str("causal=", causal, " by ids=", by_ids));
      });
    }
  }
}

TEST(LinearAttention, Gradients) {
  for (const bool causal : {false, true}) {
    const auto q = features({1, 2, 4, 3}).requires_grad_(),
               k = features({1, 2, 5, 3}).requires_grad_(), v = leaf({1, 2, 5, 2});
    const auto f = [&] { return linear_attention(q, k, v, {.causal = causal}).output.sin().sum(); };
    gradcheck(f, {q, k, v}, "linear attention");
    gradgradcheck(f, {q, k, v}, "linear attention");
    gradcheck(
        [&] {
          return torch::Tensor(linear_attention(q, k, v, {.causal = causal}).weights)
              .square()
              .sum();
        },
        {q, k}, "weights of linear attention");
  }
}

/// The kernel, and the chunks of tensors of other devices.
TEST(LinearAttention, SumsAreExactInEveryDerivative) {
  const auto q = leaf({2, 3, 200, 20}), k = leaf({2, 3, 200, 20}), v = leaf({2, 3, 200, 150});
  const auto want = torch::matmul(torch::matmul(q, k.transpose(-2, -1)).tril(), v);
  const core::Recurrence x{q, k, v};
  for (const auto& got : {core::recur(x).out, core::by_tensors::Chunks(x).run().out}) {
    EXPECT_TRUE(torch::allclose(got, want, 1e-9, 1e-9));
    const auto g = torch::randn_like(want);
    const auto a = torch::autograd::grad({got}, {q, k, v}, {g});
    const auto b = torch::autograd::grad({want}, {q, k, v}, {g}, true);
    for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(torch::allclose(a[i], b[i], 1e-9, 1e-9)) << i;
  }
}

/// From a state and to the next, token by token of its definition.
std::pair<torch::Tensor, torch::Tensor> token_by_token(const core::Recurrence& x) {
  auto state = x.state.defined() ? x.state : torch::zeros({}, kDouble);
  std::vector<torch::Tensor> out(static_cast<size_t>(x.q.size(2)));
  for (int64_t i = 0; i < x.q.size(2); ++i) {
    const auto at = [t = i](const torch::Tensor& all) { return all.narrow(2, t, 1); };
    state = state + torch::matmul(at(x.k).transpose(-2, -1), at(x.v));
    out[static_cast<size_t>(i)] = torch::matmul(at(x.q), state);
  }
  return {torch::cat(out, 2), state};
}

TEST(LinearAttention, RecurrencesGoFromStateToState) {
  for (const int64_t n : {1, 3, 70}) {
    for (const bool begins : {false, true}) {
      const auto q = leaf({2, 2, n, 3}), k = leaf({2, 2, n, 3}), v = leaf({2, 2, n, 5}),
                 state = leaf({2, 2, 3, 5});
      core::Recurrence x{q, k, v};
      if (begins) x.state = state;
      const auto [out, last] = token_by_token(x);
      const auto y = core::recur(x);
      EXPECT_TRUE(torch::allclose(y.out, out, 1e-10, 1e-12)) << n << begins;
      EXPECT_TRUE(torch::allclose(y.state, last, 1e-10, 1e-12)) << n << begins;
      Tensors leaves{q, k, v};
      if (begins) leaves.push_back(state);
      const auto g = torch::randn_like(out), gs = torch::randn_like(last);
      // Of both, of the state alone, and of the outputs alone, without and with a graph.
      const auto expect_gradients = [&](const Tensors& got, const Tensors& want,
                                        const Tensors& cotangents) {
        for (const bool graph : {false, true}) {
          const auto a = torch::autograd::grad(got, leaves, cotangents, true, graph, true);
          const auto b = torch::autograd::grad(want, leaves, cotangents, true, false, true);
          for (size_t i = 0; i < leaves.size(); ++i) {
            const auto zero = torch::zeros_like(leaves[i]);
            EXPECT_TRUE(torch::allclose(a[i].defined() ? a[i] : zero, b[i].defined() ? b[i] : zero,
                                        1e-9, 1e-11))
                << n << begins << " gradient " << i;
          }
        }
      };
      expect_gradients({y.out, y.state}, {out, last}, {g, gs});
      expect_gradients({y.state}, {last}, {gs});
      expect_gradients({y.out}, {out}, {g});
      if (n > 3) continue;
      gradgradcheck(
          [&] {
            const auto z = core::recur(x);
            return z.out.sin().sum() + z.state.square().sum();
          },
          leaves, "recurrence");
    }
  }
}

TEST(LinearAttention, HalfTypesFollowTheErrorRule) {
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    const auto draw = [&] { return torch::rand({1, 2, 150, 17}).to(dtype); };
    const auto q = draw(), k = draw(), v = draw();
    const auto plain = [](const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) {
      return torch::matmul(torch::matmul(q, k.transpose(-2, -1)).tril(), v);
    };
    expect_within_rule(core::recur({q, k, v}).out,
                       plain(q.to(kDouble), k.to(kDouble), v.to(kDouble)), plain(q, k, v), 2, 150,
                       c10::toString(dtype));
  }
}

TEST(LinearAttention, SumsPassFloat16) {
  const auto q = torch::full({1, 1, 4096, 8}, 4.0, torch::kHalf),
             v = torch::full({1, 1, 4096, 8}, 2.0, torch::kHalf);
  for (const bool causal : {false, true}) {
    const auto r = linear_attention(q, q, v, {.causal = causal});
    EXPECT_EQ(r.output.scalar_type(), torch::kHalf);
    EXPECT_TRUE(torch::allclose(r.output, v, 1e-3, 0));
    EXPECT_EQ(r.weights.rows(0, 2).scalar_type(), torch::kHalf);
  }
}

TEST(LinearAttention, NothingToAttendToIsZero) {
  const auto q = features({1, 1, 6, 3}).requires_grad_(), k = features({1, 1, 4, 3}),
             v = torch::randn({1, 1, 4, 2}, kDouble);
  either_way([&] {
    const auto r = linear_attention(q, k, v, {.causal = true, .eps = 0});
    EXPECT_TRUE(torch::equal(r.output.slice(2, 0, 2), torch::zeros({1, 1, 2, 2}, kDouble)));
    EXPECT_TRUE(torch::equal(r.weights.rows(0, 2), torch::zeros({1, 1, 2, 4}, kDouble)));
    const auto g = torch::autograd::grad({r.output.sum() + r.weights.tensor().square().sum()}, {q});
    EXPECT_TRUE(g[0].isfinite().all().item<bool>());
  });
  for (const auto& [L, S] : {std::pair{0, 5}, {5, 0}, {0, 0}}) {
    either_way([&, L = L, S = S] {
      const auto r = linear_attention(features({2, 1, L, 3}), features({2, 1, S, 3}),
                                      features({2, 1, S, 4}), {.causal = true, .eps = 0});
      EXPECT_TRUE(torch::equal(r.output, torch::zeros({2, 1, L, 4}, kDouble)));
      EXPECT_EQ(r.weights.tensor().sizes(), (std::vector<int64_t>{2, 1, L, S}));
    });
  }
}

TEST(LinearAttention, WeightsNoticeChangesInPlace) {
  const auto q = features({1, 1, 4, 3}), k = features({1, 1, 4, 3});
  const auto weights = linear_attention(q, k, k).weights;
  k.add_(1);
  expect_error([&] { weights.tensor(); }, {"LazyWeights", "inplace"});
}

TEST(LinearAttention, AStateGoesOnFromCallToCall) {
  const auto q = features({2, 3, 40, 5}), k = features({2, 3, 40, 5}).requires_grad_(),
             v = torch::randn({2, 3, 40, 4}, kDouble);
  const auto real = torch::rand({2, 40}) < 0.8;
  const auto whole = linear_attention(q, k, v, {.causal = true, .key_padding_mask = real}).output;
  either_way([&] {
    LinearState state;
    std::vector<torch::Tensor> outputs;
    for (int64_t at = 0, L = 1; at < 40; at += L, L = L * 2 % 11) {
      const auto part = [&](const torch::Tensor& t) {
        return t.slice(2, at, std::min<int64_t>(40, at + L));
      };
      outputs.push_back(
          linear_attention(
              part(q), part(k), part(v),
              {.causal = true, .key_padding_mask = real.slice(1, at, at + L), .state = &state})
              .output);
    }
    const auto got = torch::cat(outputs, 2);
    EXPECT_TRUE(torch::allclose(got, whole, 1e-10, 1e-12));
    const auto gradient = [&](const torch::Tensor& of) {
      return torch::autograd::grad({of.square().sum()}, {k}, {}, /*retain_graph=*/true)[0];
    };
    EXPECT_TRUE(torch::allclose(gradient(got), gradient(whole), 1e-9, 1e-11));
  });
}

TEST(LinearAttention, Errors) {
  const auto t = torch::ones({2, 2, 4, 3});
  using Options = LinearAttentionOptions;
  const auto refused = [&](const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                           const Options& o, std::vector<std::string> parts) {
    parts.push_back("linear_attention: ");
    expect_error([&] { linear_attention(q, k, v, o); }, parts);
  };
  refused({}, t, t, {}, {"q", "undefined"});
  refused(t, t[0], t, {}, {"k", "[2, 4, 3]"});
  refused(t, t, t.to_sparse(), {}, {"v", "Sparse"});
  refused(t, t, t.to(torch::kInt64), {}, {"v", "Long"});
  refused(t, t.to(kDouble), t, {}, {"k", "Float", "Double"});
  refused(t, torch::ones({1, 2, 4, 3}), t, {}, {"k", "batch", "[1, 2, 4, 3]"});
  refused(t, torch::ones({2, 1, 4, 3}), t, {}, {"k", "heads", "[2, 1, 4, 3]"});
  refused(t, torch::ones({2, 2, 4, 5}), t, {}, {"last size", "[2, 2, 4, 5]"});
  refused(t, t, torch::ones({2, 2, 5, 3}), {}, {"v", "length", "[2, 2, 5, 3]"});
  refused(t, t, t, {.eps = -1}, {"eps", "-1"});
  refused(t, t, t, {.eps = std::nan("")}, {"eps", "nan"});
  refused(t, t, t, {.key_padding_mask = torch::ones({2, 4})}, {"key_padding_mask", "Float"});
  refused(t, t, t, {.key_padding_mask = torch::ones({2, 5}, torch::kBool)},
          {"key_padding_mask", "[2, 5]"});
  refused(t, t, t, {.documents = {.offsets = torch::tensor({0, 3})}}, {"documents", "S=4", "3"});
  refused(t, t, t, {.documents = {.ids = torch::tensor({0, 1, 0, 1})}}, {"documents", "together"});
  refused(t.slice(2, 0, 2), t, t, {.documents = {.ids = torch::zeros({4}, torch::kInt64)}},
          {"documents", "L=2", "S=4"});
  LinearState state{torch::ones({2, 2, 3, 3}), torch::ones({2, 2, 3})};
  refused(t, t, t, {.state = &state}, {"causal"});
  refused(t.slice(2, 0, 2), t, t, {.causal = true, .state = &state}, {"L = S"});
  state.k = torch::ones({2, 2, 4});
  refused(t, t, t, {.causal = true, .state = &state}, {"state", "[2, 2, 4]"});
  state.k = torch::ones({2, 2, 3}, kDouble);
  refused(t, t, t, {.causal = true, .state = &state}, {"state", "Double"});
  state.k = torch::Tensor();
  refused(t, t, t, {.causal = true, .state = &state}, {"state", "both"});
  const auto huge = torch::ones({1, 1, 1, 1}).expand({1 << 20, 1 << 20, 1 << 20, 1});
  refused(huge, huge, huge, {}, {"too many elements"});
}

}  // namespace
}  // namespace attzoo::testing::linear_attention_test
