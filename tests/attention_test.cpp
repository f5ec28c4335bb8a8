#include <gtest/gtest.h>
#include <torch/cuda.h>
#include <attzoo/attention.hpp>
#include <attzoo/masks.hpp>

#include <cmath>

#include "support/error_rule.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Problem {
  torch::Tensor q, k, v;
};

Problem random_problem(int64_t B, int64_t H, int64_t Hkv, int64_t L, int64_t S, int64_t D,
                       int64_t Dv, torch::ScalarType dtype = torch::kFloat64) {
  return {torch::randn({B, H, L, D}, dtype), torch::randn({B, Hkv, S, D}, dtype),
          torch::randn({B, Hkv, S, Dv}, dtype)};
}

/// Softmax attention as a textbook writes it, with repeated key-value heads; zeros for empty rows.
AttentionResult textbook(const Problem& p, const torch::Tensor& allowed) {
  const int64_t group = p.q.size(1) / p.k.size(1);
  const auto k = p.k.repeat_interleave(group, 1), v = p.v.repeat_interleave(group, 1);
  auto s = torch::matmul(p.q, k.transpose(-2, -1)) / std::sqrt(static_cast<double>(p.q.size(3)));
  s = s.masked_fill(allowed.logical_not(), -kInf);
  const auto w = torch::softmax(s, -1).nan_to_num(0.0);
  return {torch::matmul(w, v), {}, torch::logsumexp(s, -1)};
}

TEST(Attention, IsItsDefinitionForAllShapes) {
  torch::manual_seed(1);
  for (const auto& [L, S] : {std::pair{1, 1}, {2, 31}, {31, 2}, {63, 65}, {64, 64}, {97, 129}}) {
    for (const int64_t D : {1, 2, 3, 5, 31, 64}) {
      for (const int64_t Hkv : {1, 2, 4}) {
        const auto p = random_problem(2, 4, Hkv, L, S, D, D + Hkv - 1);
        const auto mask = torch::ones({L, S}, torch::kBool).tril(S - L);
        for (const bool is_causal : {false, true}) {
          const auto want = textbook(p, is_causal ? mask : torch::ones_like(mask));
          const auto got = attention(p.q, p.k, p.v, core::CausalMask{.enabled = is_causal});
          EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-10, 1e-12)) << L << " " << S;
          EXPECT_TRUE(torch::allclose(got.lse, want.lse, 1e-10, 1e-12)) << L << " " << S;
        }
      }
    }
  }
}

TEST(Attention, AllDtypesFollowTheErrorRule) {
  torch::manual_seed(2);
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf, torch::kFloat64}) {
    for (const auto& [L, S] : {std::pair{65, 65}, {33, 97}, {129, 129}}) {
      for (const int64_t D : {5, 32, 59}) {
        auto p = random_problem(1, 4, 2, L, S, D, D, dtype);
        const auto mask = torch::ones({L, S}, torch::kBool).tril(S - L);
        const auto cotangent = torch::randn({1, 4, L, D}, dtype);
        const auto run = [&](auto&& f, torch::ScalarType t) {
          Problem leaf{p.q.to(t).detach().requires_grad_(), p.k.to(t).detach().requires_grad_(),
                       p.v.to(t).detach().requires_grad_()};
          const auto out = f(leaf).output;
          auto grads =
              torch::autograd::grad({(out * cotangent.to(t)).sum()}, {leaf.q, leaf.k, leaf.v});
          grads.insert(grads.begin(), out.detach());
          return grads;
        };
        const auto plain = [&](const Problem& x) { return textbook(x, mask); };
        const auto gold = run(plain, torch::kFloat64), own = run(plain, dtype);
        const auto got =
            run([](const Problem& x) { return attention(x.q, x.k, x.v, causal()); }, dtype);
        const char* names[] = {"output", "dq", "dk", "dv"};
        for (size_t i = 0; i < 4; ++i) {
          expect_within_rule(got[i], gold[i], own[i], i == 0 ? 2 : 3, std::max<int64_t>(S, D),
                             std::string(names[i]) + " " + c10::toString(dtype));
        }
      }
    }
  }
}

TEST(Attention, GradientsAndSecondDerivatives) {
  torch::manual_seed(3);
  for (const int64_t Hkv : {1, 2}) {
    auto p = random_problem(1, 2, Hkv, 5, 6, 3, Hkv == 1 ? 4 : 3);
    for (auto* t : {&p.q, &p.k, &p.v}) t->requires_grad_();
    const auto f = [&] {
      const auto r = attention(p.q, p.k, p.v, causal());
      return r.output.sin().sum() + r.lse.cos().sum();
    };
    gradcheck(f, {p.q, p.k, p.v}, "attention");
    gradgradcheck(f, {p.q, p.k, p.v}, "attention");
    const auto output_only = [&] { return attention(p.q, p.k, p.v).output.sin().sum(); };
    gradcheck(output_only, {p.q, p.k, p.v}, "attention output");
    gradgradcheck(output_only, {p.q, p.k, p.v}, "attention output");
    const auto lse_only = [&] { return attention(p.q, p.k, p.v).lse.sin().sum(); };
    gradcheck(lse_only, {p.q, p.k}, "attention lse");
  }
}

TEST(Attention, SharedKeyValueHeadsSumTheirGradients) {
  auto p = random_problem(2, 6, 2, 7, 7, 4, 4);
  for (auto* t : {&p.k, &p.v}) t->requires_grad_();
  const auto repeated_k = p.k.repeat_interleave(3, 1), repeated_v = p.v.repeat_interleave(3, 1);
  const auto a = attention(p.q, p.k, p.v).output, b = attention(p.q, repeated_k, repeated_v).output;
  EXPECT_TRUE(torch::allclose(a, b, 1e-10, 1e-12));
  const auto ga = torch::autograd::grad({a.square().sum()}, {p.k, p.v});
  const auto gb = torch::autograd::grad({b.square().sum()}, {p.k, p.v});
  EXPECT_TRUE(torch::allclose(ga[0], gb[0], 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(ga[1], gb[1], 1e-10, 1e-12));
}

TEST(Attention, StridesDoNotMatter) {
  torch::manual_seed(4);
  const auto packed = torch::randn({2, 9, 3, 4, 6}, torch::kFloat64);  // B, N, qkv, H, D
  const auto part = [&](int64_t i) { return packed.select(2, i).transpose(1, 2); };
  const auto want = attention(part(0).contiguous(), part(1).contiguous(), part(2).contiguous());
  EXPECT_TRUE(torch::allclose(attention(part(0), part(1), part(2)).output, want.output));
  const auto odd = torch::randn({2, 4, 6, 18}, torch::kFloat64).transpose(2, 3).slice(2, 0, 18, 2);
  EXPECT_NE(odd.stride(3), 1);
  EXPECT_TRUE(torch::allclose(
      attention(odd, odd, odd, causal()).output,
      attention(odd.contiguous(), odd.contiguous(), odd.contiguous(), causal()).output));
  const auto one = torch::randn({1, 1, 9, 6}, torch::kFloat64).expand({2, 4, 9, 6});
  EXPECT_TRUE(
      torch::allclose(attention(one, one, one).output,
                      attention(one.contiguous(), one.contiguous(), one.contiguous()).output));
}

TEST(Attention, EmptyProblems) {
  for (const auto& [B, L, S] : {std::tuple{0, 3, 3}, {2, 0, 3}, {2, 3, 0}, {2, 0, 0}}) {
    auto p = random_problem(B, 2, 1, L, S, 4, 5);
    for (auto* t : {&p.q, &p.k, &p.v}) t->requires_grad_();
    const auto r = attention(p.q, p.k, p.v, causal());
    EXPECT_EQ(r.output.sizes(), (std::vector<int64_t>{B, 2, L, 5}));
    EXPECT_TRUE((r.output == 0).all().item<bool>());
    EXPECT_TRUE((r.lse == -kInf).all().item<bool>());
    r.output.sum().backward();
    EXPECT_TRUE((p.q.grad() == 0).all().item<bool>());
  }
}

TEST(Attention, LargeScoresStayFinite) {
  const auto p = random_problem(1, 1, 1, 8, 8, 4, 4, torch::kFloat32);
  const auto want =
      textbook({p.q.to(torch::kFloat64) * 1e4, p.k.to(torch::kFloat64), p.v.to(torch::kFloat64)},
               torch::ones({8, 8}, torch::kBool));
  const auto got = attention(p.q * 1e4, p.k, p.v);
  EXPECT_TRUE(torch::allclose(got.output.to(torch::kFloat64), want.output, 1e-3, 1e-3));
  const auto huge = torch::full({1, 1, 64, 64}, 133120.0, torch::kBFloat16);
  EXPECT_TRUE(attention(huge, huge, huge).output.isfinite().all().item<bool>());
  const auto least = torch::full({1, 1, 8, 8}, -std::numeric_limits<float>::max());
  const auto row = attention(p.q, p.k, p.v, bias_tensor(least));
  EXPECT_TRUE(row.output.isfinite().all().item<bool>());
}

TEST(Attention, DropoutIsRepeatableAndHonest) {
  const auto p = random_problem(2, 4, 2, 128, 128, 8, 8);
  const AttentionOptions half{.dropout = 0.25, .seed = 7};
  const auto r = attention(p.q, p.k, p.v, full(), {}, half);
  EXPECT_TRUE(torch::equal(r.output, attention(p.q, p.k, p.v, full(), {}, half).output));
  const torch::Tensor w = r.weights;
  EXPECT_NEAR((w == 0).to(torch::kFloat64).mean().item<double>(), 0.25, 0.01);
  EXPECT_TRUE(
      torch::allclose(r.output, torch::matmul(w, p.v.repeat_interleave(2, 1)), 1e-10, 1e-12));
  EXPECT_TRUE(torch::equal(attention(p.q, p.k, p.v, full(), {}, {.dropout = 0.0, .seed = 7}).output,
                           attention(p.q, p.k, p.v).output));
  EXPECT_TRUE(
      (attention(p.q, p.k, p.v, full(), {}, {.dropout = 1.0}).output == 0).all().item<bool>());
  // Rows, columns, heads and batches are dropped independently of each other.
  const auto dropped = (w == 0).to(torch::kFloat64) - 0.25;
  for (int64_t d = 0; d < 4; ++d) {
    const auto other = dropped.roll(1, d);
    EXPECT_NEAR((dropped * other).mean().item<double>(), 0, 0.01) << d;
  }
}

TEST(Attention, DropoutGradientsUseTheSameEntries) {
  auto p = random_problem(1, 2, 1, 5, 6, 3, 3);
  for (auto* t : {&p.q, &p.k, &p.v}) t->requires_grad_();
  gradcheck(
      [&] {
        return attention(p.q, p.k, p.v, causal(), {}, {.dropout = 0.4, .seed = 11})
            .output.sin()
            .sum();
      },
      {p.q, p.k, p.v}, "dropout");
}

TEST(Attention, NoGradIsBitEqual) {
  auto p = random_problem(1, 2, 2, 33, 33, 8, 8, torch::kFloat32);
  p.q.requires_grad_();
  const auto with = attention(p.q, p.k, p.v, causal()).output;
  torch::NoGradGuard no_grad;
  const auto without = attention(p.q, p.k, p.v, causal()).output;
  EXPECT_TRUE(torch::equal(with, without));
  EXPECT_FALSE(without.requires_grad());
}

TEST(Attention, LeadingDimensionsBroadcast) {
  const auto q = torch::randn({3, 1, 5, 4}, torch::kFloat64),
             k = torch::randn({2, 6, 4}, torch::kFloat64),
             v = torch::randn({6, 7}, torch::kFloat64);
  const auto r = scaled_dot_product_attention(q, k, v, {.temperature = 2});
  const auto w = torch::softmax(torch::matmul(q, k.transpose(-2, -1)) / 4, -1);
  EXPECT_EQ(r.output.sizes(), (std::vector<int64_t>{3, 2, 5, 7}));
  EXPECT_TRUE(torch::allclose(r.output, torch::matmul(w, v)));
  EXPECT_TRUE(torch::allclose(r.weights, w));
  EXPECT_TRUE(torch::allclose(r.weights.rows(1, 3), w.slice(-2, 1, 3)));
}

TEST(Attention, Errors) {
  const auto p = random_problem(2, 4, 2, 5, 6, 8, 3, torch::kFloat32);
  const auto bad = [&](auto change, const std::vector<std::string>& parts) {
    Problem x = p;
    change(x);
    expect_error([&] { attention(x.q, x.k, x.v); }, parts);
  };
  bad([](auto& x) { x.q = torch::Tensor(); }, {"attention", "q", "undefined"});
  bad([](auto& x) { x.q = x.q[0]; }, {"attention", "q", "[B, H, L or S, D]", "[4, 5, 8]"});
  bad([](auto& x) { x.k = x.k.to(torch::kFloat64); }, {"attention", "k", "Float", "Double"});
  bad([](auto& x) { x.v = x.v.to(torch::kInt64); }, {"attention", "v", "Long"});
  bad([](auto& x) { x.v = x.v.to(torch::kMeta); }, {"attention", "v", "device", "meta"});
  bad([](auto& x) { x.k = x.k.slice(0, 1); }, {"attention", "batch", "[1, 2, 6, 8]"});
  bad([](auto& x) { x.q = x.q.slice(1, 1); }, {"attention", "heads", "[2, 3, 5, 8]"});
  bad([](auto& x) { x.k = x.k.slice(1, 2), x.v = x.v.slice(1, 2); }, {"attention", "heads"});
  bad([](auto& x) { x.v = x.v.slice(2, 1); }, {"attention", "v", "length"});
  bad([](auto& x) { x.k = x.k.slice(3, 1); }, {"attention", "head_dim", "[2, 2, 6, 7]"});
  bad([](auto& x) { x.q = x.q.slice(3, 8), x.k = x.k.slice(3, 8); }, {"attention", "head_dim"});
  expect_error([&] { attention(p.q, p.k, p.v, full(), {}, {.dropout = 1.5}); }, {"dropout", "1.5"});
  expect_error([&] { attention(p.q, p.k, p.v, full(), {}, {.scale = kInf}); }, {"scale", "inf"});
  expect_error([&] { scaled_dot_product_attention(p.q, p.k, p.v, {.temperature = 0}); },
               {"scaled_dot_product_attention", "temperature", "0"});
  expect_error(
      [&] {
        scaled_dot_product_attention(p.q, p.q, p.q, {.mask = torch::ones({5, 5}, torch::kInt64)});
      },
      {"mask", "kBool"});
  expect_error(
      [&] {
        scaled_dot_product_attention(p.q, p.q, p.q, {.mask = torch::ones({5, 6})});
      },
      {"mask", "[2, 4, 5, 5]", "[5, 6]"});
  expect_error([&] { attzoo::scaled_dot_product_attention(p.q, p.k, p.v); },
               {"broadcast", "[2, 2, 6, 8]"});
  const auto flags = torch::ones({5, 5}, torch::kBool);
  expect_error([&] { attention(p.q, p.k, p.v, mask_tensor(flags)); },
               {"mask_tensor", "S=6", "[1, 1, 5, 5]"});
  expect_error([&] { attention(p.q, p.k, p.v, !mask_tensor(flags) && causal()); }, {"mask_tensor"});
  expect_error(
      [&] { attention(p.q, p.k, p.v, full(), softcap(2) + bias_tensor(flags.to(torch::kFloat))); },
      {"bias_tensor", "S=6"});
  expect_error([&] { attention(p.q, p.k, p.v, alibi(torch::ones({3}))); }, {"alibi", "[3]", "H=4"});
  expect_error([&] { attention(p.q, p.k, p.v, global_tokens(flags)); }, {"global_tokens", "S=6"});
  expect_error(
      [&] {
        attention(p.q, p.k, p.v, documents(torch::tensor({0, 5})));
      },
      {"documents", "S=6", "5"});
}

TEST(Attention, MatchesTheCpuOnCuda) {
  if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
  const auto p = random_problem(2, 4, 2, 65, 65, 16, 16, torch::kFloat32);
  const auto want = attention(p.q, p.k, p.v, causal());
  const auto got = attention(p.q.cuda(), p.k.cuda(), p.v.cuda(), causal());
  EXPECT_TRUE(torch::allclose(got.output.cpu(), want.output, 1e-4, 1e-4));
  EXPECT_TRUE(torch::allclose(got.lse.cpu(), want.lse, 1e-4, 1e-4));
}

}  // namespace
}  // namespace attzoo::testing
