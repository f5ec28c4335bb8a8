// The tests of mechanism_contract.hpp, compiled once for all mechanisms.

#include "support/mechanism_contract.hpp"

#include <torch/cuda.h>
#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/functional/rope.hpp>

#include <cmath>
#include <limits>
#include <sstream>

#include "support/autocast.hpp"
#include "support/error_rule.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing {
namespace {

/// w_o of heads whose outputs are 0: [sizes, d_model].
torch::Tensor of_nothing(AnyMechanism& m, std::vector<int64_t> sizes) {
  sizes.push_back(m.w_o->weight.size(1));
  return m.w_o(torch::zeros(sizes, torch::kFloat64));
}

torch::Tensor tokens(int64_t batch, int64_t n, torch::ScalarType dtype = torch::kFloat64) {
  return torch::randn({batch, n, 12}, dtype);
}

/// What a mechanism gives by its definition.
struct Dense {
  torch::Tensor weights, output, lse;
};

void expect_same(const AttentionResult& got, const Dense& want) {
  EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-10, 1e-12));
  EXPECT_EQ(got.weights.sizes(), want.weights.sizes());
  EXPECT_TRUE(torch::allclose(got.weights, want.weights, 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(got.lse, want.lse, 1e-10, 1e-12));
}

const Mechanism& param() { return ::testing::TestWithParam<Mechanism>::GetParam(); }
std::string name() { return param().name; }

/// In eval mode, every parameter something else than at first.
AnyMechanism make(torch::ScalarType dtype = torch::kFloat64) {
  auto m = param().make({});
  const torch::NoGradGuard no_grad;
  if (m.sinks.defined()) m.sinks.normal_();
  for (const auto& part : m->modules()) {
    if (auto* norm = part->as<RMSNormImpl>()) norm->weight.uniform_(0.5, 1.5);
  }
  m->to(dtype);
  m->eval();
  return m;
}

/// The pattern of the last L and S of as many tokens as the longer has.
torch::Tensor pattern(int64_t L, int64_t S) {
  const int64_t n = std::max(L, S);
  return param().allowed(n).slice(-2, n - L).slice(-1, n - S);
}
/// The same of a causal call.
torch::Tensor causal_pattern(int64_t L, int64_t S) {
  const int64_t n = std::max(L, S);
  return param().allowed_causal(n).slice(-2, n - L).slice(-1, n - S);
}

/// What the layers of most make: projections, norms of heads, and rotary positions.
Projected project(AnyMechanism& m, const torch::Tensor& x, const torch::Tensor& context) {
  if (m.project) return m.project(x, context);
  const int64_t dh = m.d_head, H = m.w_q->weight.size(0) / dh, Hkv = m.w_k->weight.size(0) / dh;
  auto q = split_heads(m.w_q(x), H), k = split_heads(m.w_k(context), Hkv);
  const auto normed = [&](const torch::Tensor& t, const RMSNorm& norm) {
    if (norm.is_empty()) return t;
    const auto mean = t.square().mean(-1, /*keepdim=*/true) + norm->options.eps;
    return (t / mean.sqrt() * norm->weight).to(t.scalar_type());
  };
  q = normed(q, m.norm_q);
  k = normed(k, m.norm_k);
  if (m.rope) q = apply_rope(q, *m.rope.options()), k = apply_rope(k, *m.rope.options());
  const auto v = split_heads(m.w_v(context), Hkv);
  return {q, k.repeat_interleave(H / Hkv, 1), v.repeat_interleave(H / Hkv, 1)};
}

/// The mechanism by its definition, dense and independent of the core. `mask`: bool, `bias`:
/// floating, broadcastable to [B, H, L, S].
Dense dense(AnyMechanism& m, const torch::Tensor& x, const torch::Tensor& context,
            const torch::Tensor& mask, const torch::Tensor& bias = {}) {
  const auto [q, k, v] = project(m, x, context);
  const int64_t H = q.size(1);
  auto s = torch::matmul(q, k.transpose(-2, -1)) / std::sqrt(static_cast<double>(q.size(-1)));
  if (m.softcap) s = *m.softcap * torch::tanh(s / *m.softcap);
  s = s + m.score_bias(x.size(1), context.size(1)).to(s.scalar_type());
  if (bias.defined()) s = s + bias;
  s = s.masked_fill(mask.logical_not(), kNegativeInfinity);
  if (m.sinks.defined()) {
    s = torch::cat({s, m.sinks.view({1, H, 1, 1}).expand({s.size(0), H, s.size(2), 1})}, -1);
  }
  const auto weights = torch::softmax(s, -1).nan_to_num(0.0).slice(-1, 0, context.size(1));
  auto joined = torch::matmul(weights, v).transpose(1, 2).flatten(2);
  if (!m.w_g.is_empty()) joined = joined * torch::sigmoid(m.w_g(x));
  return {param().head_axis ? weights : weights.squeeze(1), m.w_o(joined), torch::logsumexp(s, -1)};
}

}  // namespace

void MechanismContract::SetUp() { torch::manual_seed(20240607); }

// A program may link this for expect_packs() and its kin alone.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(MechanismContract);

TEST_P(MechanismContract, IsItsDefinition) {
  auto m = make();
  for (const int64_t n : {1, 2, 7, 33}) {
    const auto x = tokens(2, n);
    expect_same(m(x), dense(m, x, x, pattern(n, n)));
    expect_same(m(x, {.causal = true}), dense(m, x, x, causal_pattern(n, n)));
  }
}

TEST_P(MechanismContract, CausalOptionAndItsOverride) {
  auto m = GetParam().make({.causal = true});
  m->to(torch::kFloat64);
  const auto x = tokens(2, 9);
  expect_same(m(x), dense(m, x, x, causal_pattern(9, 9)));
  expect_same(m(x, {.causal = false}), dense(m, x, x, pattern(9, 9)));
}

TEST_P(MechanismContract, GoesOnFromACacheAsTheWholePass) {
  const torch::NoGradGuard no_grad;
  auto m = make();
  const auto x = tokens(2, 150);
  const auto want = m(x, {.causal = true}).output;
  const auto cache = m.make_cache(2, 150);
  for (int64_t at = 0, end = 70; at < 150;
       at = end, end = std::min<int64_t>(150, at + at % 4 + 1)) {
    const auto got = m(x.slice(1, at, end), {.causal = true, .cache = cache}).output;
    EXPECT_TRUE(torch::allclose(got, want.slice(1, at, end), 1e-10, 1e-12)) << at;
  }
}

TEST_P(MechanismContract, GoesOnBehindPaddingAndDocuments) {
  const auto m = GetParam().make({.rope = make().d_head % 2 == 0});
  expect_goes_on_as_alone(m, name());
}

TEST_P(MechanismContract, TakesMasksOfAllKinds) {
  auto m = make();
  const int64_t B = 2, n = 11, H = m(tokens(1, 1)).lse.size(1);
  const auto x = tokens(B, n);
  const auto allowed = pattern(n, n);
  const std::vector<std::vector<int64_t>> shapes = {{n, n},       {1, n},       {n, 1},
                                                    {B, n, n},    {1, n, n},    {B, 1, n},
                                                    {B, H, n, n}, {1, H, 1, n}, {B, 1, n, 1}};
  for (const auto& shape : shapes) {
    auto mask = torch::rand(shape) < 0.7;
    const auto rank4 = core::mask_rank4(mask);
    expect_same(m(x, {.mask = mask}), dense(m, x, x, allowed & rank4));
    const auto bias = torch::randn(shape, torch::kFloat64);
    expect_same(m(x, {.mask = bias}), dense(m, x, x, allowed, core::mask_rank4(bias)));
    const auto minus_infinity =
        torch::zeros(shape, torch::kFloat64).masked_fill(mask.logical_not(), kNegativeInfinity);
    expect_same(m(x, {.mask = minus_infinity}), dense(m, x, x, allowed & rank4));
  }
  // A mask of another float dtype is cast to x's.
  const auto narrow = torch::randn({n, n}, torch::kFloat32);
  expect_same(m(x, {.mask = narrow}), dense(m, x, x, allowed, narrow.to(torch::kFloat64)));
}

TEST_P(MechanismContract, CombinesMaskPaddingAndCausal) {
  auto m = make();
  const auto x = tokens(3, 10);
  const auto real = create_padding_mask(std::vector<int64_t>{10, 6, 1});
  const auto mask = torch::rand({3, 10, 10}) < 0.8;
  const auto all = causal_pattern(10, 10) & mask.unsqueeze(1) & real.view({3, 1, 1, 10});
  expect_same(m(x, {.mask = mask, .key_padding_mask = real, .causal = true}), dense(m, x, x, all));
}

TEST_P(MechanismContract, AttendsToAContext) {
  auto m = make();
  const auto x = tokens(2, 5), context = tokens(2, 8);
  expect_same(m(x, {.context = context}), dense(m, x, context, pattern(5, 8)));
  expect_same(m(x, {.causal = true, .context = context}),
              dense(m, x, context, causal_pattern(5, 8)));
}

TEST_P(MechanismContract, WeightsOnDemand) {
  auto m = make();
  const auto x = tokens(2, 150);
  const auto [output, weights] = m(x);
  const torch::Tensor all = weights;
  if (!m.sinks.defined()) {
    EXPECT_TRUE(torch::allclose(all.sum(-1), torch::ones_like(all.sum(-1))));
  }
  EXPECT_TRUE(torch::allclose(weights.rows(3, 17), all.slice(-2, 3, 17), 1e-12, 1e-14));
  EXPECT_EQ(weights.rows(4, 4).numel(), 0);
  EXPECT_TRUE(
      torch::allclose(weights.head_mean(), all.dim() == 4 ? all.mean(1) : all, 1e-12, 1e-14));
  expect_error([&, w = weights] { w.rows(2, 151); }, {"LazyWeights::rows", "150", "151"});
}

TEST_P(MechanismContract, Gradients) {
  auto m = make();
  auto x = tokens(2, 5).requires_grad_();
  auto context = tokens(2, 6).requires_grad_();
  auto mask = torch::randn({5, 6}, torch::kFloat64).requires_grad_();
  Tensors leaves{x, context, mask};
  for (const auto& p : m->named_parameters()) leaves.push_back(p.value());
  const auto cotangent = torch::randn({2, 5, 12}, torch::kFloat64);
  const auto f = [&] {
    return (m(x, {.mask = mask, .causal = true, .context = context}).output * cotangent).sum();
  };
  gradcheck(f, leaves, name());
  gradgradcheck(f, {x, context}, name());
  const auto plain = [&] { return (m(x).output * cotangent).sum(); };
  gradcheck(plain, {x}, name());
  gradgradcheck(plain, {x}, name());
  const auto lse = [&] {
    const auto r = m(x);
    return r.lse.sin().sum() + torch::Tensor(r.weights).square().sum();
  };
  gradcheck(lse, {x}, name() + " lse and weights");
}

TEST_P(MechanismContract, FullyMaskedRowsAreZero) {
  auto m = make();
  auto x = tokens(2, 6).requires_grad_();
  auto mask = torch::ones({6, 6}, torch::kBool);
  mask[2] = false;
  const auto zero = of_nothing(m, {2});
  for (const auto& m2 : {mask, torch::zeros({6, 6}).masked_fill(mask.logical_not(), -INFINITY)}) {
    const auto r = m(x, {.mask = m2});
    EXPECT_TRUE(torch::equal(r.output.select(1, 2), zero));
    EXPECT_TRUE((torch::Tensor(r.weights).select(-2, 2) == 0).all().item<bool>());
    const auto lse = m.sinks.defined() ? m.sinks.detach() : torch::tensor(kNegativeInfinity);
    EXPECT_TRUE((r.lse.select(-1, 2) == lse).all().item<bool>());
    const auto grads = torch::autograd::grad({r.output.sum()}, {x});
    EXPECT_TRUE(grads[0].isfinite().all().item<bool>());
  }
}

TEST_P(MechanismContract, PaddingChangesNothing) {
  auto m = make();
  const std::vector<int64_t> lengths{9, 4, 1};
  const auto x = tokens(3, 9);
  const auto padded = m(x, {.key_padding_mask = create_padding_mask(lengths)}).output;
  for (int64_t b = 0; b < 3; ++b) {
    const auto n = lengths[static_cast<size_t>(b)];
    const auto alone = m(x.slice(0, b, b + 1).slice(1, 0, n)).output;
    EXPECT_TRUE(torch::allclose(padded.slice(0, b, b + 1).slice(1, 0, n), alone, 1e-10, 1e-12));
  }
}

TEST_P(MechanismContract, DocumentsAreAlone) {
  const auto m = GetParam().make({.rope = make().d_head % 2 == 0});
  expect_packs(m, name());
  expect_documents_are_alone(m, {.mask = torch::rand({40, 40}) < 0.7}, "mask");
  const auto x = tokens(2, 6);
  const auto bad = [&](const Documents& documents, std::vector<std::string> parts) {
    parts.insert(parts.end(), {name(), "documents"});
    expect_error([&] { m(x, {.documents = documents}); }, parts);
  };
  const auto ids = torch::tensor({0, 0, 1, 1, 2, 2});
  bad({.offsets = torch::tensor({0, 6}), .ids = ids}, {"offsets", "ids", "both"});
  bad({.offsets = torch::tensor({0, 5})}, {"S=6", "5"});
  bad({.offsets = torch::tensor({0, 7, 6})}, {"decrease"});
  bad({.offsets = torch::tensor({2, 4})}, {"begin with 0", "lengths", "cumsum"});
  bad({.offsets = torch::tensor({0, 4, 2})}, {"decrease", "lengths", "cumsum"});
  bad({.offsets = torch::tensor({0, 2, 2, 2})}, {"S=6", "lengths", "cumsum"});
  bad({.offsets = torch::tensor({int64_t{0}, int64_t{1} << 62})}, {"S=6", "4611686018427387904"});
  bad({.offsets = torch::tensor({0.0, 6.0})}, {"offsets", "integers"});
  bad({.offsets = torch::tensor({0, 6}, torch::kInt64).to(torch::kMeta)}, {"offsets", "meta"});
  bad({.ids = ids.slice(0, 1)}, {"ids", "[5]"});
  bad({.ids = ids.expand({3, 6})}, {"ids", "[3, 6]"});
  bad({.ids = torch::tensor({0, 0, 1, 1, 0, 0})}, {"together"});
  expect_error([&] { m(x, {.context = x, .documents = {.ids = ids}}); }, {name(), "context"});
}

TEST_P(MechanismContract, CausalNeverLooksAhead) {
  auto m = make(torch::kFloat32);
  auto x = tokens(1, 40, torch::kFloat32);
  const auto before = m(x, {.causal = true}).output.slice(1, 0, 23);
  x.slice(1, 23).normal_();
  EXPECT_TRUE(torch::equal(before, m(x, {.causal = true}).output.slice(1, 0, 23)));
}

TEST_P(MechanismContract, DropoutDropsTheSameEverywhere) {
  auto m = GetParam().make({.dropout = 0.3});
  m->to(torch::kFloat64);
  const auto x = tokens(2, 64);
  torch::manual_seed(5);
  const auto first = m(x), second = m(x);
  torch::manual_seed(5);
  const auto again = m(x);
  EXPECT_TRUE(torch::equal(first.output, again.output));
  EXPECT_FALSE(torch::equal(first.output, second.output));
  const auto w = GetParam().head_axis ? torch::Tensor(first.weights)
                                      : torch::Tensor(first.weights).unsqueeze(1);
  auto joined = torch::matmul(w, project(m, x, x).v).transpose(1, 2).flatten(2);
  if (!m.w_g.is_empty()) joined = joined * torch::sigmoid(m.w_g(x));
  EXPECT_TRUE(torch::allclose(first.output, m.w_o(joined), 1e-10, 1e-12));
  m->eval();
  EXPECT_TRUE(torch::equal(m(x).output, m(x).output));
  // All of them, down to the gradient.
  for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
    auto none = GetParam().make({.dropout = 1.0});
    none->to(dtype);
    auto input = tokens(2, 64, dtype).requires_grad_();
    const auto r = none(input);
    const auto weights = torch::Tensor(r.weights);
    EXPECT_TRUE((weights == 0).all().item<bool>());
    EXPECT_TRUE(torch::equal(r.output, none.w_o(torch::zeros_like(joined, dtype))));
    const auto grad =
        torch::autograd::grad({r.output.sum() + weights.sum()}, {input}, {}, true, false, true)[0];
    EXPECT_TRUE(!grad.defined() || (grad == 0).all().item<bool>());
  }
}

TEST_P(MechanismContract, RotaryPositions) {
  if (!GetParam().has_rope) return;
  auto m = GetParam().make({.rope = true});
  m->to(torch::kFloat64);
  const auto x = tokens(1, 8);
  // Scores depend on differences of positions alone, and positions do matter.
  EXPECT_TRUE(torch::allclose(m(x).output, m(x, {.position_offset = 1000}).output, 1e-8, 1e-10));
  auto without = GetParam().make({.rope = false});
  without->to(torch::kFloat64);
  load_state_dict(*without.ptr(), state_dict(*m.ptr()));
  if ((GetParam().allowed(8) != torch::eye(8, torch::kBool)).any().item<bool>()) {
    EXPECT_FALSE(torch::allclose(m(x).output, without(x).output, 1e-3, 1e-3));
  }
  // A context begins at position 0: the last tokens of a sequence, asked at their own position.
  const auto tail = m(x.slice(1, 5), {.causal = true, .context = x, .position_offset = 5}).output;
  EXPECT_TRUE(torch::allclose(tail, m(x, {.causal = true}).output.slice(1, 5), 1e-10, 1e-12));
}

TEST_P(MechanismContract, HalfTypesFollowTheErrorRule) {
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    auto low = make(dtype);
    auto gold = low.another();
    gold->to(torch::kFloat64);
    for (const auto& p : state_dict(*low.ptr())) {
      state_dict(*gold.ptr()).at(p.first).detach().copy_(p.second);
    }
    auto x = tokens(2, 33, dtype).requires_grad_();
    auto x64 = x.detach().to(torch::kFloat64).requires_grad_();
    const auto mask = pattern(33, 33);
    const auto cotangent = torch::randn({2, 33, 12}, dtype);
    const auto backward = [&](const torch::Tensor& out, const torch::Tensor& leaf) {
      return torch::autograd::grad({(out * cotangent.to(out.scalar_type())).sum()}, {leaf})[0];
    };
    const auto got = low(x).output, plain = dense(low, x, x, mask).output,
               exact = dense(gold, x64, x64, mask).output;
    const std::string what = name() + " " + c10::toString(dtype);
    expect_within_rule(got, exact, plain, 2, 33, what + " output");
    expect_within_rule(backward(got, x), backward(exact, x64), backward(plain, x), 3, 33,
                       what + " gradient of x");
  }
}

TEST_P(MechanismContract, EmptyAndStridedInputs) {
  auto m = make();
  EXPECT_EQ(m(tokens(0, 5)).output.sizes(), (std::vector<int64_t>{0, 5, 12}));
  auto empty = tokens(2, 0).requires_grad_();
  const auto r = m(empty);
  EXPECT_EQ(r.output.sizes(), (std::vector<int64_t>{2, 0, 12}));
  EXPECT_EQ(torch::Tensor(r.weights).numel(), 0);
  r.output.sum().backward();
  // A context without tokens leaves nothing to attend to.
  const auto x = tokens(2, 3);
  EXPECT_TRUE(torch::equal(m(x, {.context = tokens(2, 0)}).output, of_nothing(m, {2, 3})));
  const auto strided = torch::randn({7, 12, 2}, torch::kFloat64).permute({2, 0, 1});
  EXPECT_FALSE(strided.is_contiguous());
  EXPECT_TRUE(torch::allclose(m(strided).output, m(strided.contiguous()).output, 1e-12, 1e-14));
}

TEST_P(MechanismContract, LivesAsAModule) {
  auto m = make();
  const auto x = tokens(2, 6);
  const auto want = m(x).output;
  // One of the same options, and one of the module's own.
  for (auto& another : {GetParam().make({}), m.another()}) {
    another->to(torch::kFloat64);
    load_state_dict(*another.ptr(), state_dict(*m.ptr()));
    another->eval();
    EXPECT_TRUE(torch::equal(AnyAttention(another)(x).output, want));
  }
  std::stringstream text;
  text << *m.ptr();
  EXPECT_NE(text.str().find("attzoo::" + name()), std::string::npos);
  EXPECT_NE(text.str().find("d_model=12"), std::string::npos);
  {
    torch::NoGradGuard no_grad;
    const auto r = m(x);
    EXPECT_FALSE(r.output.requires_grad());
    // Not the same bits: what stands around attention may sum in another order.
    EXPECT_TRUE(torch::allclose(r.output, want, 1e-12, 1e-14));
  }
  m->to(torch::kFloat32);
  EXPECT_EQ(m(x.to(torch::kFloat32)).output.scalar_type(), torch::kFloat32);
  GetParam().lives_as_a_module(m);
}

TEST_P(MechanismContract, ConstructorErrors) {
  const auto bad = [](const Change& change, std::vector<std::string> parts) {
    parts.push_back(name());
    expect_error([&] { GetParam().make(change); }, parts);
  };
  bad({.d_model = 0}, {"d_model", "0"});
  bad({.d_model = -4}, {"d_model", "-4"});
  bad({.input_dim = 0}, {"input_dim", "0"});
  bad({.dropout = 1.5}, {"dropout", "1.5"});
  bad({.dropout = -0.1}, {"dropout", "-0.1"});
  if (GetParam().has_temperature) {
    bad({.temperature = 0.0}, {"temperature", "0"});
    bad({.temperature = 1e-300}, {"temperature", "1e-300"});
    bad({.temperature = std::nan("")}, {"temperature", "nan"});
  }
  bad({.dropout = std::nan("")}, {"dropout", "nan"});
  bad({.d_model = int64_t{3} << 40}, {"d_model=3298534883328", "2^36"});
  bad({.input_dim = int64_t{1} << 40}, {"input_dim=1099511627776", "2^36"});
  if (GetParam().heads_divide) {
    bad({.num_heads = 5}, {"num_heads", "5", "12"});
    bad({.num_heads = 0}, {"num_heads", "0"});
    bad({.num_heads = -2}, {"num_heads", "-2"});
    if (GetParam().has_rope) bad({.num_heads = 4, .rope = true}, {"rope", "even", "3"});
  }
}

TEST_P(MechanismContract, ForwardErrors) {
  auto m = make(torch::kFloat32);
  const auto x = tokens(2, 6, torch::kFloat32);

  const auto bad = [&](const torch::Tensor& input, const AttentionInputs& in,
                       std::vector<std::string> parts) {
    parts.push_back(name());
    expect_error([&] { m(input, in); }, parts);
  };
  bad({}, {}, {"x", "undefined"});
  bad(x[0], {}, {"x", "[batch, seq, input_dim=12]", "[6, 12]"});
  bad(x.slice(2, 1), {}, {"x", "[2, 6, 11]"});
  bad(x.to(torch::kFloat64), {}, {"x", "Float", "Double"});
  bad(x.to(torch::kInt64), {}, {"x", "Long"});
  bad(x.to(torch::kMeta), {}, {"x", "device", "meta"});
  bad(x, {.context = x.slice(0, 1)}, {"context", "batch size 2", "[1, 6, 12]"});
  bad(x, {.context = x.slice(2, 1)}, {"context", "[2, 6, 11]"});
  bad(x.to_sparse(), {}, {"x", "dense", "Sparse"});
  bad(x, {.context = x.to_sparse()}, {"context", "dense", "Sparse"});
  bad(x, {.mask = torch::ones({6, 6}, torch::kBool).to_sparse()}, {"mask", "dense", "Sparse"});
  bad(x, {.key_padding_mask = torch::ones({2, 6}, torch::kBool).to_sparse()},
      {"key_padding_mask", "dense", "Sparse"});
  if (GetParam().has_rope && m.d_head % 2 == 0) {
    const auto rotated = GetParam().make({.rope = true});
    expect_error([&] { rotated(x, {.position_offset = std::numeric_limits<int64_t>::max()}); },
                 {"position_offset", "9223372036854775807"});
  }
  bad(x, {.mask = torch::ones({6, 6}, torch::kInt64)}, {"mask", "torch::kBool", "Long"});
  bad(x, {.mask = torch::ones({6}, torch::kBool)}, {"mask", "[6]", "key_padding_mask"});
  bad(x, {.mask = torch::ones({2, 6}, torch::kBool)}, {"mask", "[2, 6]", "key_padding_mask"});
  bad(x, {.mask = torch::ones({6, 7}, torch::kBool)}, {"mask", "[6, 7]"});
  bad(x, {.mask = torch::ones({3, 6, 6}, torch::kBool)}, {"mask", "[3, 6, 6]"});
  bad(x, {.mask = torch::ones({1, 1, 1, 6, 6}, torch::kBool)}, {"mask"});
  bad(x, {.mask = torch::ones({6, 6}, torch::dtype(torch::kBool).device(torch::kMeta))},
      {"mask", "meta"});
  bad(x, {.key_padding_mask = torch::ones({2, 6})}, {"key_padding_mask", "bool", "Float"});
  bad(x, {.key_padding_mask = torch::ones({6}, torch::kBool)},
      {"key_padding_mask", "[2, 6]", "[6]"});
  bad(x, {.key_padding_mask = torch::ones({2, 7}, torch::kBool)}, {"key_padding_mask", "[2, 7]"});
  if (!m.takes().positions) bad(x, {.position_offset = 3}, {"position_offset", "rope", "3"});
  if (!m.takes().global_attention) {
    bad(x, {.global_attention = torch::ones({6})}, {"global_attention"});
  }
}

/// Autocast runs a float32 module in bfloat16; float64 it leaves alone.
TEST_P(MechanismContract, Autocast) {
  auto m = make(torch::kFloat32);
  auto low = make(torch::kBFloat16), gold = make();
  const auto parameters = state_dict(*m.ptr());
  for (const auto& [name, value] : parameters) {
    torch::NoGradGuard no_grad;
    state_dict(*low.ptr()).at(name).copy_(value);
    state_dict(*gold.ptr()).at(name).copy_(value);
  }
  const auto x = tokens(2, 33, torch::kBFloat16);
  const auto want = gold(x.to(torch::kFloat64)).output, plain = low(x).output;
  const Autocast autocast;
  expect_within_rule(m(x.to(torch::kFloat32)).output, want, plain, 2, 33, name());
  expect_within_rule(m(x).output, want, plain, 2, 33, name());
  EXPECT_TRUE(torch::allclose(gold(x.to(torch::kFloat64)).output, want, 1e-10, 1e-12));
  expect_error([&] { gold(x); }, {name(), "Double", "BFloat16"});
  expect_error([&] { m(x.to(torch::kFloat64)); }, {name(), "Float", "Double"});
}

TEST_P(MechanismContract, WorksOnCuda) {
  if (!torch::cuda::is_available()) GTEST_SKIP() << "no CUDA device";
  auto m = make(torch::kFloat32);
  const auto x = tokens(2, 33, torch::kFloat32);
  const auto want = m(x, {.causal = true});
  m->to(torch::kCUDA);
  const auto got = m(x.to(torch::kCUDA), {.causal = true});
  EXPECT_TRUE(torch::allclose(got.output.cpu(), want.output, 1e-4, 1e-4));
  EXPECT_TRUE(torch::allclose(torch::Tensor(got.weights).cpu(), want.weights, 1e-4, 1e-4));
}

void expect_equivalent(const AnyAttention& special, const AnyAttention& general,
                       const AttentionInputs& inputs, int64_t n) {
  special->to(torch::kFloat64);
  general->to(torch::kFloat64);
  special->eval();
  general->eval();
  auto state = state_dict(*special.ptr());
  state.erase("slopes");
  load_state_dict(*general.ptr(), state);
  auto x = torch::randn({2, n, special.input_dim()}, torch::kFloat64).requires_grad_();
  auto general_inputs = inputs;
  general_inputs.global_attention = torch::Tensor();
  const auto a = special(x, inputs), b = general(x, general_inputs);
  EXPECT_TRUE(torch::allclose(a.output, b.output, 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(a.weights, b.weights, 1e-10, 1e-12));
  const auto grad = [&](const AttentionResult& r) {
    return torch::autograd::grad({r.output.square().sum()}, {x})[0];
  };
  EXPECT_TRUE(torch::allclose(grad(a), grad(b), 1e-10, 1e-12));
}

}  // namespace attzoo::testing
