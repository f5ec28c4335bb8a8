#include <attzoo/linformer.hpp>

#include <gtest/gtest.h>
#include <torch/serialize.h>
#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/grouped.hpp>
#include <attzoo/multi_head.hpp>

#include <cmath>
#include <sstream>

#include "support/documents_contract.hpp"
#include "support/error_rule.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing::linformer_test {
namespace {

constexpr auto kDouble = torch::kFloat64;

LinformerSelfAttentionOptions options(bool one_kv_head = false, bool share_kv = false) {
  return {.d_model = 12,
          .num_heads = 3,
          .seq_len = 14,
          .num_projected = 5,
          .one_kv_head = one_kv_head,
          .share_kv = share_kv,
          .input_dim = 10,
          .bias = true,
          .temperature = 0.7,
          .head_dim = 6,
          .out_bias = false};
}

LinformerSelfAttention make(const LinformerSelfAttentionOptions& o) {
  torch::manual_seed(3);
  LinformerSelfAttention m(o);
  m->to(kDouble);
  m->eval();
  return m;
}

std::vector<LinformerSelfAttentionOptions> all_options() {
  return {options(), options(true), options(false, true), options(true, true)};
}

/// Row by row, of one sequence: the sums over tokens, and the softmax of every head.
torch::Tensor by_definition(LinformerSelfAttention& m, const torch::Tensor& x,
                            const torch::Tensor& context) {
  const auto& o = m->options;
  const int64_t D = *o.head_dim, H = o.num_heads;
  const auto q = m->w_q(x), k = m->w_k(context), v = o.share_kv ? k : m->w_v(context);
  std::vector<torch::Tensor> keys, values;
  for (int64_t r = 0; r < o.num_projected; ++r) {
    auto key = torch::zeros({k.size(1)}, kDouble), value = key.clone();
    for (int64_t j = 0; j < context.size(0); ++j) {
      key = key + m->proj_k[j][r] * k[j];
      value = value + (o.share_kv ? m->proj_k : m->proj_v)[j][r] * v[j];
    }
    keys.push_back(key);
    values.push_back(value);
  }
  const auto K = torch::stack(keys), V = torch::stack(values);
  std::vector<torch::Tensor> rows;
  for (int64_t i = 0; i < x.size(0); ++i) {
    std::vector<torch::Tensor> heads;
    for (int64_t h = 0; h < H; ++h) {
      const int64_t own = o.one_kv_head ? 0 : h * D;
      const auto s = K.slice(1, own, own + D).matmul(q[i].slice(0, h * D, (h + 1) * D)) /
                     (std::sqrt(static_cast<double>(D)) * o.temperature);
      heads.push_back(torch::softmax(s, 0).matmul(V.slice(1, own, own + D)));
    }
    rows.push_back(m->w_o(torch::cat(heads)));
  }
  return torch::stack(rows);
}

TEST(Linformer, IsItsDefinition) {
  for (const auto& o : all_options()) {
    auto m = make(o);
    for (const auto& [L, S] : {std::pair{1, 1}, {14, 14}, {9, 9}, {20, 14}, {3, 8}}) {
      auto x = torch::randn({2, L, 10}, kDouble).requires_grad_();
      auto context = torch::randn({2, S, 10}, kDouble).requires_grad_();
      const auto got = m(x, {.context = context});
      const auto want =
          torch::stack({by_definition(m, x[0], context[0]), by_definition(m, x[1], context[1])});
      EXPECT_TRUE(torch::allclose(got.output, want, 1e-9, 1e-11)) << L << " " << S;
      auto leaves = m->parameters();
      leaves.push_back(x);
      leaves.push_back(context);
      const auto cotangent = torch::randn_like(want);
      const auto a = torch::autograd::grad({(got.output * cotangent).sum()}, leaves, {}, true),
                 b = torch::autograd::grad({(want * cotangent).sum()}, leaves, {}, true);
      for (size_t i = 0; i < a.size(); ++i) {
        EXPECT_TRUE(torch::allclose(a[i], b[i], 1e-8, 1e-10)) << i;
      }
      // The weights are those that the tokens' values get.
      const auto v = m->w_v(context).unflatten(2, {-1, 6}).transpose(1, 2);
      const auto heads = got.weights.tensor().matmul(v.expand({2, 3, S, 6}));
      EXPECT_TRUE(torch::allclose(m->w_o(heads.transpose(1, 2).flatten(2)), want, 1e-9, 1e-11));
    }
  }
}

/// A projection that changes nothing leaves attention itself, with its weights and its lse.
TEST(Linformer, IdentityIsMultiHeadAttention) {
  for (const bool one : {false, true}) {
    auto o = options(one);
    o.num_projected = o.seq_len;
    o.input_dim.reset();
    auto m = make(o);
    GroupedSelfAttention exact({.d_model = 12,
                                .num_query_heads = 3,
                                .num_kv_heads = one ? 1 : 3,
                                .bias = true,
                                .temperature = 0.7,
                                .head_dim = 6,
                                .out_bias = false});
    exact->to(kDouble);
    {
      const torch::NoGradGuard no_grad;
      m->proj_k.copy_(torch::eye(14, kDouble));
      m->proj_v.copy_(torch::eye(14, kDouble));
      for (const auto& p : exact->named_parameters()) {
        p.value().copy_(m->named_parameters()[p.key()]);
      }
    }
    const auto x = torch::randn({2, 14, 12}, kDouble);
    const auto got = m(x), want = exact(x);
    EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-11, 1e-12));
    EXPECT_TRUE(torch::allclose(got.weights.tensor(), want.weights.tensor(), 1e-11, 1e-12));
    EXPECT_TRUE(torch::allclose(got.weights.rows(2, 5), want.weights.rows(2, 5), 1e-11, 1e-12));
    EXPECT_TRUE(torch::allclose(got.lse, want.lse, 1e-11, 1e-12));
  }
}

TEST(Linformer, PaddingChangesNothing) {
  for (const auto& o : all_options()) {
    auto m = make(o);
    const std::vector<int64_t> lengths{9, 4, 1};
    auto x = torch::randn({3, 9, 10}, kDouble);
    x[1][7][0] = std::nan("");  // what is padded is not looked at
    auto leaf = x.clone().requires_grad_();
    const auto padded = m(leaf, {.key_padding_mask = create_padding_mask(lengths)});
    auto sum = torch::zeros({}, kDouble);
    for (int64_t b = 0; b < 3; ++b) {
      const auto n = lengths[static_cast<size_t>(b)];
      const auto alone = m(x.slice(0, b, b + 1).slice(1, 0, n));
      const auto own = padded.output.slice(0, b, b + 1).slice(1, 0, n);
      EXPECT_TRUE(torch::allclose(own, alone.output, 1e-10, 1e-12));
      EXPECT_TRUE(torch::allclose(padded.weights.tensor()[b].slice(1, 0, n).slice(2, 0, n),
                                  alone.weights.tensor()[0], 1e-10, 1e-12));
      EXPECT_EQ(padded.weights.tensor()[b].slice(1, 0, n).slice(2, n).abs().sum().item<double>(),
                0);
      sum = sum + own.sum();
    }
    sum.backward();
    EXPECT_TRUE(leaf.grad()[0].isfinite().all().item<bool>());
  }
}

TEST(Linformer, DocumentsAreAlone) {
  for (const auto& o : all_options()) {
    auto longer = o;
    longer.seq_len = 64;
    auto m = make(longer);
    const auto x = torch::randn({2, 13, 10}, kDouble);
    const auto of_rows = torch::tensor(
        {{0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2}, {0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}});
    auto real = torch::ones({2, 13}, torch::kBool);
    real[1][6] = false;
    for (const auto& ids : {of_rows, of_rows[0], of_rows.slice(0, 0, 1)}) {
      const auto got = m(x, {.key_padding_mask = real, .documents = {.ids = ids}});
      const auto w = got.weights.tensor();
      EXPECT_TRUE(torch::allclose(w.slice(2, 3, 11), got.weights.rows(3, 11), 1e-11, 1e-13));
      EXPECT_EQ(got.weights.rows(4, 4).sizes(), (std::vector<int64_t>{2, 3, 0, 13}));
      for (int64_t b = 0; b < 2; ++b) {
        const auto row = ids.dim() == 1 ? ids : ids[std::min(b, ids.size(0) - 1)];
        for (int64_t d = 0; d < 3; ++d) {
          const auto at = (row == d).nonzero().flatten();
          if (at.numel() == 0) continue;
          const auto own = [&](const torch::Tensor& t) { return t.index_select(1, at); };
          const auto alone =
              m(own(x.slice(0, b, b + 1)), {.key_padding_mask = own(real.slice(0, b, b + 1))});
          EXPECT_TRUE(
              torch::allclose(own(got.output.slice(0, b, b + 1)), alone.output, 1e-10, 1e-12));
          EXPECT_TRUE(torch::allclose(got.lse[b].index_select(1, at), alone.lse[0], 1e-10, 1e-12));
          EXPECT_TRUE(torch::allclose(w[b].index_select(1, at).index_select(2, at),
                                      alone.weights.tensor()[0], 1e-10, 1e-12));
        }
        const auto other = row.unsqueeze(1) != row.unsqueeze(0);
        EXPECT_EQ((w[b] * other).abs().sum().item<double>(), 0);
      }
    }
  }
}

TEST(Linformer, ContextCaches) {
  auto m = make(options());
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({2, 3, 10}, kDouble), context = torch::randn({2, 9, 10}, kDouble);
  const auto real = create_padding_mask(std::vector<int64_t>{9, 6});
  const auto cache = m->make_context_cache(context, real);
  EXPECT_TRUE(torch::allclose(m(x, {.cache = cache}).output,
                              m(x, {.key_padding_mask = real, .context = context}).output, 1e-11,
                              1e-12));
}

TEST(Linformer, LivesAsAModule) {
  for (const auto& o : all_options()) {
    auto m = make(o);
    const auto x = torch::randn({2, 6, 10}, kDouble);
    const auto want = m(x).output;
    const auto names = m->named_parameters();
    EXPECT_EQ(names.contains("proj_v"), !o.share_kv);
    EXPECT_EQ(names.contains("w_v.weight"), !o.share_kv);
    EXPECT_EQ(names["w_k.weight"].size(0), o.one_kv_head ? 6 : 18);
    const auto copy = std::dynamic_pointer_cast<LinformerSelfAttentionImpl>(m->clone());
    EXPECT_TRUE(torch::equal(copy->forward(x).output, want));
    EXPECT_FALSE(copy->w_v->weight.is_same(m->w_v->weight));
    std::stringstream stream;
    torch::save(m, stream);
    LinformerSelfAttention loaded(m->get_config());
    loaded->to(kDouble);
    torch::load(loaded, stream);
    EXPECT_TRUE(torch::equal(loaded(x).output, want));
  }
  auto m = make(options());
  EXPECT_LE(m->proj_k.abs().max().item<double>(), 1 / std::sqrt(5.0));
  EXPECT_EQ(m(torch::randn({0, 6, 10}, kDouble)).output.sizes(), (std::vector<int64_t>{0, 6, 12}));
  EXPECT_EQ(m(torch::randn({2, 0, 10}, kDouble)).output.sizes(), (std::vector<int64_t>{2, 0, 12}));
}

TEST(Linformer, DropoutIsOfTheWeights) {
  auto o = options();
  o.dropout = 0.5;
  auto m = make(o);
  m->train();
  const auto x = torch::randn({2, 14, 10}, kDouble);
  torch::manual_seed(1);
  const auto a = m(x).output, b = m(x).output;
  torch::manual_seed(1);
  EXPECT_TRUE(torch::equal(a, m(x).output));
  EXPECT_FALSE(torch::equal(a, b));
}

TEST(Linformer, HalfTypes) {
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    auto o = options();
    o.seq_len = 300;
    LinformerSelfAttention low(o), gold(o);
    low->to(dtype);
    gold->to(kDouble);
    const torch::NoGradGuard no_grad;
    for (const auto& p : low->named_parameters()) {
      gold->named_parameters()[p.key()].copy_(p.value());
    }
    const auto x = torch::randn({1, 300, 10}).to(dtype);
    // Tensor operations in the dtype of the module.
    const auto heads = [](const torch::Tensor& t) {
      return t.unflatten(2, {3, -1}).transpose(1, 2);
    };
    const auto k = heads(torch::matmul(low->proj_k.t(), low->w_k(x))),
               v = heads(torch::matmul(low->proj_v.t(), low->w_v(x)));
    const auto s = torch::matmul(heads(low->w_q(x)), k.transpose(-2, -1)) / (std::sqrt(6.0) * 0.7);
    const auto plain = low->w_o(torch::matmul(s.softmax(-1), v).transpose(1, 2).flatten(2));
    const auto got = low(x).output;
    EXPECT_EQ(got.scalar_type(), dtype);
    expect_within_rule(got, gold(x.to(kDouble)).output, plain, 2, 300, c10::toString(dtype));
  }
}

TEST(Linformer, Errors) {
  const auto bad = [](auto change, std::vector<std::string> parts) {
    auto o = options();
    change(o);
    parts.push_back("LinformerSelfAttention");
    expect_error([&] { LinformerSelfAttention m(o); }, parts);
  };
  bad([](auto& o) { o.seq_len = 0; }, {"seq_len", "0"});
  bad([](auto& o) { o.num_projected = -2; }, {"num_projected", "-2"});
  bad([](auto& o) { o.seq_len = int64_t{1} << 40; }, {"proj_k", "1099511627776"});
  auto m = make(options());
  const auto x = torch::randn({2, 6, 10}, kDouble);
  const std::string name = "LinformerSelfAttention";
  expect_error([&] { m(torch::randn({1, 15, 10}, kDouble)); }, {name, "seq_len", "14", "15"});
  expect_error(
      [&] {
        m(x, {.mask = torch::ones({6, 6}, torch::kBool)});
      },
      {name, "mask", "key_padding_mask"});
  expect_error([&] { m(x, {.causal = true}); }, {name, "causal"});
  expect_error([&] { m->make_cache(1); }, {name, "cache", "causal"});
  m->options.share_kv = true;
  expect_error([&] { m(x); }, {name, "share_kv"});
}

}  // namespace
}  // namespace attzoo::testing::linformer_test
