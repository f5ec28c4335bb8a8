#include <attzoo/nystrom.hpp>

#include <gtest/gtest.h>
#include <torch/serialize.h>
#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/multi_head.hpp>

#include <cmath>
#include <sstream>

#include "support/documents_contract.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing::nystrom_test {
namespace {

constexpr auto kDouble = torch::kFloat64;

/// [first row, one behind the last) of m segments of n rows, the longer ones first.
std::vector<std::pair<int64_t, int64_t>> segments(int64_t n, int64_t m) {
  std::vector<std::pair<int64_t, int64_t>> all;
  for (int64_t i = 0, at = 0; i < m; ++i) {
    const int64_t size = n / m + (i < n % m ? 1 : 0);
    all.emplace_back(at, at + size);
    at += size;
  }
  return all;
}

torch::Tensor means(const torch::Tensor& t, int64_t m) {  // [n, D] -> [m, D]
  std::vector<torch::Tensor> rows;
  for (const auto& [begin, end] : segments(t.size(0), m))
    rows.push_back(t.slice(0, begin, end).mean(0));
  return torch::stack(rows);
}

/// Of one head of one sequence, everything n x n.
torch::Tensor by_definition(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                            int64_t m, int64_t steps, double scale, double first = 0) {
  if (q.size(0) <= m || k.size(0) <= m)
    return torch::softmax(scale * q.matmul(k.t()), -1).matmul(v);
  const auto ql = means(q, m), kl = means(k, m);
  const auto A = torch::softmax(scale * ql.matmul(kl.t()), -1);
  auto Z = A.t() / (first > 0 ? torch::tensor(first, kDouble) : A.sum(0).max());
  const auto I = torch::eye(m, kDouble);
  for (int64_t i = 0; i < steps; ++i) {
    const auto AZ = A.matmul(Z);
    Z = 0.25 * Z.matmul(13 * I - AZ.matmul(15 * I - AZ.matmul(7 * I - AZ)));
  }
  return torch::softmax(scale * q.matmul(kl.t()), -1)
      .matmul(Z)
      .matmul(torch::softmax(scale * ql.matmul(k.t()), -1))
      .matmul(v);
}

TEST(NystromAttention, IsItsDefinition) {
  torch::manual_seed(4);
  for (const auto& [L, S, m] : {std::tuple{12, 12, 4},
                                {13, 13, 4},
                                {15, 15, 4},
                                {4, 4, 4},
                                {3, 3, 4},
                                {5, 5, 4},
                                {9, 14, 3},
                                {14, 3, 4},
                                {130, 130, 7}}) {
    const auto leaf = [](int64_t n, int64_t size) {
      return torch::randn({2, 3, n, size}, kDouble).requires_grad_();
    };
    const auto q = leaf(L, 6), k = leaf(S, 6), v = leaf(S, 5);
    const NystromAttentionOptions o{.num_landmarks = m, .inverse_steps = 4, .scale = 0.6};
    const auto got = nystrom_attention(q, k, v, o);
    std::vector<torch::Tensor> heads;
    for (int64_t i = 0; i < 6; ++i) {
      heads.push_back(by_definition(q[i / 3][i % 3], k[i / 3][i % 3], v[i / 3][i % 3], m, 4, 0.6));
    }
    const auto want = torch::stack(heads).view({2, 3, L, 5});
    EXPECT_TRUE(torch::allclose(got.output, want, 1e-9, 1e-10)) << L << " " << S << " " << m;
    EXPECT_TRUE(torch::allclose(got.weights.tensor().matmul(v), want, 1e-9, 1e-10));
    EXPECT_TRUE(
        torch::allclose(got.weights.rows(1, 3).matmul(v), want.slice(2, 1, 3), 1e-9, 1e-10));
    const auto cotangent = torch::randn_like(want);
    const auto a = torch::autograd::grad({(got.output * cotangent).sum()}, {q, k, v}, {}, true),
               b = torch::autograd::grad({(want * cotangent).sum()}, {q, k, v}, {}, true);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(torch::allclose(a[i], b[i], 1e-7, 1e-8)) << L << " " << S << " gradient " << i;
    }
  }
}

TEST(NystromAttention, BatchInverseBeginsByOneNumber) {
  torch::manual_seed(5);
  const auto q = torch::randn({2, 2, 12, 4}, kDouble), k = torch::randn({2, 2, 12, 4}, kDouble),
             v = torch::randn({2, 2, 12, 4}, kDouble);
  double first = 0;
  for (int64_t i = 0; i < 4; ++i) {
    const auto A =
        torch::softmax(means(q[i / 2][i % 2], 3).matmul(means(k[i / 2][i % 2], 3).t()) / 2, -1);
    first = std::max(first, A.sum(0).max().item<double>());
  }
  const auto got =
      nystrom_attention(q, k, v, {.num_landmarks = 3, .inverse_steps = 2, .batch_inverse = true});
  for (int64_t i = 0; i < 4; ++i) {
    const auto want =
        by_definition(q[i / 2][i % 2], k[i / 2][i % 2], v[i / 2][i % 2], 3, 2, 0.5, first);
    EXPECT_TRUE(torch::allclose(got.output[i / 2][i % 2], want, 1e-10, 1e-11));
  }
}

TEST(NystromAttention, InverseConverges) {
  torch::manual_seed(6);
  const auto A = torch::softmax(torch::randn({2, 5, 5}, kDouble), -1);
  const auto exact = torch::linalg_pinv(A);
  double before = INFINITY;
  for (const int64_t steps : {2, 4, 6, 20}) {
    const double error = (core::pseudo_inverse(A, steps, false) - exact).norm().item<double>();
    EXPECT_LT(error, before);
    before = error;
  }
  EXPECT_LT(before, 1e-6 * exact.norm().item<double>());
}

NystromSelfAttentionOptions options(bool conv = false) {
  NystromSelfAttentionOptions o{
      .d_model = 12, .num_heads = 3, .num_landmarks = 4, .input_dim = 10, .bias = true};
  if (conv) o.conv_kernel_size = 5;
  return o;
}

NystromSelfAttention make(const NystromSelfAttentionOptions& o) {
  torch::manual_seed(3);
  NystromSelfAttention m(o);
  m->to(kDouble);
  m->eval();
  return m;
}

TEST(Nystrom, WithAsManyLandmarksIsMultiHeadAttention) {
  auto o = options();
  o.num_landmarks = 9;
  o.temperature = 0.8;
  auto m = make(o);
  MultiHeadSelfAttention exact(
      {.d_model = 12, .num_heads = 3, .input_dim = 10, .bias = true, .temperature = 0.8});
  exact->to(kDouble);
  const torch::NoGradGuard no_grad;
  for (const auto& p : exact->named_parameters()) p.value().copy_(m->named_parameters()[p.key()]);
  for (const int64_t n : {9, 5}) {
    const auto x = torch::randn({2, n, 10}, kDouble);
    const auto real = create_padding_mask(std::vector<int64_t>{n, 3}, n);
    const auto got = m(x, {.key_padding_mask = real}), want = exact(x, {.key_padding_mask = real});
    EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-11, 1e-12));
    EXPECT_TRUE(torch::allclose(got.weights.tensor(), want.weights.tensor(), 1e-11, 1e-12));
    EXPECT_TRUE(torch::allclose(got.lse, want.lse, 1e-11, 1e-12));
  }
}

TEST(Nystrom, ConvolutionIsTorchs) {
  for (const int64_t size : {1, 3, 65, 131}) {
    auto o = options();
    o.conv_kernel_size = size;
    auto m = make(o);
    auto plain = make(options());
    {
      const torch::NoGradGuard no_grad;
      for (const auto& p : plain->named_parameters()) {
        p.value().copy_(m->named_parameters()[p.key()]);
      }
    }
    const auto x = torch::randn({2, 40, 10}, kDouble);
    const auto v = m->w_v(x).unflatten(2, {3, 4}).transpose(1, 2);
    const auto more = torch::conv2d(v, m->conv->weight, {}, {1, 1}, {size / 2, 0}, {1, 1}, 3);
    const auto want =
        plain(x).output + torch::matmul(more.transpose(1, 2).flatten(2), m->w_o->weight.t());
    const auto got = m(x).output;
    EXPECT_TRUE(torch::allclose(got, want, 1e-10, 1e-11)) << size;
    const auto a = torch::autograd::grad({got.square().sum()}, {m->conv->weight, m->w_v->weight}),
               b = torch::autograd::grad({want.square().sum()}, {m->conv->weight, m->w_v->weight},
                                         {}, false, false, true);
    EXPECT_TRUE(torch::allclose(a[0], b[0], 1e-8, 1e-9)) << size;
  }
}

/// A padded sequence is itself: its segments are those of its real tokens, wherever padding is.
TEST(Nystrom, PaddingChangesNothing) {
  for (const bool conv : {false, true}) {
    auto m = make(options(conv));
    const std::vector<int64_t> lengths{13, 9, 6};
    for (const bool left : {false, true}) {
      auto x = torch::randn({3, 13, 10}, kDouble);
      auto real = create_padding_mask(lengths);
      if (left) real = real.flip(1);
      x[1][left ? 0 : 12][0] = std::nan("");  // what is padded is not looked at
      auto leaf = x.clone().requires_grad_();
      const auto padded = m(leaf, {.key_padding_mask = real}).output;
      auto sum = torch::zeros({}, kDouble);
      for (int64_t b = 0; b < 3; ++b) {
        const auto n = lengths[static_cast<size_t>(b)], at = left ? 13 - n : 0;
        const auto alone = m(x.slice(0, b, b + 1).slice(1, at, at + n)).output;
        const auto own = padded.slice(0, b, b + 1).slice(1, at, at + n);
        EXPECT_TRUE(torch::allclose(own, alone, 1e-9, 1e-11)) << b << left;
        sum = sum + own.square().sum();
      }
      sum.backward();
      EXPECT_TRUE(leaf.grad()[0].isfinite().all().item<bool>());
    }
  }
}

/// No more real tokens than landmarks: they are the landmarks, and Z is nearly the inverse.
TEST(Nystrom, ShortPaddedSequences) {
  auto o = options();
  o.inverse_steps = 40;
  auto m = make(o);
  auto x = torch::randn({3, 13, 10}, kDouble).requires_grad_();
  const auto real = create_padding_mask(std::vector<int64_t>{13, 3, 0}, 13);
  const auto padded = m(x, {.key_padding_mask = real}).output;
  const auto alone = m(x.slice(0, 1, 2).slice(1, 0, 3)).output;
  EXPECT_TRUE(torch::allclose(padded.slice(0, 1, 2).slice(1, 0, 3), alone, 1e-6, 1e-7));
  EXPECT_TRUE(torch::allclose(padded[2], m->w_o->bias.expand({13, 12})));
  padded.square().sum().backward();
  EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
}

/// As transformers does it: landmarks and values of the convolution count padding.
TEST(Nystrom, CountsPaddingIfAsked) {
  auto o = options();
  o.count_padding = true;
  auto m = make(o);
  const auto x = torch::randn({2, 12, 10}, kDouble);
  const auto real = create_padding_mask(std::vector<int64_t>{12, 7});
  const auto heads = [](const torch::Tensor& t) { return t.unflatten(1, {3, 4}).transpose(0, 1); };
  const auto got = m(x, {.key_padding_mask = real}).output;
  for (int64_t b = 0; b < 2; ++b) {
    const auto q = heads(m->w_q(x[b])), k = heads(m->w_k(x[b])), v = heads(m->w_v(x[b]));
    std::vector<torch::Tensor> outputs;
    for (int64_t h = 0; h < 3; ++h) {
      const auto ql = means(q[h], 4), kl = means(k[h], 4);
      const auto A = torch::softmax(ql.matmul(kl.t()) / 2, -1);
      const auto s = (ql.matmul(k[h].t()) / 2).masked_fill(real[b].logical_not(), -INFINITY);
      outputs.push_back(torch::softmax(q[h].matmul(kl.t()) / 2, -1)
                            .matmul(core::pseudo_inverse(A, 6, false))
                            .matmul(torch::softmax(s, -1))
                            .matmul(v[h]));
    }
    const auto want = m->w_o(torch::stack(outputs, 1).flatten(1));
    EXPECT_TRUE(torch::allclose(got[b], want, 1e-9, 1e-10));
  }
}

TEST(Nystrom, DocumentsAreAlone) {
  for (const bool conv : {false, true}) {
    auto m = make(options(conv));
    const auto x = torch::randn({2, 23, 10}, kDouble);
    const auto first = torch::cat({torch::zeros(11), torch::ones(9), torch::full(3, 2.0)});
    const auto second = torch::cat({torch::zeros(2), torch::ones(21)});
    const auto ids = torch::stack({first, second}).to(torch::kInt64);
    auto real = torch::ones({2, 23}, torch::kBool);
    real[1][7] = false;
    const auto got = m(x, {.key_padding_mask = real, .documents = {.ids = ids}});
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t d = 0; d < 3 - b; ++d) {
        const auto at = (ids[b] == d).nonzero().flatten();
        const auto own = [&](const torch::Tensor& t) {
          return t.slice(0, b, b + 1).index_select(1, at);
        };
        const auto alone = m(own(x), {.key_padding_mask = own(real)});
        EXPECT_TRUE(torch::allclose(own(got.output), alone.output, 1e-9, 1e-11)) << b << d;
        EXPECT_TRUE(torch::allclose(got.weights.tensor()[b].index_select(1, at).index_select(2, at),
                                    alone.weights.tensor()[0], 1e-9, 1e-11));
      }
    }
  }
}

TEST(Nystrom, Gradients) {
  auto m = make(options(true));
  auto x = torch::randn({2, 9, 10}, kDouble).requires_grad_();
  Tensors leaves{x};
  for (const auto& p : m->named_parameters()) leaves.push_back(p.value());
  const auto cotangent = torch::randn({2, 9, 12}, kDouble);
  const auto real = create_padding_mask(std::vector<int64_t>{9, 7});
  gradcheck([&] { return (m(x, {.key_padding_mask = real}).output * cotangent).sum(); }, leaves,
            "nystrom");
}

TEST(Nystrom, ContextCaches) {
  auto m = make(options());
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({2, 7, 10}, kDouble), context = torch::randn({2, 11, 10}, kDouble);
  const auto real = create_padding_mask(std::vector<int64_t>{11, 6});
  const auto cache = m->make_context_cache(context, real);
  EXPECT_TRUE(torch::allclose(m(x, {.cache = cache}).output,
                              m(x, {.key_padding_mask = real, .context = context}).output, 1e-11,
                              1e-12));
}

TEST(Nystrom, KeepsHalfTypes) {
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    NystromSelfAttention low({.d_model = 16, .num_heads = 2, .num_landmarks = 8}),
        gold(low->get_config());
    low->to(dtype);
    gold->to(kDouble);
    const torch::NoGradGuard no_grad;
    for (const auto& p : low->named_parameters()) {
      gold->named_parameters()[p.key()].copy_(p.value());
    }
    const auto x = torch::randn({1, 500, 16}).to(dtype);
    const auto got = low(x);
    EXPECT_EQ(got.output.scalar_type(), dtype);
    EXPECT_EQ(got.weights.rows(0, 3).scalar_type(), dtype);
    EXPECT_TRUE(got.output.isfinite().all().item<bool>());
  }
}

TEST(Nystrom, LivesAsAModule) {
  auto m = make(options(true));
  const auto x = torch::randn({2, 11, 10}, kDouble);
  const auto want = m(x).output;
  EXPECT_EQ(m->named_parameters()["conv.weight"].sizes(), (std::vector<int64_t>{3, 1, 5, 1}));
  const auto copy = std::dynamic_pointer_cast<NystromSelfAttentionImpl>(m->clone());
  EXPECT_TRUE(torch::equal(copy->forward(x).output, want));
  std::stringstream stream;
  torch::save(m, stream);
  NystromSelfAttention loaded(m->get_config());
  loaded->to(kDouble);
  torch::load(loaded, stream);
  EXPECT_TRUE(torch::equal(loaded(x).output, want));
  EXPECT_EQ(m(torch::randn({0, 6, 10}, kDouble)).output.sizes(), (std::vector<int64_t>{0, 6, 12}));
  EXPECT_EQ(m(torch::randn({2, 0, 10}, kDouble)).output.sizes(), (std::vector<int64_t>{2, 0, 12}));
}

TEST(Nystrom, Errors) {
  const auto bad = [](auto change, std::vector<std::string> parts) {
    auto o = options();
    change(o);
    parts.push_back("NystromSelfAttention");
    expect_error([&] { NystromSelfAttention m(o); }, parts);
  };
  bad([](auto& o) { o.num_landmarks = 0; }, {"num_landmarks", "0"});
  bad([](auto& o) { o.inverse_steps = -1; }, {"inverse_steps", "-1"});
  bad([](auto& o) { o.conv_kernel_size = 4; }, {"conv_kernel_size", "odd", "4"});
  bad([](auto& o) { o.conv_kernel_size = -3; }, {"conv_kernel_size", "-3"});
  auto m = make(options(true));
  const auto x = torch::randn({2, 6, 10}, kDouble);
  const std::string name = "NystromSelfAttention";
  expect_error(
      [&] {
        m(x, {.mask = torch::ones({6, 6}, torch::kBool)});
      },
      {name, "mask", "key_padding_mask"});
  expect_error([&] { m(x, {.causal = true}); }, {name, "causal"});
  expect_error([&] { m(x, {.context = x}); }, {name, "context", "conv_kernel_size"});
  expect_error([&] { m->make_cache(1); }, {name, "cache", "causal"});
  const auto q = torch::randn({1, 2, 7, 4});
  expect_error([&] { nystrom_attention(q, q, q, {.num_landmarks = 0}); },
               {"nystrom_attention", "num_landmarks", "0"});
  expect_error([&] { nystrom_attention(q, q, q, {.inverse_steps = -2}); },
               {"nystrom_attention", "inverse_steps", "-2"});
  expect_error([&] { nystrom_attention(q, q.slice(1, 1), q); }, {"nystrom_attention", "heads"});
  expect_error(
      [&] {
        nystrom_attention(q, q, q, {.key_padding_mask = torch::ones({1, 4}, torch::kBool)});
      },
      {"nystrom_attention", "key_padding_mask", "[1, 4]"});
}

}  // namespace
}  // namespace attzoo::testing::nystrom_test
