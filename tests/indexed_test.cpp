#include <torch/optim/adam.h>
#include <attzoo/indexed.hpp>

#include <algorithm>
#include <cmath>
#include <vector>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::indexed_test {
namespace {

IndexedSelfAttentionOptions small(int64_t top_k) {
  return {.d_model = 12,
          .num_heads = 3,
          .top_k = top_k,
          .index_heads = 2,
          .index_dim = 6,
          .dropout = 0,
          .bias = true};
}

/// Every key is chosen: the contract is that of multi-head attention.
struct AllTraits : PlainTraits {
  using Module = IndexedSelfAttention;
  static IndexedSelfAttentionOptions options() { return small(2048); }
};
INSTANTIATE_TEST_SUITE_P(Indexed, MechanismContract, mechanism<AllTraits>());

/// Who attends to whom by the definition, bool [B, L, S]: the best of `allowed` keys, row by row.
torch::Tensor chosen_pairs(IndexedSelfAttention& m, const torch::Tensor& x,
                           const torch::Tensor& context, const torch::Tensor& allowed) {
  const torch::NoGradGuard no_grad;
  const auto& o = m->options;
  auto q = split_heads(m->w_q_index(x), o.index_heads), k = m->w_k_index(context).unsqueeze(1);
  if (o.rope) q = apply_rope(q, *o.rope.options()), k = apply_rope(k, *o.rope.options());
  const auto w = m->w_h_index(x).transpose(1, 2).unsqueeze(-1) / std::sqrt(1.0 * o.index_heads);
  const auto s = (torch::relu(torch::matmul(q, k.mT()) / std::sqrt(1.0 * o.index_dim)) * w).sum(1);
  const auto may = allowed.expand_as(s);
  auto pairs = torch::zeros_like(may);
  for (int64_t b = 0; b < s.size(0); ++b) {
    for (int64_t i = 0; i < s.size(1); ++i) {
      std::vector<std::pair<double, int64_t>> keys;
      for (int64_t j = 0; j < s.size(2); ++j) {
        if (may[b][i][j].item<bool>()) keys.emplace_back(s[b][i][j].item<double>(), j);
      }
      std::sort(keys.rbegin(), keys.rend());
      keys.resize(std::min(keys.size(), static_cast<size_t>(o.top_k)));
      for (const auto& [score, j] : keys) pairs[b][i][j] = true;
    }
  }
  return pairs;
}

torch::Tensor triangle(int64_t n) { return torch::ones({n, n}, torch::kBool).tril(); }

/// Of the same weights, and others that the loader skips.
MultiHeadSelfAttention dense_twin(IndexedSelfAttention& m) {
  MultiHeadSelfAttention dense(
      {.d_model = 12, .num_heads = 3, .dropout = 0, .bias = true, .rope = m->options.rope});
  dense->to(torch::kFloat64);
  auto state = state_dict(*m);
  std::map<std::string, torch::Tensor> own;
  for (const auto& [name, t] : state_dict(*dense)) own[name] = state.at(name);
  load_state_dict(*dense, own);
  return dense;
}

TEST(Indexed, IsAttentionToItsBestKeys) {
  torch::manual_seed(1);
  auto options = small(5);
  for (const bool rope : {false, true}) {
    options.rope = rope;
    IndexedSelfAttention m(options);
    m->to(torch::kFloat64);
    auto dense = dense_twin(m);
    auto x = torch::randn({2, 23, 12}, torch::kFloat64).requires_grad_();
    const auto real = create_padding_mask(std::vector<int64_t>{23, 17});
    const auto own = torch::rand({2, 23, 23}) < 0.7;
    const auto score = torch::randn({2, 3, 23, 23}, torch::kFloat64);
    const auto all = torch::ones({23, 23}, torch::kBool);
    struct Try {
      AttentionInputs in;
      torch::Tensor allowed;
    };
    for (const auto& [in, allowed] : std::vector<Try>{
             {{}, all},
             {{.causal = true}, triangle(23)},
             {{.key_padding_mask = real, .causal = true}, triangle(23) & real.unsqueeze(1)},
             {{.mask = own}, own},
             {{.mask = score}, all},
             {{.mask = torch::zeros({2, 23, 23}).masked_fill(~own, -INFINITY)}, own},
             {{.causal = true, .pattern = window(9, 0)}, triangle(23).triu(-9)}}) {
      const auto pairs = chosen_pairs(m, x, x, allowed);
      const auto got = m(x, in);
      auto same = in;
      same.pattern = mask_tensor(pairs);
      const auto want = dense(x, same);
      EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-10, 1e-12));
      EXPECT_TRUE(torch::allclose(got.weights, want.weights, 1e-10, 1e-12));
      EXPECT_TRUE(torch::allclose(got.lse, want.lse, 1e-10, 1e-12));
      const auto cotangent = torch::randn_like(want.output);
      const auto grad = [&](const torch::Tensor& y, const torch::Tensor& w) {
        return torch::autograd::grad({(y * cotangent).sum()}, {x, w});
      };
      const auto a = grad(got.output, m->w_k->weight), b = grad(want.output, dense->w_k->weight);
      EXPECT_TRUE(torch::allclose(a[0], b[0], 1e-9, 1e-11));
      EXPECT_TRUE(torch::allclose(a[1], b[1], 1e-9, 1e-11));
    }
    const auto context = torch::randn({2, 9, 12}, torch::kFloat64);
    const auto pairs = chosen_pairs(m, x, context, torch::ones({23, 9}, torch::kBool));
    const auto want = dense(x, {.context = context, .pattern = mask_tensor(pairs)}).output;
    EXPECT_TRUE(torch::allclose(m(x, {.context = context}).output, want, 1e-10, 1e-12));
    const torch::NoGradGuard no_grad;
    const auto cache = m->make_context_cache(context);
    EXPECT_TRUE(torch::allclose(m(x, {.cache = cache}).output, want, 1e-10, 1e-12));
  }
}

TEST(Indexed, WithAllKeysItIsGroupedAttention) {
  torch::manual_seed(5);
  auto options = small(24);
  options.num_heads = 6;
  options.num_kv_heads = 2;
  IndexedSelfAttention m(options);
  GroupedSelfAttention dense(
      {.d_model = 12, .num_query_heads = 6, .num_kv_heads = 2, .dropout = 0, .bias = true});
  auto state = state_dict(*m);
  for (const char* of_indexer : {"w_q_index.weight", "w_k_index.weight", "w_h_index.weight"}) {
    EXPECT_EQ(state.erase(of_indexer), 1U);
  }
  load_state_dict(*dense, state);
  const auto x = torch::randn({2, 24, 12});
  EXPECT_TRUE(torch::equal(m(x).output, dense(x).output));
  EXPECT_TRUE(torch::equal(m(x, {.causal = true}).output, dense(x, {.causal = true}).output));
}

TEST(Indexed, DocumentsAndCaches) {
  torch::manual_seed(2);
  auto options = small(4);
  options.rope = true;
  IndexedSelfAttention m(options);
  expect_packs(m, "indexed");
  expect_goes_on_as_alone(m, "indexed");
  m->to(torch::kFloat64);
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({2, 40, 12}, torch::kFloat64);
  const auto want = m(x, {.causal = true}).output;
  auto cache = m->make_cache(2, 40);
  for (int64_t at = 0, end = 13; at < 40; at = end, end = std::min<int64_t>(40, end + 1 + at % 3)) {
    const auto got = m(x.slice(1, at, end), {.causal = true, .cache = cache}).output;
    EXPECT_TRUE(torch::allclose(got, want.slice(1, at, end), 1e-10, 1e-12)) << at;
  }
  cache.truncate(20);
  auto copy = cache.clone();
  copy.reorder(torch::tensor({1, 0}));
  const auto next = x.slice(1, 20, 24);
  EXPECT_TRUE(torch::allclose(m(next, {.causal = true, .cache = cache}).output,
                              want.slice(1, 20, 24), 1e-10, 1e-12));
  EXPECT_TRUE(torch::allclose(m(next.flip(0), {.causal = true, .cache = copy}).output,
                              want.slice(1, 20, 24).flip(0), 1e-10, 1e-12));
}

TEST(Indexed, OnlyItsLossReachesTheIndexer) {
  torch::manual_seed(3);
  IndexedSelfAttention m(small(4));
  m->to(torch::kFloat64);
  auto x = torch::randn({2, 15, 12}, torch::kFloat64).requires_grad_();
  const auto index = [&] {
    return std::vector<torch::Tensor>{m->w_q_index->weight, m->w_k_index->weight,
                                      m->w_h_index->weight};
  };
  const auto of = [&](const torch::Tensor& y, const std::vector<torch::Tensor>& leaves) {
    return torch::autograd::grad({y.sum()}, leaves, {}, true, false, true);
  };
  const std::vector<torch::Tensor> others{x, m->w_q->weight, m->w_v->weight};
  for (const int64_t top : {4, 15}) {
    m->options.top_k = top;
    const auto [result, loss] = m->forward_with_loss(x, {.causal = true});
    EXPECT_TRUE(torch::equal(result.output, m(x, {.causal = true}).output));
    EXPECT_EQ(loss.sizes(), (std::vector<int64_t>{2, 15}));
    EXPECT_TRUE((loss > -1e-12).all().item<bool>());
    EXPECT_TRUE((loss.select(1, 0).abs() < 1e-12).all().item<bool>());  // one key
    for (const auto& g : of(result.output, index())) EXPECT_FALSE(g.defined());
    for (const auto& g : of(loss, others)) EXPECT_FALSE(g.defined());
    for (const auto& g : of(loss, index())) EXPECT_TRUE(g.defined() && (g != 0).any().item<bool>());
  }
}

TEST(Indexed, LearnsToFindWhatIsAttendedTo) {
  torch::manual_seed(4);
  IndexedSelfAttention m({.d_model = 12,
                          .num_heads = 3,
                          .index_heads = 4,
                          .index_dim = 12,
                          .dropout = 0,
                          .causal = true});
  const auto x = torch::randn({4, 40, 12}) * 2;
  torch::optim::Adam adam(m->parameters(), torch::optim::AdamOptions(0.02));
  double first = 0, last = 0;
  for (int step = 0; step < 60; ++step) {
    adam.zero_grad();
    const auto loss = m->forward_with_loss(x).loss.mean();
    loss.backward();
    adam.step();
    last = loss.item<double>();
    if (step == 0) first = last;
  }
  EXPECT_LT(last, 0.5 * first);
}

TEST(Indexed, Errors) {
  const auto bad = [](IndexedSelfAttentionOptions o, std::vector<std::string> parts) {
    parts.push_back("IndexedSelfAttention");
    expect_error([&] { IndexedSelfAttention{o}; }, parts);
  };
  auto o = small(4);
  o.top_k = 0, bad(o, {"top_k", "0"}), o = small(4);
  o.index_heads = 0, bad(o, {"index_heads", "0"}), o = small(4);
  o.index_dim = -1, bad(o, {"index_dim", "-1"}), o = small(4);
  o.index_dim = int64_t{1} << 60, bad(o, {"index_dim"}), o = small(4);
  o.index_dim = 5, o.rope = true, bad(o, {"index_dim", "even"}), o = small(4);
  o.num_kv_heads = 2, bad(o, {"num_kv_heads", "2"});
  IndexedSelfAttention m(small(4));
  const auto x = torch::randn({1, 6, 12});
  expect_error([&] { m(x, {.score = sink(torch::zeros({3}))}); }, {"IndexedSelfAttention", "sink"});
  const torch::NoGradGuard no_grad;
  const auto cache = m->make_cache(1, 8);
  expect_error([&] { m->forward_with_loss(x, {.causal = true, .cache = cache}); },
               {"IndexedSelfAttention", "cache"});
}

}  // namespace
}  // namespace attzoo::testing::indexed_test
