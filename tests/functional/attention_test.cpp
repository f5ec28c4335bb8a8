#include <gtest/gtest.h>
#include <torch/cuda.h>
#include <attzoo/core/attention/chunked.hpp>
#include <attzoo/core/attention/dispatch.hpp>
#include <attzoo/core/cpu/fused.hpp>
#include <attzoo/core/recurrence/recur.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/functional/modifiers.hpp>
#include <attzoo/functional/sdpa.hpp>

#include <c10/core/InferenceMode.h>

#include <cmath>

#include "support/error_rule.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"
#include "support/peak_memory.hpp"

namespace outside {
using namespace attzoo;  // NOLINT: as users write it

/// ATen has a function of this name, which argument-dependent lookup would find.
inline torch::Tensor call_by_its_plain_name(const torch::Tensor& x) {
  return scaled_dot_product_attention(x, x, x, {.temperature = 2}).output +
         attention(x, x, x, causal()).output;
}
}  // namespace outside

namespace attzoo::testing::attention_test {
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
          const auto got =
              attention(p.q, p.k, p.v, is_causal ? core::AnyMask(causal()) : core::AnyMask());
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
  // Rows, columns, heads and batches are dropped independently of each other.
  const auto dropped = (w == 0).to(torch::kFloat64) - 0.25;
  for (int64_t d = 0; d < 4; ++d) {
    const auto other = dropped.roll(1, d);
    EXPECT_NEAR((dropped * other).mean().item<double>(), 0, 0.01) << d;
  }
}

/// 1 is in the range: all are dropped, and nothing is divided by what was kept.
TEST(Attention, DropoutOfEverythingIsZero) {
  for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    for (const int64_t length : {2, 40}) {
      const auto leaf = [&](int64_t n) {
        return torch::randn({1, 2, n, 8}).to(dtype).requires_grad_();
      };
      const auto q = leaf(length), k = leaf(50), v = leaf(50);
      const auto run = [&] {
        const auto r = attention(q, k, v, causal(), softcap(3), {.dropout = 1.0});
        const auto first = torch::autograd::grad({r.output.sum() + r.weights.tensor().sum()},
                                                 {q, k, v}, {}, true, /*create_graph=*/true);
        auto all = torch::autograd::grad({first[0].sum() + first[1].sum() + first[2].sum()},
                                         {q, k, v}, {}, true, false, /*allow_unused=*/true);
        all.insert(all.end(), first.begin(), first.end());
        all.insert(all.end(), {r.output, r.weights});
        const auto plain = torch::autograd::grad(
            {attention(q, k, v, causal(), softcap(3), {.dropout = 1.0}).output.sum()}, {q, k, v});
        all.insert(all.end(), plain.begin(), plain.end());
        for (const auto& t : all) {
          EXPECT_TRUE(!t.defined() || (t == 0).all().item<bool>()) << dtype << " " << length;
        }
      };
      run();
      const EagerReferenceGuard eager;
      run();
    }
  }
}

TEST(Attention, OptionsBesideAMaskOrAScoreAlone) {
  const auto q = torch::randn({1, 2, 9, 4}, torch::kFloat64);
  const AttentionOptions options{.scale = 0.7};
  const core::AnyMask any = causal();
  const auto want = attention(q, q, q, causal(), {}, options).output;
  EXPECT_TRUE(torch::equal(attention(q, q, q, causal(), options).output, want));
  EXPECT_TRUE(torch::equal(attention(q, q, q, any, options).output, want));
  EXPECT_TRUE(torch::equal(attention(q, q, q, any, {.scale = 0.7}).output, want));
  EXPECT_TRUE(torch::equal(attention(q, q, q, softcap(2.0), options).output,
                           attention(q, q, q, {}, softcap(2.0), options).output));
  EXPECT_TRUE(torch::equal(attention(q, q, q, causal(), {}).output,
                           attention(q, q, q, any, core::AnyScore()).output));
  EXPECT_TRUE(torch::equal(attention(q, q, q, {.scale = 0.7}).output,
                           attention(q, q, q, full(), {}, options).output));
  EXPECT_TRUE(torch::equal(attention(q, q, q, {}).output, attention(q, q, q).output));
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

/// The backward pass subtracts what it reads from the output, whose rounding to 16 bits would weigh
/// as much as the gradient where few weights are kept and enlarged.
TEST(Attention, DropoutGradientsAreThoseOfAnOutputThatIsNotRounded) {
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    for (uint64_t seed = 0; seed < 40; ++seed) {
      torch::manual_seed(seed);
      const auto numbers = [&](int64_t heads, int64_t n, int64_t features) {
        return torch::randn({2, heads, n, features}).to(dtype);
      };
      const auto q = numbers(2, 7, 1), k = numbers(1, 2, 1), v = numbers(1, 2, 14),
                 from = numbers(2, 7, 14);
      const auto grad = [&](torch::ScalarType in) {
        const auto x = q.detach().to(in, false, /*copy=*/true).requires_grad_();
        const auto r = attention(x, k.to(in), v.to(in), full(), {}, {.dropout = 0.9, .seed = seed});
        EXPECT_EQ(r.output.scalar_type(), in);
        EXPECT_EQ(r.weights.tensor().scalar_type(), in);
        return torch::autograd::grad({r.output}, {x}, {from.to(in)})[0];
      };
      const auto got = grad(dtype);
      const EagerReferenceGuard eager;
      expect_within_rule(got, grad(torch::kFloat64), grad(dtype), 3, 7 + 2 + 14,
                         c10::str(dtype, ", seed ", seed));
    }
  }
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

TEST(Attention, BatchesOfOneBroadcast) {
  const auto p = random_problem(3, 4, 2, 5, 6, 8, 7);
  const auto slopes = torch::tensor({0.1, 0.2, 0.3, 0.4}, torch::kFloat64);
  for (int which = 1; which < 7; ++which) {  // q, k and v, each of batch 1 or 3
    std::vector<torch::Tensor> given, copies;
    const torch::Tensor* all[] = {&p.q, &p.k, &p.v};
    for (int i = 0; i < 3; ++i) {
      const auto t = which >> i & 1 ? all[i]->slice(0, 0, 1) : *all[i];
      given.push_back(t.clone().requires_grad_());
      copies.push_back(t.clone().requires_grad_());
    }
    const auto repeated = [&](size_t i) {
      return copies[i].size(0) == 3 ? copies[i] : copies[i].repeat({3, 1, 1, 1});
    };
    const auto got = attention(given[0], given[1], given[2], causal(), alibi(slopes));
    const auto want = attention(repeated(0), repeated(1), repeated(2), causal(), alibi(slopes));
    EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-12, 1e-13)) << which;
    EXPECT_TRUE(torch::allclose(got.weights, want.weights, 1e-12, 1e-13)) << which;
    EXPECT_TRUE(torch::allclose(got.lse, want.lse, 1e-12, 1e-13)) << which;
    const auto g = torch::randn_like(want.output);
    const auto gradients = torch::autograd::grad({got.output}, given, {g});
    const auto expected = torch::autograd::grad({want.output}, copies, {g});
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(torch::allclose(gradients[i], expected[i], 1e-10, 1e-12)) << which << " " << i;
    }
  }
  const auto none = attention(p.q.slice(0, 3), p.k.slice(0, 0, 1), p.v.slice(0, 0, 1));
  EXPECT_EQ(none.output.sizes(), (std::vector<int64_t>{0, 4, 5, 7}));
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
  bad([](auto& x) { x.k = torch::cat({x.k, x.k}); }, {"attention", "batch", "[4, 2, 6, 8]"});
  bad([](auto& x) { x.k = x.k.slice(0, 2); }, {"attention", "batch", "[0, 2, 6, 8]"});
  bad([](auto& x) { x.q = x.q.slice(1, 1); }, {"attention", "heads", "[2, 3, 5, 8]"});
  bad([](auto& x) { x.k = x.k.slice(1, 2), x.v = x.v.slice(1, 2); }, {"attention", "heads"});
  bad([](auto& x) { x.v = x.v.slice(2, 1); }, {"attention", "v", "length"});
  bad([](auto& x) { x.k = x.k.slice(3, 1); }, {"attention", "last size", "[2, 2, 6, 7]"});
  bad([](auto& x) { x.q = x.q.slice(3, 8), x.k = x.k.slice(3, 8); }, {"attention", "last size"});
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

// ---- tensors that change in between -------------------------------------------------------------

void change(torch::Tensor t) {
  torch::NoGradGuard no_grad;
  if (t.scalar_type() == torch::kBool) {
    t.logical_not_();
  } else {
    t.mul_(3).add_(1);
  }
}

/// The ways that attention can take.
enum class Path { kFused, kChunked, kEager };

core::OutputAndLse run(Path path, const Problem& p, const core::AnyMask& mask,
                       const core::AnyScore& score) {
  if (path == Path::kChunked) {
    static const core::ChunkedBackend chunked(1);
    const core::Qkv t{p.q, p.k, p.v};
    return core::run(chunked, t, {mask, score.resolve(t.shape()), 0.5});
  }
  std::optional<EagerReferenceGuard> eager;
  if (path == Path::kEager) eager.emplace();
  const auto r = attention(p.q, p.k, p.v, mask, score, {.scale = 0.5});
  return {r.output, r.lse};
}

constexpr const char* kInPlace = "inplace operation";

/// Calls f after t was changed: it must give `want`, or an error that says what happened. Whether
/// there was one.
template <class F>
bool is_noticed(const torch::Tensor& t, const Tensors& want, F&& f, const std::string& what) {
  const auto before = t.detach().clone();
  change(t);
  bool noticed = false;
  try {
    const Tensors got = f();
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_TRUE(torch::allclose(got[i], want[i], 1e-10, 1e-12)) << what << ", result " << i;
    }
  } catch (const c10::Error& e) {
    noticed = true;
    EXPECT_NE(std::string(e.what()).find(kInPlace), std::string::npos) << e.what();
  }
  torch::NoGradGuard no_grad;
  t.detach().copy_(before);
  return noticed;
}

/// `make()` gives a pair of mask and score that hold t, or a `copy` of what t was.
template <class Make>
void expect_noticed(const std::string& what, const torch::Tensor& t, bool copy, Make&& make) {
  auto p = random_problem(2, 2, 1, 6, 6, 3, 3);
  const Tensors leaves{p.q.requires_grad_(), p.k.requires_grad_(), p.v.requires_grad_()};
  const auto cotangent = torch::randn({2, 2, 6, 3}, torch::kFloat64);
  for (const auto path : {Path::kFused, Path::kChunked, Path::kEager}) {
    const auto label = what + ", path " + std::to_string(static_cast<int>(path));
    const auto forward = [&] {
      const auto [mask, score] = make();
      return run(path, p, mask, score);
    };
    const auto gradient = [&](const core::OutputAndLse& r) {
      return torch::autograd::grad({(r.output * cotangent).sum()}, leaves);
    };
    const auto want = gradient(forward());
    const auto r = forward();
    const bool noticed = is_noticed(
        t, want, [&] { return gradient(r); }, label);
    if (path != Path::kEager) {
      EXPECT_EQ(noticed, !copy) << label;
    }
    // Differentiated again: the change comes after the first derivative, whose graph exists.
    const auto gradient_graph = [&] {
      return torch::autograd::grad({(forward().output * cotangent).sum()}, leaves, {}, true,
                                   /*create_graph=*/true);
    };
    const auto second = [&](const Tensors& g) {
      return torch::autograd::grad({g[0].square().sum() + g[1].sin().sum()}, leaves);
    };
    const auto want_second = second(gradient_graph());
    const auto first = gradient_graph();
    is_noticed(
        t, want_second, [&] { return second(first); }, label + ", second derivative");
  }
  // Weights that are read too late.
  const auto result = [&] {
    const auto [mask, score] = make();
    return attention(p.q, p.k, p.v, mask, score);
  };
  const Tensors want{result().weights};
  const auto r = result();
  const auto weights = [&] { return Tensors{r.weights}; };
  EXPECT_EQ(is_noticed(t, want, weights, what + ", weights"), !copy) << what;
}

TEST(Attention, NoticesChangesInPlace) {
  torch::manual_seed(9);
  const auto flags = torch::rand({6, 6}) < 0.7;
  const auto keys = torch::tensor({1, 0, 0, 1, 0, 0}).to(torch::kBool);
  const auto numbers = torch::tensor({1, 0, 0, 1, 0, 0});
  const auto offsets = torch::tensor({0, 2, 6});
  const auto bias = torch::randn({6, 6}, torch::kFloat64);
  const auto slopes = torch::rand({2}, torch::kFloat64);
  const auto table = torch::randn({8, 2}, torch::kFloat64);
  const auto with = [](auto mask, auto score) { return std::pair{mask, score}; };
  const core::IdentityScore none;
  expect_noticed("mask_tensor", flags, false, [&] { return with(mask_tensor(flags), none); });
  expect_noticed("&&, ||, !", flags, false,
                 [&] { return with(causal() || (window(2, 1) && !mask_tensor(flags)), none); });
  expect_noticed("key padding", keys, false, [&] {
    return with(mask_tensor(keys.view({1, 1, 1, 6})), none);
  });
  expect_noticed("block_mask", flags, false,
                 [&] { return with(block_mask(mask_tensor(flags), 6, 6), none); });
  expect_noticed("global_tokens, bool", keys, false,
                 [&] { return with(window(1, 1) || global_tokens(keys), none); });
  expect_noticed("global_tokens, int", numbers, true,
                 [&] { return with(window(1, 1) || global_tokens(numbers), none); });
  expect_noticed("documents", offsets, true, [&] { return with(documents(offsets), none); });
  expect_noticed("bias_tensor", bias, false, [&] { return with(full(), bias_tensor(bias)); });
  expect_noticed("alibi", slopes, false,
                 [&] { return with(causal(), softcap(3.0) + alibi(slopes)); });
  expect_noticed("relative_bias", table, true,
                 [&] { return with(full(), relative_bias(table) + softcap(2.0)); });
}

TEST(Attention, SinkThatChangesInPlace) {
  auto p = random_problem(1, 2, 2, 5, 5, 3, 3);
  p.q.requires_grad_();
  const auto logits = torch::randn({2}, torch::kFloat64);
  const auto run_it = [&] { return attention(p.q, p.k, p.v, causal(), sink(logits)); };
  const auto gradient = [&](const AttentionResult& r) {
    return torch::autograd::grad({r.output.square().sum() + r.lse.sum()}, {p.q});
  };
  const auto want = gradient(run_it());
  const auto r = run_it();
  is_noticed(
      logits, want, [&] { return gradient(r); }, "sink");
  const auto again = run_it();
  is_noticed(
      logits, {torch::Tensor(run_it().weights)}, [&] { return Tensors{again.weights}; },
      "sink, weights");
}

TEST(Attention, WeightsOfTensorsThatChangedAreAnError) {
  const auto bias = torch::randn({5, 5}, torch::kFloat64);
  const auto check = [&](int which) {
    const auto p = random_problem(1, 2, 2, 5, 5, 3, 3);
    const auto r = attention(p.q, p.k, p.v, causal(), bias_tensor(bias));
    EXPECT_EQ(torch::Tensor(r.weights).sizes(), r.weights.sizes());
    change(which == 0 ? p.q : which == 1 ? p.k : which == 2 ? bias : p.v);
    if (which < 3) {
      expect_error([&] { r.weights.tensor(); }, {"LazyWeights", kInPlace});
    } else {
      EXPECT_NO_THROW(r.weights.tensor());  // v is not read
    }
  };
  for (int which = 0; which < 4; ++which) check(which);
  {
    c10::InferenceMode inference;
    for (int which = 0; which < 4; ++which) check(which);
    const auto x = torch::randn({1, 1, 4, 4}), v = torch::full({1, 1, 4, 4}, NAN);
    const auto r = attention(x, x.slice(2, 0, 1).expand({1, 1, 4, 4}), v);
    EXPECT_TRUE(torch::Tensor(r.weights).isfinite().all().item<bool>());
    change(x);
    expect_error([&] { r.weights.tensor(); }, {"LazyWeights", kInPlace});
  }
  const auto p = random_problem(1, 2, 2, 5, 5, 3, 3);
  const auto r = scaled_dot_product_attention(p.q, p.k, p.v);
  change(p.k);
  expect_error([&] { r.weights.tensor(); }, {"LazyWeights", kInPlace});
}

/// Guarding the weights of inference tensors costs a copy of q and k, unless they are private.
TEST(Attention, PrivateQueriesAndKeysAreNotCopied) {
  c10::InferenceMode inference;
  const auto x = torch::randn({1, 1, 4096, 16});
  const auto bytes = [&](bool private_qk) {
    PeakMemory memory;
    core::attention(x, x.clone(), x, window(8, 8), {}, {}, private_qk);
    return memory.total();
  };
  EXPECT_EQ(bytes(false) - bytes(true), static_cast<int64_t>(2 * x.nbytes()));
}

TEST(Attention, MasksThatAreInferenceTensors) {
  torch::Tensor flags;
  {
    c10::InferenceMode inference;
    flags = torch::rand({6, 6}) < 0.7;
  }
  auto p = random_problem(1, 2, 2, 6, 6, 3, 3);
  p.q.requires_grad_();
  const auto gradient = [&](const AttentionResult& r) {
    return torch::autograd::grad({r.output.square().sum()}, {p.q});
  };
  const auto r = attention(p.q, p.k, p.v, mask_tensor(flags));
  const auto want = gradient(attention(p.q, p.k, p.v, mask_tensor(flags.clone())));
  EXPECT_TRUE(torch::allclose(gradient(r)[0], want[0], 1e-10, 1e-12));
  const auto late = attention(p.q, p.k, p.v, mask_tensor(flags));
  {
    c10::InferenceMode inference;
    flags.logical_not_();
  }
  expect_error([&] { gradient(late); }, {"attention", kInPlace});
}

TEST(Attention, BlockMaskOfATensorThatChanged) {
  const auto flags = torch::rand({70, 70}) < 0.5;
  const auto mask = block_mask(mask_tensor(flags), 70, 70);
  const auto q = torch::randn({1, 1, 70, 4});
  attention(q, q, q, mask);
  flags.fill_(true);
  expect_error([&] { attention(q, q, q, mask); }, {"block_mask", kInPlace});
}

// ---- signs that are pending ---------------------------------------------------------------------

/// The same numbers as the imaginary part of a conjugate: memory holds them with the other sign.
torch::Tensor negated_view(const torch::Tensor& t) {
  const auto view = torch::imag(torch::complex(torch::zeros_like(t), -t).conj());
  EXPECT_TRUE(view.is_neg());
  return view;
}

TEST(Attention, ReadsNegatedViews) {
  torch::manual_seed(10);
  for (const auto dtype : {torch::kFloat32, torch::kFloat64}) {
    const auto p = random_problem(1, 2, 1, 9, 9, 4, 5, dtype);
    const auto bias = torch::randn({9, 9}, dtype), slopes = torch::rand({2}, dtype);
    const auto g = torch::randn({1, 2, 9, 5}, dtype), gl = torch::randn({1, 2, 9}, dtype);
    for (const auto path : {Path::kFused, Path::kChunked, Path::kEager}) {
      const auto results = [&](auto view) {
        const auto leaf = [&](const torch::Tensor& t) { return view(t).detach().requires_grad_(); };
        const Problem x{leaf(p.q), leaf(p.k), leaf(p.v)};
        const auto b = leaf(bias), s = leaf(slopes);
        const auto r = run(path, x, causal(), alibi(s) + bias_tensor(b));
        auto all =
            torch::autograd::grad({r.output, r.lse}, {x.q, x.k, x.v, b, s}, {view(g), view(gl)});
        all.insert(all.end(), {r.output, r.lse});
        return all;
      };
      const auto want = results([](const torch::Tensor& t) { return t.clone(); });
      const auto got = results(negated_view);
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_TRUE(torch::equal(got[i], want[i])) << "result " << i;
      }
    }
    const auto weights = attention(negated_view(p.q), negated_view(p.k), p.v).weights;
    EXPECT_TRUE(torch::equal(weights, attention(p.q, p.k, p.v).weights));
  }
}

TEST(Attention, LinearScanReadsNegatedViews) {
  const auto p = random_problem(1, 2, 2, 70, 70, 4, 5);
  const auto results = [&](auto view) {
    const auto leaf = [&](const torch::Tensor& t) { return view(t).detach().requires_grad_(); };
    const auto q = leaf(p.q), k = leaf(p.k), v = leaf(p.v);
    const auto out = core::recur({q, k, v}).out;
    auto all = torch::autograd::grad({out}, {q, k, v}, {view(p.v)});
    all.push_back(out);
    return all;
  };
  const auto want = results([](const torch::Tensor& t) { return t.clone(); });
  const auto got = results(negated_view);
  for (size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(torch::equal(got[i], want[i])) << i;
}

TEST(Attention, GradientsThatAreZeroOrSparse) {
  auto p = random_problem(1, 1, 1, 5, 5, 3, 3);
  for (auto* t : {&p.q, &p.k, &p.v}) t->requires_grad_();
  const auto gradient = [&](const torch::Tensor& g) {
    return torch::autograd::grad({attention(p.q, p.k, p.v).output}, {p.q, p.k, p.v}, {g});
  };
  for (const auto& g : gradient(torch::_efficientzerotensor({1, 1, 5, 3}, torch::kFloat64))) {
    EXPECT_TRUE((g == 0).all().item<bool>());
  }
  auto few = torch::zeros({1, 1, 5, 3}, torch::kFloat64);
  few[0][0][2][1] = 2.0;
  const auto want = gradient(few), got = gradient(few.to_sparse());
  for (size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(torch::equal(got[i], want[i])) << i;
}

TEST(Attention, GradientsOfLseAlone) {
  torch::manual_seed(13);
  auto p = random_problem(1, 4, 2, 5, 6, 3, 3);
  auto slopes = torch::rand({4}, torch::kFloat64), bias = torch::randn({5, 6}, torch::kFloat64);
  const Tensors leaves{p.q.requires_grad_(), p.k.requires_grad_(), p.v.requires_grad_(),
                       slopes.requires_grad_(), bias.requires_grad_()};
  for (const auto path : {Path::kFused, Path::kChunked}) {
    const auto f = [&] {
      return run(path, p, causal(), alibi(slopes) + bias_tensor(bias)).lse.sin().sum();
    };
    gradcheck(f, leaves, "lse");
    gradgradcheck(f, {p.q, p.k, slopes, bias}, "lse");
  }
  const auto with_sink = [&] { return attention(p.q, p.k, p.v, sink(slopes)).lse.sin().sum(); };
  gradcheck(with_sink, {p.q, p.k, slopes}, "lse with a sink");
}

/// Who learns is decided when attention() is called.
TEST(Attention, GradientsWantedOrNotLater) {
  auto p = random_problem(1, 2, 2, 5, 5, 3, 3);
  p.q.requires_grad_();
  for (const auto path : {Path::kFused, Path::kChunked}) {
    const auto first = torch::rand({2}, torch::kFloat64),
               second = torch::randn({5, 5}, first.dtype());
    const auto r = [&] {
      return run(path, p, causal(), alibi(first) + softcap(2.0) + bias_tensor(second));
    };
    second.requires_grad_();
    const auto want = torch::autograd::grad({r().output.square().sum()}, {p.q, second});
    const auto late = r();
    first.requires_grad_();
    const auto got = torch::autograd::grad({late.output.square().sum()}, {p.q, second});
    EXPECT_TRUE(torch::equal(got[0], want[0]));
    EXPECT_TRUE(torch::equal(got[1], want[1]));
  }
}

// ---- rows without keys, and numbers at the end of the range -------------------------------------

/// A row without keys takes no part in the backward pass, whatever its cotangent is.
TEST(Attention, CotangentsOfEmptyRowsGoNowhere) {
  torch::manual_seed(11);
  const auto p = random_problem(2, 2, 1, 8, 8, 3, 3);
  auto allowed = torch::rand({8, 8}) < 0.8;
  allowed[0][0] = true;
  allowed[3] = false;
  const auto minus_infinity =
      torch::zeros({8, 8}, torch::kFloat64).masked_fill(allowed.logical_not(), -kInf);
  const auto g = torch::randn({2, 2, 8, 3}, torch::kFloat64);
  const auto gl = torch::randn({2, 2, 8}, torch::kFloat64);
  for (const auto path : {Path::kFused, Path::kChunked, Path::kEager}) {
    for (const bool by_bias : {false, true}) {
      const auto gradients = [&](double cotangent) {
        const auto leaf = [](const torch::Tensor& t) { return t.clone().requires_grad_(); };
        const Problem x{leaf(p.q), leaf(p.k), leaf(p.v)};
        const auto slopes = leaf(torch::ones({2}, torch::kFloat64));
        auto grad = g.clone(), grad_lse = gl.clone();
        grad.select(2, 3).fill_(cotangent);
        grad_lse.select(2, 3).fill_(cotangent);
        const auto r = by_bias ? run(path, x, full(), alibi(slopes) + bias_tensor(minus_infinity))
                               : run(path, x, mask_tensor(allowed), alibi(slopes));
        return torch::autograd::grad({r.output, r.lse}, {x.q, x.k, x.v, slopes}, {grad, grad_lse});
      };
      const auto want = gradients(0);
      for (const double cotangent : {std::nan(""), kInf, 1e308}) {
        const auto got = gradients(cotangent);
        for (size_t i = 0; i < want.size(); ++i) {
          EXPECT_TRUE(torch::equal(got[i], want[i]))
              << "gradient " << i << ", path " << static_cast<int>(path) << ", bias " << by_bias
              << ", cotangent " << cotangent;
        }
      }
    }
  }
}

TEST(Attention, CotangentsOfEmptyRowsOfWeightsGoNowhere) {
  auto p = random_problem(1, 1, 1, 4, 4, 3, 3);
  p.q.requires_grad_();
  auto bias = torch::zeros({4, 4}, torch::kFloat64);
  bias[1] = -kInf;
  const torch::Tensor w = attention(p.q, p.k, p.v, full(), bias_tensor(bias)).weights;
  auto cotangent = torch::randn({1, 1, 4, 4}, torch::kFloat64);
  cotangent.select(2, 1).fill_(NAN);
  EXPECT_TRUE(torch::autograd::grad({w}, {p.q}, {cotangent})[0].isfinite().all().item<bool>());
}

TEST(Attention, SinkOfMinusInfinityIsNoSink) {
  torch::manual_seed(12);
  for (const auto dtype : {torch::kFloat32, torch::kFloat64}) {
    auto p = random_problem(1, 2, 2, 4, 6, 3, 3, dtype);
    auto allowed = torch::ones({4, 6}, torch::kBool).tril(2);
    allowed[1] = false;
    const auto logits = torch::tensor({-kInf, 0.5}, dtype).requires_grad_();
    const Tensors leaves{p.q.requires_grad_(), p.k.requires_grad_(), p.v.requires_grad_(), logits};
    const auto r = attention(p.q, p.k, p.v, mask_tensor(allowed), sink(logits));
    const auto plain = attention(p.q, p.k, p.v, mask_tensor(allowed));
    EXPECT_TRUE(torch::allclose(r.output.select(1, 0), plain.output.select(1, 0)));
    EXPECT_TRUE(torch::equal(r.lse.select(1, 0), plain.lse.select(1, 0)));
    EXPECT_TRUE(torch::allclose(torch::Tensor(r.weights).select(1, 0),
                                torch::Tensor(plain.weights).select(1, 0)));
    EXPECT_TRUE((r.output.select(2, 1) == 0).all().item<bool>());
    EXPECT_EQ(r.lse[0][0][1].item<double>(), -kInf);
    EXPECT_EQ(r.lse[0][1][1].item<double>(), 0.5);  // the sink alone
    const auto sum = r.output.sin().sum() + r.lse.masked_fill(r.lse.isinf(), 0).sum() +
                     torch::Tensor(r.weights).square().sum();
    const auto grads = torch::autograd::grad({sum}, leaves, {}, true, true);
    for (const auto& g : grads) EXPECT_TRUE(g.isfinite().all().item<bool>()) << g;
    EXPECT_EQ(grads[3][0].item<double>(), 0);
    // The cotangent of the empty row's output, NaN, reaches no sink.
    auto cotangent = torch::ones_like(r.output);
    cotangent.select(2, 1).fill_(NAN);
    const auto g = torch::autograd::grad({r.output}, {logits}, {cotangent});
    EXPECT_TRUE(g[0].isfinite().all().item<bool>());
  }
}

TEST(Attention, SinkGradientsBesideEmptyRows) {
  auto p = random_problem(1, 2, 2, 4, 6, 3, 3);
  auto allowed = torch::ones({4, 6}, torch::kBool);
  allowed[1] = false;
  const auto logits = torch::tensor({0.25, 0.5}, torch::kFloat64).requires_grad_();
  p.q.requires_grad_();
  const auto f = [&] {
    const auto r = attention(p.q, p.k, p.v, mask_tensor(allowed), sink(logits));
    return r.output.sin().sum() + r.lse.sin().sum();
  };
  gradcheck(f, {p.q, logits}, "sink");
  gradgradcheck(f, {p.q, logits}, "sink");
}

TEST(Attention, CapsAndScalesBeyondTheRange) {
  for (const double cap : {0.0, -1.0, 1e39, 1e300, 1e-39, kInf, std::nan("")}) {
    expect_error([&] { softcap(cap); }, {"softcap", "cap"});
  }
  const auto p = random_problem(1, 2, 2, 5, 5, 4, 4, torch::kFloat32);
  const auto want = attention(p.q, p.k, p.v).output;
  EXPECT_TRUE(torch::allclose(attention(p.q, p.k, p.v, softcap(1e30)).output, want, 1e-5, 1e-6));
  const auto flat = attention(p.q, p.k, p.v, softcap(1e-30)).output;
  EXPECT_TRUE(torch::allclose(flat, p.v.mean(2, true).expand({1, 2, 5, 4}), 1e-5, 1e-6));
  for (const double scale : {1e31, -1e39, 1e300, kInf, std::nan("")}) {
    expect_error([&] { attention(p.q, p.k, p.v, full(), {}, {.scale = scale}); },
                 {"attention", "scale", "1e30"});
  }
  for (const double temperature : {1e-300, 1e-40, 5e-324, 0.0, -1.0, kInf, std::nan("")}) {
    expect_error([&] { scaled_dot_product_attention(p.q, p.k, p.v, {.temperature = temperature}); },
                 {"scaled_dot_product_attention", "temperature"});
  }
  // Where float32 ends, float64 goes on: one key takes all.
  const Problem wide{p.q.to(torch::kFloat64), p.k.to(torch::kFloat64), p.v.to(torch::kFloat64)};
  const auto best = torch::matmul(wide.q, wide.k.transpose(-2, -1)).argmax(-1);
  const auto chosen = wide.v.gather(2, best.unsqueeze(-1).expand({1, 2, 5, 4}));
  EXPECT_TRUE(torch::allclose(
      scaled_dot_product_attention(wide.q, wide.k, wide.v, {.temperature = 1e-290}).output,
      chosen));
  EXPECT_TRUE(
      torch::allclose(scaled_dot_product_attention(p.q, p.k, p.v, {.temperature = 1e-28}).output,
                      chosen.to(torch::kFloat32)));
  EXPECT_TRUE(
      torch::allclose(scaled_dot_product_attention(p.q, p.k, p.v, {.temperature = 1e300}).output,
                      p.v.mean(2, true).expand({1, 2, 5, 4}), 1e-5, 1e-6));
}

TEST(Attention, InfiniteBiasesAndSlopesAsTheReference) {
  const auto p = random_problem(1, 4, 4, 6, 6, 3, 3);
  const auto slopes = torch::tensor({kInf, -kInf, std::nan(""), 0.0}, torch::kFloat64);
  auto table = torch::randn({8, 4}, torch::kFloat64);
  table[0][0] = -kInf;
  table[1][1] = kInf;
  table[2][2] = NAN;
  const auto expect_same = [&](const auto& score) {
    const auto got = run(Path::kFused, p, causal(), score);
    const auto want = run(Path::kEager, p, causal(), score);
    EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-10, 1e-12, /*equal_nan=*/true));
    EXPECT_TRUE(torch::allclose(got.lse, want.lse, 1e-10, 1e-12, /*equal_nan=*/true));
    EXPECT_TRUE(got.output[0][3].isfinite().all().template item<bool>());
  };
  expect_same(alibi(slopes));
  expect_same(relative_bias(table));
}

// ---- errors -------------------------------------------------------------------------------------

TEST(LazyWeights, Errors) {
  const auto x = torch::randn({1, 2, 5, 4});
  const auto w = attention(x, x, x).weights;
  EXPECT_EQ(w.size(-4), 1);
  EXPECT_EQ(w.size(3), 5);
  expect_error([&] { w.size(9); }, {"LazyWeights::size", "[-4, 3]", "9"});
  expect_error([&] { w.size(-5); }, {"LazyWeights::size", "-5"});
  expect_error([&] { w.without_heads(); }, {"LazyWeights::without_heads", "[1, 2, 5, 5]"});
  expect_error([&] { w.rows(-1, 2); }, {"LazyWeights::rows", "begin=-1"});
  expect_error([] { LazyWeights({3}, [](int64_t, int64_t) { return torch::Tensor(); }); },
               {"LazyWeights", "[3]"});
  const LazyWeights empty;
  EXPECT_FALSE(empty.defined());
  const std::vector<std::string> nothing{"LazyWeights", "no weights"};
  expect_error([&] { empty.sizes(); }, nothing);
  expect_error([&] { empty.size(0); }, nothing);
  expect_error([&] { empty.dim(); }, nothing);
  expect_error([&] { empty.rows(0, 0); }, nothing);
  expect_error([&] { empty.tensor(); }, nothing);
  expect_error([&] { torch::Tensor t = empty; }, nothing);
  expect_error([&] { empty.head_mean(); }, nothing);
  expect_error([&] { empty.without_heads(); }, nothing);
}

TEST(Attention, TensorsOfOtherKindsAreErrors) {
  const auto x = torch::randn({1, 2, 5, 4});
  const auto meta = torch::empty({1, 2, 5, 4}, torch::device(torch::kMeta));
  const auto nested = torch::_nested_tensor_from_tensor_list({x[0], x[0]});
  const std::pair<torch::Tensor, const char*> kinds[] = {
      {x.to_sparse(), "Sparse"},
      {meta, "meta"},
      {nested, "nested"},
      {torch::quantize_per_tensor(x, 0.1, 0, torch::kQInt8), "QInt8"},
      {torch::complex(x, x), "Complex"},
      {torch::Tensor(), "undefined"}};
  for (const auto& [bad, kind] : kinds) {
    const auto& t = bad;  // C++20 before clang 16 captures no structured bindings
    const std::string name = kind;
    expect_error([&] { attention(t, x, x); }, {"attention: q", name});
    expect_error([&] { attention(x, t, x); }, {"attention: k", name});
    expect_error([&] { attention(x, x, t); }, {"attention: v", name});
    const std::string sdpa = "scaled_dot_product_attention: ";
    expect_error([&] { scaled_dot_product_attention(t, x, x); }, {sdpa + "q", name});
    expect_error([&] { scaled_dot_product_attention(x, t, x); }, {sdpa + "k", name});
    expect_error([&] { scaled_dot_product_attention(x, x, t); }, {sdpa + "v", name});
    if (t.defined()) {
      expect_error([&] { scaled_dot_product_attention(x, x, x, {.mask = t}); },
                   {sdpa + "mask", name});
    }
    expect_error([&] { mask_tensor(t); }, {"mask_tensor"});
    expect_error([&] { bias_tensor(t); }, {"bias_tensor: bias", name});
    expect_error([&] { alibi(t); }, {"alibi: slopes", name});
    expect_error([&] { sink(t); }, {"sink: logits", name});
    expect_error([&] { relative_bias(t); }, {"relative_bias: table", name});
  }
  const auto flags = torch::ones({5, 5}, torch::kBool);
  expect_error([&] { mask_tensor(flags.to_sparse()); }, {"mask_tensor: mask", "Sparse"});
  expect_error([&] { mask_tensor(flags.to(torch::kMeta)); }, {"mask_tensor: mask", "meta"});
  expect_error([&] { global_tokens(flags[0].to_sparse()); }, {"global_tokens: is_global"});
  expect_error([&] { global_tokens(flags[0].to(torch::kMeta)); }, {"global_tokens: is_global"});
}

TEST(Attention, ScaledDotProductErrorsNameIt) {
  const auto p = random_problem(2, 2, 2, 5, 6, 4, 3, torch::kFloat32);
  const auto check = [&](auto change_it, const std::vector<std::string>& parts) {
    Problem x = p;
    ScaledDotProductOptions options;
    change_it(x, options);
    auto all = parts;
    all.push_back("scaled_dot_product_attention: ");
    expect_error([&] { attzoo::scaled_dot_product_attention(x.q, x.k, x.v, options); }, all);
  };
  check([](auto& x, auto&) { x.q = x.q[0][0][0]; }, {"rank", "[4]"});
  check([](auto& x, auto&) { x.k = x.k.to(torch::kFloat64); }, {"k", "dtype", "Double"});
  check([](auto& x, auto&) { x.k = x.k.slice(-1, 1); }, {"last size", "[2, 2, 6, 3]"});
  check([](auto& x, auto&) { x.q = x.q.slice(-1, 4), x.k = x.k.slice(-1, 4); }, {"last size"});
  check([](auto& x, auto&) { x.v = x.v.slice(-2, 1); }, {"v", "length", "[2, 2, 5, 3]"});
  check([](auto&, auto& o) { o.dropout = 1.5; }, {"dropout", "1.5"});
  check([](auto&, auto& o) { o.dropout = NAN; }, {"dropout", "nan"});
  check(
      [](auto&, auto& o) {
        o.mask = torch::ones({5, 6}).to(torch::kComplexFloat);
      },
      {"mask", "Complex"});
  const int64_t many = int64_t{1} << 31;
  check(
      [&](auto& x, auto&) {
        x.q = x.q[0][0].expand({many, 1, 5, 4}), x.k = x.k[0][0].expand({1, many, 6, 4});
        x.v = x.v[0][0];
      },
      {"too many"});
}

TEST(Attention, SizesBeyondTheKernelsIndices) {
  const auto one = torch::ones({1, 1, 1, 1});
  const auto fits = [&](int64_t B, int64_t H, int64_t L, int64_t S, int64_t D, int64_t Dv) {
    return core::FusedCpuBackend().takes(
        {one.expand({B, H, L, D}), one.expand({B, 1, S, D}), one.expand({B, 1, S, Dv})},
        core::Call({}));
  };
  const int64_t big = int64_t{1} << 31;
  EXPECT_TRUE(fits(2, 3, 4, 5, 6, 7));
  EXPECT_FALSE(fits(big, 1, 1, 1, 1, 1));
  EXPECT_FALSE(fits(1 << 16, 1 << 16, 1, 1, 1, 1));
  EXPECT_FALSE(fits(1, 1, big, 1, 1, 1));
  EXPECT_FALSE(fits(1, 1, 1, big, 1, 1));
  EXPECT_FALSE(fits(1, 1, 1, 1, big, 1));
  EXPECT_FALSE(fits(1, 1, 1, 1, 1, big));
  const auto wide = torch::randn({1, 1, 3, 1 << 17});  // another path takes it
  const auto s = torch::matmul(wide, wide.transpose(-2, -1)) / std::sqrt(1 << 17);
  EXPECT_TRUE(torch::allclose(attention(wide, wide, wide).output,
                              torch::matmul(s.softmax(-1), wide), 1e-4, 1e-4));
  expect_error(
      [&] {
        attention(one.expand({1 << 20, 1 << 20, 1 << 10, 1}), one.expand({1 << 20, 1, 1, 1}),
                  one.expand({1 << 20, 1, 1, 1 << 20}));
      },
      {"attention", "output", "too many"});
  expect_error([&] { block_mask(causal(), 1 << 30, 1 << 30); }, {"block_mask", "2^28"});
  for (const int64_t n : {int64_t{1} << 31, int64_t{1} << 40, int64_t{1} << 62}) {
    expect_error([&] { block_mask(causal(), n, 1); }, {"block_mask", "L="});
    expect_error([&] { block_mask(causal(), 1, n); }, {"block_mask", "S="});
    expect_error([&] { block_mask(causal(), 1, 1, n); }, {"block_mask", "batch="});
    expect_error([&] { block_mask(causal(), 1, 1, 1, n); }, {"block_mask", "heads="});
    expect_error([&] { block_mask(causal(), n, n, n, n); }, {"block_mask"});
  }
}

TEST(Attention, ScoresThatIgnoreTheProduct) {
  auto p = random_problem(1, 1, 1, 6, 6, 3, 3);
  for (auto* t : {&p.q, &p.k, &p.v}) t->requires_grad_();
  const auto score = score_mod([](auto, auto, auto, auto q, auto kv) { return 0.1 * (q - kv); });
  for (const auto path : {Path::kFused, Path::kChunked, Path::kEager}) {
    const auto r = run(path, p, causal(), score);
    const auto g =
        torch::autograd::grad({r.output.square().sum()}, {p.q, p.v}, {}, {}, false, true);
    EXPECT_TRUE(!g[0].defined() || (g[0] == 0).all().item<bool>());
    EXPECT_TRUE(g[1].abs().sum().item<double>() > 0);
  }
}

TEST(Attention, ScaledDotProductByItsPlainName) {
  const auto x = torch::randn({1, 2, 5, 4});
  EXPECT_TRUE(torch::equal(outside::call_by_its_plain_name(x),
                           scaled_dot_product_attention(x, x, x, {.temperature = 2}).output +
                               attention(x, x, x, causal()).output));
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
}  // namespace attzoo::testing::attention_test
