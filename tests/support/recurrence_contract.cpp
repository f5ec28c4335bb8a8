// The tests of recurrence_contract.hpp, compiled once for all mechanisms.

#include "support/recurrence_contract.hpp"

#include <torch/cuda.h>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/mask_tensors.hpp>

#include <cmath>
#include <limits>
#include <random>

#include "support/autocast.hpp"
#include "support/error_rule.hpp"

namespace attzoo::testing {

void move_vectors(const AnyAttention& m, double by) {
  const torch::NoGradGuard no_grad;
  for (auto& p : m->parameters()) {
    if (p.dim() == 1) p.add_(torch::randn_like(p), by);
  }
}

torch::Tensor convolved(const torch::Tensor& x, const ShortConvolution& conv) {
  const int64_t size = conv->weight.size(2), n = x.size(1);
  const auto padded = torch::constant_pad_nd(x, {0, 0, size - 1, 0});
  auto sum = torch::zeros_like(x);
  for (int64_t i = 0; i < size; ++i) {
    sum = sum + padded.slice(1, i, i + n) * conv->weight.select(2, i).squeeze(1);
  }
  if (conv->bias.defined()) sum = sum + conv->bias;
  return sum * torch::sigmoid(sum);
}

torch::Tensor normed(const torch::Tensor& t, const RMSNorm& norm) {
  const auto mean = t.square().mean(-1, /*keepdim=*/true) + norm->options.eps;
  return t / mean.sqrt() * norm->weight;
}

torch::Tensor of_length_1(const torch::Tensor& t, double eps) {
  return t / (t.square().sum(-1, /*keepdim=*/true) + eps).sqrt();
}

torch::Tensor join(const torch::Tensor& t) { return t.transpose(1, 2).flatten(2); }
torch::Tensor column(const torch::Tensor& t, int64_t i) { return t.select(2, i).unsqueeze(-1); }
torch::Tensor row(const torch::Tensor& t, int64_t i) { return t.select(2, i).unsqueeze(-2); }

torch::Tensor carried(const torch::Tensor& q, const torch::Tensor& v,
                      const std::function<torch::Tensor(const torch::Tensor& S, int64_t i)>& step) {
  auto S = torch::zeros({v.size(0), v.size(1), q.size(3), v.size(3)}, v.options());
  std::vector<torch::Tensor> rows;
  for (int64_t i = 0; i < v.size(2); ++i) {
    S = step(S, i);
    rows.push_back(torch::matmul(row(q, i), S));
  }
  return torch::cat(rows, 2);
}

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

const Recurrence& param() { return ::testing::TestWithParam<Recurrence>::GetParam(); }
std::string name() { return param().name; }

/// In eval mode, every parameter something else than at first.
AnyAttention make(torch::ScalarType dtype = torch::kFloat64) {
  auto m = param().make({});
  move_vectors(m);
  m->to(dtype);
  m->eval();
  return m;
}

torch::Tensor tokens(const AnyAttention& m, int64_t batch, int64_t n,
                     torch::ScalarType dtype = torch::kFloat64) {
  return torch::randn({batch, n, m.input_dim()}, dtype);
}

void expect_near(const torch::Tensor& got, const torch::Tensor& want, const std::string& what) {
  ASSERT_EQ(got.sizes(), want.sizes()) << what;
  EXPECT_TRUE(torch::allclose(got, want, 1e-10, 1e-12))
      << what << ": largest difference " << (got - want).abs().max().item<double>();
}

Tensors leaves_of(const AnyAttention& m, const torch::Tensor& x) {
  Tensors leaves{x};
  for (const auto& p : m->parameters()) leaves.push_back(p);
  return leaves;
}

/// The outputs of x, fed to the cache in chunks of these sizes, the last one again and again.
torch::Tensor feed(const AnyAttention& m, const Cache& cache, const torch::Tensor& x,
                   std::vector<int64_t> sizes) {
  Tensors outputs;
  for (int64_t at = 0; at < x.size(1);) {
    const int64_t end = std::min(x.size(1), at + sizes[0]);
    outputs.push_back(m(x.slice(1, at, end), {.cache = cache}).output);
    if (sizes.size() > 1) sizes.erase(sizes.begin());
    at = end;
  }
  return torch::cat(outputs, 1);
}

}  // namespace

void RecurrenceContract::SetUp() { torch::manual_seed(20241129); }

// A program may link this for the parts of definitions alone.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(RecurrenceContract);

TEST_P(RecurrenceContract, IsItsDefinition) {
  auto m = make();
  for (const int64_t n : {1, 2, 33, 150}) {
    const auto x = tokens(m, 2, n);
    const auto want = GetParam().define(m, x);
    const auto got = m(x);
    const auto what = c10::str(n, " tokens");
    expect_near(got.output, want.output, what);
    expect_near(torch::matmul(got.weights.tensor(), want.values), want.sums, what + ", weights");
    EXPECT_EQ(got.weights.tensor().triu(1).abs().sum().item<double>(), 0) << what;
    EXPECT_FALSE(got.lse.defined());
    const EagerReferenceGuard eager;
    expect_near(m(x).output, want.output, what + ", eager");
  }
}

TEST_P(RecurrenceContract, GradientsAreTheDefinitions) {
  auto m = make();
  auto x = tokens(m, 2, 70).requires_grad_();
  const auto cotangent = torch::randn({2, 70, m.d_model()}, torch::kFloat64);
  const auto leaves = leaves_of(m, x);
  const auto got = torch::autograd::grad({m(x).output}, leaves, {cotangent}),
             want = torch::autograd::grad({GetParam().define(m, x).output}, leaves, {cotangent});
  for (size_t i = 0; i < leaves.size(); ++i) {
    EXPECT_TRUE(torch::allclose(got[i], want[i], 1e-9, 1e-10))
        << "leaf " << i << ": " << (got[i] - want[i]).abs().max().item<double>();
  }
}

TEST_P(RecurrenceContract, Gradients) {
  auto m = make();
  auto x = tokens(m, 2, 5).requires_grad_();
  const auto cotangent = torch::randn({2, 5, m.d_model()}, torch::kFloat64);
  const auto f = [&] { return (m(x).output * cotangent).sum(); };
  gradcheck(f, leaves_of(m, x), name());
  gradgradcheck(f, {x}, name());
  gradcheck([&] { return torch::Tensor(m(x).weights).square().sum(); }, {x}, name() + " weights");
}

TEST_P(RecurrenceContract, WeightsOnDemand) {
  auto m = make();
  const auto x = tokens(m, 2, 150);
  const auto weights = m(x).weights;
  const torch::Tensor all = weights;
  EXPECT_TRUE(torch::allclose(weights.rows(3, 77), all.slice(-2, 3, 77), 1e-12, 1e-14));
  EXPECT_EQ(weights.rows(4, 4).numel(), 0);
  EXPECT_TRUE(torch::allclose(weights.head_mean(), all.mean(1), 1e-12, 1e-14));
  expect_error([&] { weights.rows(2, 151); }, {"LazyWeights::rows", "150", "151"});
  const torch::NoGradGuard no_grad;
  EXPECT_FALSE(m(x, {.cache = m.make_cache(2)}).weights.defined());
}

TEST_P(RecurrenceContract, GoesOnFromACacheAsTheWholePass) {
  const torch::NoGradGuard no_grad;
  auto m = make();
  const auto x = tokens(m, 2, 170), want = m(x).output;
  auto cache = m.make_cache(2);
  for (const auto& sizes : std::vector<std::vector<int64_t>>{
           {1}, {31}, {32}, {33}, {170}, {70, 1}, {2, 64, 3, 1, 65, 4}}) {
    cache.reset();
    expect_near(feed(m, cache, x, sizes), want, c10::str(sizes));
    EXPECT_EQ(cache.length(), 170);
  }
  std::mt19937 random(5);
  for (int i = 0; i < 3; ++i) {
    std::vector<int64_t> sizes;
    for (int64_t sum = 0; sum < 170; sum += sizes.back()) {
      sizes.push_back(1 + static_cast<int64_t>(random() % 70));
    }
    cache.reset();
    expect_near(feed(m, cache, x, sizes), want, c10::str(sizes));
  }
}

/// Up to 32 tokens back, again and again, at marks, across them, and within a chunk.
TEST_P(RecurrenceContract, TruncatesAndGoesOn) {
  const torch::NoGradGuard no_grad;
  auto m = make();
  const auto x = tokens(m, 2, 200), want = m(x).output;
  for (const auto& sizes : std::vector<std::vector<int64_t>>{{1}, {200}, {32}, {40, 5}}) {
    auto cache = m.make_cache(2);
    feed(m, cache, x.slice(1, 0, 130), sizes);
    for (const int64_t back : {130, 129, 120, 100, 98}) {
      cache.truncate(back);
      EXPECT_EQ(cache.length(), back);
      auto copy = cache.clone();
      const auto what = c10::str(sizes, ", back to ", back);
      expect_near(feed(m, copy, x.slice(1, back), {3}), want.slice(1, back), what);
    }
    expect_near(feed(m, cache, x.slice(1, 98), {7, 50, 1}), want.slice(1, 98), "after all");
    expect_error([&] { cache.truncate(50); }, {"truncate", "50"});
    cache.truncate(0);
    expect_near(feed(m, cache, x.slice(1, 0, 40), {9}), want.slice(1, 0, 40), "from 0");
  }
}

TEST_P(RecurrenceContract, ReordersClonesAndResets) {
  const torch::NoGradGuard no_grad;
  auto m = make();
  const auto x = tokens(m, 3, 120), want = m(x).output;
  auto cache = m.make_cache(3);
  feed(m, cache, x.slice(1, 0, 80), {45, 1});
  auto copy = cache.clone();
  const auto order = torch::tensor({2, 0, 2});
  const auto other = x.index_select(0, order);
  cache.reorder(order);
  cache.truncate(70);
  expect_near(feed(m, cache, other.slice(1, 70), {4}), want.index_select(0, order).slice(1, 70),
              "reordered");
  expect_near(feed(m, copy, x.slice(1, 80), {1}), want.slice(1, 80), "cloned");
  copy.reset();
  EXPECT_EQ(copy.length(), 0);
  expect_near(feed(m, copy, x, {60}), want, "reset");
}

TEST_P(RecurrenceContract, GoesOnBehindPaddingAndDocuments) {
  expect_goes_on_as_alone(make(), name());
}

TEST_P(RecurrenceContract, CachesDoNotGrow) {
  const torch::NoGradGuard no_grad;
  auto m = make(torch::kFloat32);
  auto cache = m.make_cache(2);
  m(tokens(m, 2, 100, torch::kFloat32), {.cache = cache});
  const auto before = cache.bytes();
  EXPECT_GT(before, 0);
  for (int i = 0; i < 29; ++i) m(tokens(m, 2, 100, torch::kFloat32), {.cache = cache});
  EXPECT_EQ(cache.length(), 3000);
  EXPECT_EQ(cache.bytes(), before);
}

TEST_P(RecurrenceContract, PaddingChangesNothing) {
  auto m = make();
  const std::vector<int64_t> lengths{50, 41, 1};
  const auto x = tokens(m, 3, 50);
  const auto right = create_padding_mask(lengths);
  for (const bool left : {false, true}) {
    const auto real = left ? right.flip(1) : right;
    const auto in = x.masked_fill(real.logical_not().unsqueeze(-1), kNaN);
    const auto padded = m(in, {.key_padding_mask = real}).output;
    for (int64_t b = 0; b < 3; ++b) {
      const int64_t n = lengths[static_cast<size_t>(b)], begin = left ? 50 - n : 0;
      const auto cut = [&](const torch::Tensor& t) {
        return t.slice(0, b, b + 1).slice(1, begin, begin + n);
      };
      expect_near(cut(padded), m(cut(x)).output, left ? "left" : "right");
    }
  }
}

TEST_P(RecurrenceContract, DocumentsAreAlone) { expect_packs(make(), name()); }

TEST_P(RecurrenceContract, NeverLooksAhead) {
  auto m = make(torch::kFloat32);
  auto x = tokens(m, 1, 90, torch::kFloat32);
  const auto before = m(x).output.slice(1, 0, 53);
  x.slice(1, 53).normal_();
  EXPECT_TRUE(torch::equal(before, m(x).output.slice(1, 0, 53)));
  x.slice(1, 53).fill_(kNaN);
  EXPECT_TRUE(torch::equal(before, m(x).output.slice(1, 0, 53)));
}

TEST_P(RecurrenceContract, HalfTypesFollowTheErrorRule) {
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    auto low = make(dtype);
    const auto gold = low.clone();
    gold->to(torch::kFloat64);
    auto x = tokens(low, 2, 70, dtype).requires_grad_();
    auto x64 = x.detach().to(torch::kFloat64).requires_grad_();
    const auto cotangent = torch::randn({2, 70, low.d_model()}, dtype);
    const auto backward = [&](const torch::Tensor& out, const torch::Tensor& leaf) {
      return torch::autograd::grad({(out * cotangent.to(out.scalar_type())).sum()}, {leaf})[0];
    };
    const auto got = low(x).output, plain = GetParam().define(low, x).output,
               exact = GetParam().define(gold, x64).output;
    const std::string what = name() + " " + c10::toString(dtype);
    expect_within_rule(got, exact, plain, 2, 70, what + " output");
    expect_within_rule(backward(got, x), backward(exact, x64), backward(plain, x), 3, 70,
                       what + " gradient of x");
  }
}

/// Autocast runs a float32 module in bfloat16; float64 it leaves alone.
TEST_P(RecurrenceContract, Autocast) {
  const auto low = make(torch::kBFloat16);
  const auto m = low.clone(), gold = low.clone();
  m->to(torch::kFloat32);
  gold->to(torch::kFloat64);
  const auto x = tokens(low, 2, 33, torch::kBFloat16);
  const auto want = gold(x.to(torch::kFloat64)).output, plain = GetParam().define(low, x).output;
  const Autocast autocast;
  expect_within_rule(m(x.to(torch::kFloat32)).output, want, plain, 2, 33, name());
  expect_within_rule(m(x).output, want, plain, 2, 33, name());
  expect_near(gold(x.to(torch::kFloat64)).output, want, name());
  expect_error([&] { gold(x); }, {name(), "Double", "BFloat16"});
}

TEST_P(RecurrenceContract, EmptyAndStridedInputs) {
  auto m = make();
  EXPECT_EQ(m(tokens(m, 0, 5)).output.sizes(), (std::vector<int64_t>{0, 5, m.d_model()}));
  auto empty = tokens(m, 2, 0).requires_grad_();
  const auto r = m(empty);
  EXPECT_EQ(r.output.sizes(), (std::vector<int64_t>{2, 0, m.d_model()}));
  EXPECT_EQ(torch::Tensor(r.weights).numel(), 0);
  r.output.sum().backward();
  const auto strided = torch::randn({40, m.input_dim(), 2}, torch::kFloat64).permute({2, 0, 1});
  EXPECT_FALSE(strided.is_contiguous());
  EXPECT_TRUE(torch::allclose(m(strided).output, m(strided.contiguous()).output, 1e-12, 1e-14));
}

TEST_P(RecurrenceContract, Dropout) {
  auto m = GetParam().make({.dropout = 0.5});
  m->to(torch::kFloat64);
  const auto x = tokens(m, 2, 33);
  torch::manual_seed(5);
  const auto first = m(x).output, second = m(x).output;
  torch::manual_seed(5);
  EXPECT_TRUE(torch::equal(first, m(x).output));
  EXPECT_FALSE(torch::equal(first, second));
  expect_error([&] { m(x, {.cache = m.make_cache(2)}); }, {name(), "dropout"});
  m->eval();
  EXPECT_TRUE(torch::equal(m(x).output, m(x).output));
  expect_near(m(x).output, GetParam().define(m, x).output, "eval");
}

TEST_P(RecurrenceContract, LivesAsAModule) { GetParam().lives_as_a_module(make()); }

TEST_P(RecurrenceContract, ConstructorErrors) {
  const auto bad = [](const Change& change, std::vector<std::string> parts) {
    parts.push_back(name());
    expect_error([&] { GetParam().make(change); }, parts);
  };
  bad({.d_model = 0}, {"d_model", "0"});
  bad({.d_model = -4}, {"d_model", "-4"});
  bad({.input_dim = 0}, {"input_dim", "0"});
  bad({.dropout = 1.5}, {"dropout", "1.5"});
  bad({.dropout = std::nan("")}, {"dropout", "nan"});
  bad({.num_heads = 0}, {"num_heads", "0"});
  bad({.num_heads = -2}, {"num_heads", "-2"});
  bad({.d_model = int64_t{3} << 40}, {"d_model=3298534883328", "2^36"});
  bad({.input_dim = int64_t{1} << 40}, {"input_dim=1099511627776", "2^36"});
  if (GetParam().of_conv_size) {
    expect_error([&] { GetParam().of_conv_size(0); }, {"conv", "0"});
    expect_error([&] { GetParam().of_conv_size(-1); }, {"conv", "-1"});
  }
}

TEST_P(RecurrenceContract, ForwardErrors) {
  auto m = make(torch::kFloat32);
  const auto x = tokens(m, 2, 6, torch::kFloat32);
  const auto bad = [&](const torch::Tensor& input, const AttentionInputs& in,
                       std::vector<std::string> parts) {
    parts.push_back(name());
    expect_error([&] { m(input, in); }, parts);
  };
  bad({}, {}, {"x", "undefined"});
  bad(x[0], {}, {"x", "[batch, seq, input_dim="});
  bad(x.slice(2, 1), {}, {"x", "input_dim"});
  bad(x.to(torch::kFloat64), {}, {"x", "Float", "Double"});
  bad(x.to(torch::kInt64), {}, {"x", "Long"});
  bad(x.to(torch::kMeta), {}, {"x", "device", "meta"});
  bad(x.to_sparse(), {}, {"x", "dense", "Sparse"});
  const auto pairs = torch::ones({6, 6}, torch::kBool);
  bad(x, {.mask = pairs}, {"mask", "pairs", "key_padding_mask"});
  bad(x, {.pattern = causal()}, {"pattern", "pairs"});
  bad(x, {.score = softcap(5.0)}, {"score", "pairs"});
  bad(x, {.context = x}, {"context", "no meaning"});
  bad(x, {.context_padding_mask = torch::ones({2, 6}, torch::kBool)}, {"context"});
  bad(x, {.causal = false}, {"causal = false", "no meaning"});
  bad(x, {.global_attention = torch::ones({6})}, {"global_attention"});
  bad(x, {.key_padding_mask = torch::ones({2, 6})}, {"key_padding_mask", "bool", "Float"});
  bad(x, {.key_padding_mask = torch::ones({2, 7}, torch::kBool)}, {"key_padding_mask", "[2, 7]"});
  bad(x, {.documents = {.offsets = torch::tensor({0, 5})}}, {"documents", "5"});
  if (!m.takes().positions) {
    bad(x, {.position_offset = 3}, {"position_offset", "rope", "3"});
    bad(x, {.positions = torch::arange(6)}, {"positions"});
  }
  const torch::NoGradGuard no_grad;
  const auto cache = m.make_cache(2);
  bad(x, {.cache = make(torch::kFloat32).make_cache(2)}, {"cache", "module"});
  bad(x, {.mask = pairs, .cache = cache}, {"mask", "pairs"});
  EXPECT_EQ(cache.length(), 0);
  expect_error([&] { m.make_context_cache(x); }, {"context"});
}

TEST_P(RecurrenceContract, WorksOnCuda) {
  if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
  auto m = make(torch::kFloat32);
  const auto x = tokens(m, 2, 70, torch::kFloat32);
  const auto want = m(x);
  m->to(torch::kCUDA);
  const auto got = m(x.to(torch::kCUDA));
  EXPECT_TRUE(torch::allclose(got.output.cpu(), want.output, 1e-4, 1e-4));
  EXPECT_TRUE(torch::allclose(torch::Tensor(got.weights).cpu(), want.weights, 1e-4, 1e-4));
}

}  // namespace attzoo::testing
