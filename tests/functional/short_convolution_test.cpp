// short_convolution(): against loops over its definition, ATen's conv1d, and itself in parts.

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/short_convolution.hpp>

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "support/bad_inputs.hpp"
#include "support/error_rule.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing::functional_short_convolution_test {
namespace {

struct Sizes {
  int64_t B = 2, n = 37, C = 21, K = 4;
  bool bias = true, silu = true, state = true, packed = false;

  std::string text() const {
    return c10::str("B=", B, " n=", n, " C=", C, " K=", K, bias ? " bias" : "", silu ? " silu" : "",
                    state ? " state" : "", packed ? " packed" : "");
  }
};

struct Problem {
  torch::Tensor x, weight;
  ShortConvolveOptions options = {};

  std::vector<torch::Tensor> tensors() const {
    std::vector<torch::Tensor> all{x, weight};
    if (options.bias.defined()) all.push_back(options.bias);
    if (options.initial_state.defined()) all.push_back(options.initial_state);
    return all;
  }
  template <class F>
  Problem apply(const F& f) const {
    Problem p = *this;
    for (auto* t : {&p.x, &p.weight, &p.options.bias, &p.options.initial_state}) {
      if (t->defined()) *t = f(*t);
    }
    return p;
  }
  Problem to(torch::ScalarType dtype) const {
    return apply([&](const torch::Tensor& t) { return t.to(dtype); });
  }
  ShortConvolutionResult run() const { return short_convolution(x, weight, options); }
  ShortConvolutionResult by_tensors() const {
    const EagerReferenceGuard guard;
    return run();
  }
};

Problem problem(const Sizes& s) {
  const auto random = [](std::vector<int64_t> sizes) {
    return torch::randn(sizes, torch::kFloat64);
  };
  Problem p{random({s.B, s.n, s.C}), random({s.C, s.K})};
  p.options.silu = s.silu;
  if (s.bias) p.options.bias = random({s.C});
  if (s.state) p.options.initial_state = random({s.B, s.K - 1, s.C});
  if (s.packed) {  // of 1 token and more, other ones in each row
    p.options.documents.ids = (torch::rand({s.B, s.n}) < 0.2).to(torch::kInt64).cumsum(1);
  }
  return p;
}

std::vector<Sizes> every_kind() {
  std::vector<Sizes> all;
  for (const int64_t K : {1, 2, 3, 4, 7}) {
    for (const int64_t n : {1, 2, 5, 37}) {
      const bool odd = (K + n) % 2 == 1;
      all.push_back({.n = n, .K = K, .bias = odd, .silu = !odd, .state = n != 2});
      all.push_back({.n = n, .K = K, .bias = !odd, .state = n != 5, .packed = true});
    }
  }
  return all;
}

/// The definition, number by number, of the output and the state.
ShortConvolutionResult by_loops(const Problem& p) {
  const int64_t B = p.x.size(0), n = p.x.size(1), C = p.x.size(2), K = p.weight.size(1);
  const auto& o = p.options;
  const auto ids = o.documents.ids;
  const auto document = [&](int64_t b, int64_t t) {  // of the tokens before: the first one's
    return ids.defined() ? ids[b][std::max<int64_t>(t, 0)].item<int64_t>() : 0;
  };
  const auto x = [&](int64_t b, int64_t t, int64_t c, int64_t of) {  // as `of` sees it
    if (document(b, t) != document(b, of)) return 0.0;
    if (t >= 0) return p.x[b][t][c].item<double>();
    return o.initial_state.defined() ? o.initial_state[b][t + K - 1][c].item<double>() : 0.0;
  };
  ShortConvolutionResult y{torch::empty({B, n, C}, torch::kFloat64),
                           torch::empty({B, K - 1, C}, torch::kFloat64)};
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t c = 0; c < C; ++c) {
      for (int64_t t = 0; t < n; ++t) {
        double sum = o.bias.defined() ? o.bias[c].item<double>() : 0.0;
        for (int64_t j = 0; j < K; ++j) {
          sum += p.weight[c][K - 1 - j].item<double>() * x(b, t - j, c, t);
        }
        y.output[b][t][c] = o.silu ? sum / (1 + std::exp(-sum)) : sum;
      }
      for (int64_t i = 0; i < K - 1; ++i) y.state[b][i][c] = x(b, n - (K - 1) + i, c, n - 1);
    }
  }
  return y;
}

TEST(ShortConvolution, IsItsDefinition) {
  torch::manual_seed(1);
  for (auto sizes : every_kind()) {
    sizes.C = 5;
    const auto p = problem(sizes);
    const auto gold = by_loops(p);
    for (const auto& y : {p.run(), p.by_tensors()}) {
      expect_within_rule(y.output, gold.output, gold.output, 2, sizes.K, sizes.text());
      EXPECT_TRUE(torch::equal(y.state, gold.state)) << sizes.text();
    }
  }
}

TEST(ShortConvolution, IsTorchsConv1d) {
  torch::manual_seed(2);
  for (const int64_t K : {1, 4}) {
    const auto p = problem({.K = K, .state = false});
    const auto want = torch::silu(torch::conv1d(p.x.transpose(1, 2), p.weight.unsqueeze(1),
                                                p.options.bias, 1, K - 1, 1, p.x.size(2))
                                      .slice(2, 0, p.x.size(1)))
                          .transpose(1, 2);
    expect_within_rule(p.run().output, want, want, 2, K, c10::str("K=", K));
  }
}

TEST(ShortConvolution, FollowsTheErrorRuleInEveryType) {
  torch::manual_seed(3);
  for (auto sizes : every_kind()) {
    for (const int64_t C : {1, 16, 21, 150}) {
      sizes.C = C;
      const auto p = problem(sizes);
      for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
        const auto x = p.to(dtype);
        const auto gold = x.to(torch::kFloat64).by_tensors(), reference = x.by_tensors();
        const auto got = x.run();
        expect_within_rule(got.output, gold.output, reference.output, 2, sizes.K,
                           c10::str(sizes.text(), " ", dtype));
        EXPECT_TRUE(torch::equal(got.state, reference.state));
      }
    }
  }
}

TEST(ShortConvolution, HasItsDefinitionsGradients) {
  torch::manual_seed(4);
  for (auto sizes : every_kind()) {
    if (sizes.n == 37) sizes.n = 300;
    sizes.C = sizes.K == 4 ? 1100 : 21;
    const auto leaves = problem(sizes);
    const auto of_output = torch::randn({sizes.B, sizes.n, sizes.C}, torch::kFloat64);
    const auto of_state = torch::randn({sizes.B, sizes.K - 1, sizes.C}, torch::kFloat64);
    for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
      const auto gradients = [&](torch::ScalarType type, bool tensors) {
        const auto p = leaves.to(dtype).to(type).apply(
            [](const torch::Tensor& t) { return t.detach().clone().requires_grad_(); });
        const auto y = tensors ? p.by_tensors() : p.run();
        return torch::autograd::grad({y.output, y.state}, p.tensors(),
                                     {of_output.to(dtype).to(type), of_state.to(dtype).to(type)},
                                     std::nullopt, false, /*allow_unused=*/true);
      };
      const auto got = gradients(dtype, false), reference = gradients(dtype, true),
                 gold = gradients(torch::kFloat64, true);
      for (size_t i = 0; i < got.size(); ++i) {
        if (!gold[i].defined()) continue;  // of a state of no tokens
        expect_within_rule(got[i], gold[i], reference[i], 3, sizes.B * sizes.n,
                           c10::str(sizes.text(), " ", dtype, ", gradient ", i));
      }
    }
  }
}

/// Sizes on both sides of those that the kernel works with at once, any strides and documents.
TEST(ShortConvolution, IsItsDefinitionOfAnySizes) {
  torch::manual_seed(11);
  const auto up_to = [](int64_t most) { return torch::randint(most, {1}).item<int64_t>(); };
  for (int i = 0; i < 60; ++i) {
    const Sizes sizes{.B = 1 + up_to(3),
                      .n = 1 + up_to(i % 4 == 0 ? 200 : 20),
                      .C = 1 + up_to(i % 4 == 1 ? 2200 : 70),
                      .K = i % 2 == 0 ? 4 : 1 + up_to(i % 5 == 0 ? 70 : 9),
                      .bias = up_to(2) == 0,
                      .silu = up_to(4) > 0,
                      .state = up_to(2) == 0,
                      .packed = up_to(2) == 0};
    const auto dtype = i % 3 == 0   ? torch::kFloat64
                       : i % 3 == 1 ? torch::kFloat32
                                    : torch::kBFloat16;
    const bool turned = up_to(2) == 0;
    const auto p = problem(sizes).to(dtype);
    const auto grad = torch::randn_like(p.x);
    const auto run = [&](torch::ScalarType type, bool tensors) {
      auto q = p.to(type).apply([&](const torch::Tensor& t) {
        const auto leaf = t.detach().clone();
        return (turned ? leaf.transpose(0, -1).contiguous().transpose(0, -1) : leaf)
            .requires_grad_();
      });
      const auto y = tensors ? q.by_tensors() : q.run();
      auto all = torch::autograd::grad({y.output}, q.tensors(), {grad.to(type)}, std::nullopt,
                                       false, /*allow_unused=*/true);
      all.push_back(y.output);
      return all;
    };
    const auto got = run(dtype, false), reference = run(dtype, true),
               gold = run(torch::kFloat64, true);
    for (size_t j = 0; j < got.size(); ++j) {
      if (!gold[j].defined()) continue;  // of a state of no tokens
      expect_within_rule(got[j], gold[j], reference[j], 3, sizes.B * sizes.n,
                         c10::str(sizes.text(), " ", dtype, turned ? " turned" : "", ", ", j));
    }
  }
}

TEST(ShortConvolution, HasRightDerivatives) {
  torch::manual_seed(5);
  for (const bool packed : {false, true}) {
    for (const int64_t n : {2, 6}) {
      const Sizes sizes{.n = n, .C = 3, .packed = packed};
      const auto p = problem(sizes).apply(
          [](const torch::Tensor& t) { return t.detach().clone().requires_grad_(); });
      const auto w = torch::randn_like(p.x), u = torch::randn_like(p.options.initial_state);
      const auto f = [&] {
        const auto y = p.run();
        return (y.output * w).sum() + (y.state * u).sum();
      };
      gradcheck(f, p.tensors(), sizes.text());
      gradgradcheck(f, p.tensors(), sizes.text());
    }
  }
}

TEST(ShortConvolution, GoesOnWhereItStopped) {
  torch::manual_seed(6);
  for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16}) {
    for (const auto& sizes : every_kind()) {
      if (sizes.packed) continue;
      const auto p = problem(sizes).to(dtype);
      const auto whole = p.run();
      for (const int64_t at : {int64_t{0}, int64_t{1}, sizes.n / 2, sizes.n}) {
        auto first = p, rest = p;
        first.x = p.x.slice(1, 0, at);
        rest.x = p.x.slice(1, at);
        const auto y = first.run();
        rest.options.initial_state = y.state;
        const auto z = rest.run();
        EXPECT_TRUE(torch::equal(torch::cat({y.output, z.output}, 1), whole.output))
            << sizes.text() << " at " << at;
        EXPECT_TRUE(torch::equal(z.state, whole.state)) << sizes.text() << " at " << at;
      }
    }
  }
}

/// Bits of the outputs before a token, and in other documents, do not depend on it.
TEST(ShortConvolution, SeesNothingElse) {
  torch::manual_seed(7);
  for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kHalf}) {
    auto p = problem({.n = 200, .C = 40}).to(dtype);
    const auto before = p.run().output;
    auto later = p;
    later.x = p.x.clone();
    later.x.slice(1, 100).fill_(std::numeric_limits<double>::quiet_NaN());
    EXPECT_TRUE(torch::equal(later.run().output.slice(1, 0, 100), before.slice(1, 0, 100)));

    p.options.documents.offsets = torch::tensor({0, 98, 99, 100, 150, 200});
    const auto packed = p.run();
    later = p;
    later.x = p.x.clone();
    later.x.slice(1, 98, 100).fill_(std::numeric_limits<double>::infinity());
    later.x.slice(1, 150).fill_(std::numeric_limits<double>::quiet_NaN());
    later.x.requires_grad_();
    const auto y = later.run();
    for (const auto& [begin, end] : {std::pair{0, 98}, {100, 150}}) {
      EXPECT_TRUE(torch::equal(y.output.slice(1, begin, end), packed.output.slice(1, begin, end)));
    }
    const auto dx = torch::autograd::grad({y.output.slice(1, 100, 150).sum()}, {later.x})[0];
    EXPECT_TRUE(torch::isfinite(dx.slice(1, 0, 98)).all().item<bool>());
    EXPECT_TRUE(torch::isfinite(dx.slice(1, 100, 150)).all().item<bool>());
  }
}

TEST(ShortConvolution, OfDocumentsIsThatOfEach) {
  torch::manual_seed(8);
  for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16}) {
    auto p = problem({.n = 300, .C = 40}).to(dtype);
    const std::vector<int64_t> ends{0, 2, 3, 130, 300};
    p.options.documents.offsets = torch::tensor(ends);
    const auto whole = p.run();
    for (size_t i = 0; i + 1 < ends.size(); ++i) {
      auto document = p;
      document.x = p.x.slice(1, ends[i], ends[i + 1]);
      document.options.documents = {};
      if (i > 0) document.options.initial_state = torch::Tensor();
      const auto y = document.run();
      EXPECT_TRUE(torch::equal(y.output, whole.output.slice(1, ends[i], ends[i + 1]))) << i;
      if (i + 2 == ends.size()) {
        EXPECT_TRUE(torch::equal(y.state, whole.state));
      }
    }
  }
}

TEST(ShortConvolution, DoesNotDependOnThreads) {
  torch::manual_seed(9);
  const int threads = at::get_num_threads();
  const auto p = problem({.B = 3, .n = 333, .C = 100, .packed = true})
                     .to(torch::kFloat32)
                     .apply([](const torch::Tensor& t) { return t.detach().requires_grad_(); });
  const auto weights = torch::randn_like(p.x);
  std::vector<torch::Tensor> first;
  for (const int count : {1, 2, 4}) {
    at::set_num_threads(count);
    const auto y = p.run().output;
    auto all = torch::autograd::grad({y}, p.tensors(), {weights});
    all.push_back(y);
    if (first.empty()) first = all;
    for (size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(torch::equal(all[i], first[i])) << i;
  }
  at::set_num_threads(threads);
}

TEST(ShortConvolution, TakesAnyStridesAndMixedTypes) {
  torch::manual_seed(10);
  const auto p = problem({.n = 70, .C = 33}).to(torch::kFloat32);
  const auto strided = p.apply([](const torch::Tensor& t) {
    if (t.dim() < 3) return torch::stack({t, t}, -1).select(-1, 1);
    return t.transpose(1, 2).contiguous().transpose(1, 2);
  });
  const auto between = p.apply([](const torch::Tensor& t) {  // rows of a wider tensor
    return torch::cat({t, t + 1, t}, -1).slice(-1, t.size(-1), 2 * t.size(-1)).sub(1);
  });
  const auto want = p.run();
  for (const auto& q : {strided, between}) {
    EXPECT_TRUE(torch::allclose(q.run().output, want.output, 1e-4, 1e-5));
  }
  EXPECT_TRUE(torch::equal(strided.run().output, want.output));
  auto slices = p;
  slices.x = torch::cat({p.x, p.x, p.x}, -1).slice(-1, 33, 66);
  EXPECT_TRUE(torch::equal(slices.run().output, want.output));

  auto narrow = p;
  narrow.x = p.x.to(torch::kBFloat16);
  narrow.options.initial_state = p.options.initial_state.to(torch::kBFloat16);
  auto wide = narrow;
  wide.x = narrow.x.to(torch::kFloat32);
  wide.options.initial_state = narrow.options.initial_state.to(torch::kFloat32);
  EXPECT_TRUE(torch::equal(narrow.run().output, wide.run().output.to(torch::kBFloat16)));
}

TEST(ShortConvolution, KeepsExtremeNumbers) {
  const auto x = torch::tensor({-1e30, -1e4, -200.0, -90.0, -60.0, 0.0, 60.0, 200.0, 1e30})
                     .to(torch::kFloat64)
                     .view({1, -1, 1});
  for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16}) {
    const auto in = x.to(dtype).expand({1, -1, 18}).detach().clone().requires_grad_();
    const auto weight = torch::ones({18, 1}, dtype);
    const auto y = short_convolution(in, weight).output;
    const auto gold = torch::silu(in.to(torch::kFloat64));
    EXPECT_TRUE(torch::allclose(y.to(torch::kFloat64), gold, 1e-2, 1e-30)) << dtype;
    const auto dx = torch::autograd::grad({y.sum()}, {in})[0];
    const auto of_gold = torch::autograd::grad({gold.sum()}, {in})[0];
    EXPECT_TRUE(torch::allclose(dx, of_gold.to(dtype), 1e-2, 1e-30)) << dtype;
  }
}

TEST(ShortConvolution, TakesNothing) {
  for (const auto& sizes : {Sizes{.n = 0}, {.B = 0}, {.C = 0}, {.n = 0, .K = 1}}) {
    const auto p = problem(sizes).apply([](const torch::Tensor& t) { return t.requires_grad_(); });
    const auto y = p.run();
    EXPECT_EQ(y.output.sizes(), p.x.sizes());
    EXPECT_TRUE(torch::equal(y.state, p.options.initial_state));
    (y.output.sum() + y.state.sum()).backward();
  }
}

TEST(ShortConvolution, GivesAStateOfItsOwn) {
  const auto p = problem({});
  const auto y = p.run();
  const auto before = y.state.clone();
  p.x.fill_(3);
  EXPECT_TRUE(torch::equal(y.state, before));
}

TEST(ShortConvolution, NoticesChangesInPlace) {
  auto p = problem({.n = 40});
  p.weight.requires_grad_();
  const auto y = p.run().output.sum();
  p.x.add_(1);
  EXPECT_THROW(y.backward(), c10::Error);
}

TEST(ShortConvolution, NamesWhatDoesNotFit) {
  const auto good = problem({}).to(torch::kFloat32);
  const auto refuse = [&](torch::Tensor Problem::*which, const BadTensors& all,
                          const std::string& name) {
    for (const auto& bad : all) {
      auto p = good;
      p.*which = bad.tensor;
      SCOPED_TRACE(name + ": " + bad.name);
      expect_error([&] { p.run(); }, {"short_convolution", name});
    }
  };
  refuse(&Problem::x, not_floating(good.x), "x");
  refuse(&Problem::x, of_wrong_sizes(good.x, {}), "x");
  refuse(&Problem::weight, not_floating(good.weight), "weight");
  refuse(&Problem::weight, of_wrong_sizes(good.weight, {0}), "weight");
  refuse(&Problem::weight, {{"K = 0", torch::ones({21, 0}), ""}}, "weight");
  const auto refuse_option = [&](torch::Tensor ShortConvolveOptions::*which, const BadTensors& all,
                                 const std::string& name) {
    for (const auto& bad : all) {
      if (!bad.tensor.defined()) continue;
      auto p = good;
      p.options.*which = bad.tensor;
      SCOPED_TRACE(name + ": " + bad.name);
      expect_error([&] { p.run(); }, {"short_convolution", name});
    }
  };
  refuse_option(&ShortConvolveOptions::bias, not_floating(good.options.bias), "bias");
  refuse_option(&ShortConvolveOptions::bias, of_wrong_sizes(good.options.bias, {0}), "bias");
  const auto& state = good.options.initial_state;
  refuse_option(&ShortConvolveOptions::initial_state, not_floating(state), "initial_state");
  refuse_option(&ShortConvolveOptions::initial_state, of_float_dtypes(state), "initial_state");
  refuse_option(&ShortConvolveOptions::initial_state, of_wrong_sizes(state, {0, 1, 2}),
                "initial_state");
  auto p = good;
  p.weight = good.weight.to(torch::kFloat64);
  expect_error([&] { p.run(); }, {"weight", "float64 alone"});
  p = good;
  p.options.documents.ids = torch::zeros({5}, torch::kInt64);
  expect_error([&] { p.run(); }, {"short_convolution: documents"});
  p.options.documents.ids = torch::tensor({0, 1, 0}).repeat_interleave(13).slice(0, 0, 37);
  expect_error([&] { p.run(); }, {"short_convolution: documents", "lie together"});
  p = good;
  p.x = torch::ones({1}).expand({int64_t{1} << 30, int64_t{1} << 28, 21});
  p.options = {};
  expect_error([&] { p.run(); }, {"short_convolution", "too many elements"});
}

}  // namespace
}  // namespace attzoo::testing::functional_short_convolution_test
