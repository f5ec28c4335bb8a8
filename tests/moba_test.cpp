#include <attzoo/moba.hpp>

#include <algorithm>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::moba_test {
namespace {

constexpr auto kDouble = torch::kFloat64;

MixtureOfBlocksSelfAttentionOptions small() {
  return {.d_model = 12, .num_heads = 3, .block_size = 8, .top_k = 3, .bias = true};
}

MixtureOfBlocksSelfAttention make(const MixtureOfBlocksSelfAttentionOptions& options = small()) {
  MixtureOfBlocksSelfAttention m(options);
  m->to(kDouble);
  m->eval();
  return m;
}

/// Who attends to whom, one query after the other: q and k [B, H, n, D] -> bool [B, H, n, n].
torch::Tensor chosen_pairs(const torch::Tensor& q, const torch::Tensor& k, int64_t size,
                           int64_t top_k) {
  const int64_t n = q.size(2);
  auto pairs = torch::zeros({q.size(0), q.size(1), n, n}, torch::kBool);
  for (int64_t b = 0; b < q.size(0); ++b) {
    for (int64_t h = 0; h < q.size(1); ++h) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t own = i / size;
        std::vector<std::pair<double, int64_t>> gates;
        for (int64_t c = 0; c < own; ++c) {
          const auto mean = k[b][h].slice(0, c * size, (c + 1) * size).mean(0);
          gates.push_back({-q[b][h][i].dot(mean).item<double>(), c});
        }
        std::sort(gates.begin(), gates.end());
        pairs[b][h][i].slice(0, own * size, i + 1).fill_(true);
        for (int64_t r = 0; r < std::min<int64_t>(top_k - 1, own); ++r) {
          const int64_t c = gates[static_cast<size_t>(r)].second;
          pairs[b][h][i].slice(0, c * size, (c + 1) * size).fill_(true);
        }
      }
    }
  }
  return pairs;
}

torch::Tensor pairs_of(MixtureOfBlocksSelfAttention& m, const torch::Tensor& x) {
  const torch::NoGradGuard no_grad;
  return chosen_pairs(split_heads(m->w_q(x), 3), split_heads(m->w_k(x), 3), m->options.block_size,
                      m->options.top_k);
}

MultiHeadSelfAttention dense_of(MixtureOfBlocksSelfAttention& m) {
  MultiHeadSelfAttention dense(
      MultiHeadSelfAttentionOptions{.d_model = 12, .num_heads = 3, .bias = true, .causal = true});
  dense->to(kDouble);
  load_state_dict(*dense, state_dict(*m));
  return dense;
}

/// Output, lse, weights and all gradients.
template <class Module>
std::vector<torch::Tensor> all_of(Module& m, const torch::Tensor& x, const AttentionInputs& in) {
  auto leaf = x.clone().requires_grad_();
  std::vector<torch::Tensor> leaves{leaf};
  for (const auto& p : m->parameters()) leaves.push_back(p);
  torch::manual_seed(1);
  const auto r = m(leaf, in);
  const auto weights = torch::Tensor(r.weights);
  const auto seen = r.lse.detach().isfinite();
  const auto loss = (r.output * torch::randn_like(r.output)).sum() +
                    r.lse.masked_fill(seen.logical_not(), 0.0).sin().sum() + weights.square().sum();
  auto all = torch::autograd::grad({loss}, leaves);
  for (const auto& t : {r.output, r.lse, weights}) all.push_back(t);
  return all;
}

void expect_all_close(const std::vector<torch::Tensor>& got, const std::vector<torch::Tensor>& want,
                      const std::string& what) {
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_TRUE(torch::allclose(got[i], want[i], 1e-9, 1e-11)) << what << " " << i;
  }
}

TEST(MixtureOfBlocks, IsItsDefinition) {
  for (const int64_t n : {1, 7, 33, 64, 65, 150}) {  // few queries, and sorted ones
    for (const int64_t top_k : {1, 2, 3}) {
      torch::manual_seed(n);
      auto options = small();
      options.top_k = top_k;
      auto m = make(options);
      auto dense = dense_of(m);
      const auto x = torch::randn({2, n, 12}, kDouble);
      expect_all_close(all_of(m, x, {}), all_of(dense, x, {.mask = pairs_of(m, x)}),
                       c10::str("n=", n, " top_k=", top_k));
    }
  }
}

TEST(MixtureOfBlocks, AllBlocksAreMultiHead) {
  auto options = small();
  options.top_k = 100;
  auto m = make(options);
  auto dense = dense_of(m);
  for (const int64_t n : {30, 150}) {
    const auto x = torch::randn({2, n, 12}, kDouble);
    expect_all_close(all_of(m, x, {}), all_of(dense, x, {}), "all blocks");
  }
}

TEST(MixtureOfBlocks, TakesMasksAndScores) {
  auto m = make();
  auto dense = dense_of(m);
  for (const int64_t n : {40, 100}) {
    const auto x = torch::randn({2, n, 12}, kDouble);
    const auto pairs = pairs_of(m, x);
    const auto some = torch::rand({2, 3, n, n}) < 0.8;
    expect_all_close(all_of(m, x, {.mask = some}), all_of(dense, x, {.mask = some & pairs}),
                     "bool");
    const auto bias = torch::randn({n, n}, kDouble);
    const auto minus = torch::zeros({2, 3, n, n}, kDouble).masked_fill(~pairs, kNegativeInfinity);
    expect_all_close(all_of(m, x, {.mask = bias}), all_of(dense, x, {.mask = bias + minus}),
                     "bias");
    const AttentionInputs asks{.pattern = window(30, 0), .score = softcap(1.5)};
    auto wants = asks;
    wants.mask = pairs;
    expect_all_close(all_of(m, x, asks), all_of(dense, x, wants), "pattern and score");
    const auto logits = torch::randn({3}, kDouble);
    expect_all_close(all_of(m, x, {.score = sink(logits)}),
                     all_of(dense, x, {.mask = pairs, .score = sink(logits)}), "sink");
  }
}

TEST(MixtureOfBlocks, PaddingHasNoPart) {
  auto m = make();
  const auto x = torch::randn({3, 130, 12}, kDouble);
  const std::vector<int64_t> lengths{130, 77, 5};
  const auto real = create_padding_mask(lengths);
  const auto filled = x.masked_fill(~real.unsqueeze(-1), 1e3);
  for (const auto& t : {x, filled}) {
    const auto padded = m(t, {.key_padding_mask = real}).output;
    for (int64_t b = 0; b < 3; ++b) {
      const auto n = lengths[static_cast<size_t>(b)];
      const auto alone = m(x.slice(0, b, b + 1).slice(1, 0, n)).output;
      EXPECT_TRUE(torch::allclose(padded.slice(0, b, b + 1).slice(1, 0, n), alone, 1e-10, 1e-12));
    }
  }
  // Anywhere: blocks of padding alone are never chosen, others by the means of what is real.
  auto holes = torch::ones({3, 130}, torch::kBool);
  holes.slice(1, 8, 20).fill_(false);
  const auto a = m(x, {.key_padding_mask = holes}).output,
             b = m(x.masked_fill(~holes.unsqueeze(-1), -7.0), {.key_padding_mask = holes}).output;
  EXPECT_TRUE(torch::allclose(a.slice(1, 20), b.slice(1, 20), 1e-10, 1e-12));
}

TEST(MixtureOfBlocks, DocumentsAndCachesBeginAnew) {
  auto m = make();
  const auto any = AnyAttention(m);
  auto rotated = small();
  rotated.rope = true;
  const auto turned = AnyAttention(make(rotated));
  for (const auto& module : {any, turned}) {
    expect_packs(module, "MixtureOfBlocks");
    expect_documents_are_alone(module, {.mask = torch::rand({40, 40}) < 0.7}, "mask");
    expect_goes_on_as_alone(module, "MixtureOfBlocks");
  }
  // Sorted queries of documents.
  const auto x = torch::randn({1, 230, 12}, kDouble);
  const auto packed = m(x, {.documents = {.offsets = torch::tensor({0, 130, 137, 230})}}).output;
  for (const auto& [begin, end] : {std::pair{0, 130}, {130, 137}, {137, 230}}) {
    EXPECT_TRUE(torch::allclose(packed.slice(1, begin, end), m(x.slice(1, begin, end)).output,
                                1e-10, 1e-12));
  }
}

TEST(MixtureOfBlocks, CachesGoOnAsTheWholePass) {
  const torch::NoGradGuard no_grad;
  auto m = make();
  const auto x = torch::randn({2, 300, 12}, kDouble);
  const auto want = m(x).output;
  for (const int64_t first : {1, 70, 100}) {
    auto cache = m->make_cache(2, 300);
    for (int64_t at = 0, end = first; at < 300; at = end, end = std::min<int64_t>(300, at + 1)) {
      if (at == 150) end = 240;  // many at once
      const auto got = m(x.slice(1, at, end), {.cache = cache}).output;
      EXPECT_TRUE(torch::allclose(got, want.slice(1, at, end), 1e-10, 1e-12)) << at;
    }
    // Back, another order, and a copy.
    cache.truncate(201);
    cache.reorder(torch::tensor({1, 0}));
    auto copy = cache.clone();
    const auto swapped = x.flip(0), want_swapped = want.flip(0);
    for (auto* c : {&cache, &copy}) {
      for (int64_t at = 201; at < 220; ++at) {
        const auto got = m(swapped.slice(1, at, at + 1), {.cache = *c}).output;
        EXPECT_TRUE(torch::allclose(got, want_swapped.slice(1, at, at + 1), 1e-10, 1e-12)) << at;
      }
    }
  }
  auto cache = m->make_cache(2, 300);
  m(x.slice(1, 0, 20), {.cache = cache});
  m->options.block_size = 16;
  expect_error([&] { m(x.slice(1, 20, 21), {.cache = cache}); }, {"block_size", "16", "8"});
}

TEST(MixtureOfBlocks, DropsWeights) {
  auto options = small();
  options.dropout = 0.3;
  MixtureOfBlocksSelfAttention m(options);
  m->to(kDouble);
  const auto x = torch::randn({2, 100, 12}, kDouble);
  const auto r = m(x);
  const auto v = split_heads(m->w_v(x), 3);
  EXPECT_TRUE(torch::allclose(
      r.output, m->w_o(torch::matmul(r.weights.tensor(), v).transpose(1, 2).flatten(2)), 1e-10,
      1e-12));
  EXPECT_FALSE(torch::equal(r.output, m(x).output));
  m->eval();
  EXPECT_TRUE(torch::equal(m(x).output, m(x).output));
}

TEST(MixtureOfBlocks, GradientsOfGradients) {
  auto m = make({.d_model = 2, .num_heads = 1, .block_size = 16, .top_k = 2});
  auto x = torch::randn({1, 65, 2}, kDouble).requires_grad_();
  const auto f = [&] { return m(x).output.square().sum(); };
  gradcheck(f, {x}, "sorted");
  gradgradcheck(f, {x}, "sorted");
}

TEST(MixtureOfBlocks, Errors) {
  auto m = make();
  const auto x = torch::randn({2, 9, 12}, kDouble);
  expect_error([&] { m(x, {.causal = false}); }, {"MixtureOfBlocksSelfAttention", "causal"});
  expect_error([&] { m(x, {.context = x}); }, {"MixtureOfBlocksSelfAttention", "context"});
  expect_error([&] { m->make_context_cache(x); }, {"MixtureOfBlocksSelfAttention", "context"});
  for (const auto& change :
       std::vector<std::pair<const char*, void (*)(MixtureOfBlocksSelfAttentionOptions&)>>{
           {"block_size", [](auto& o) { o.block_size = 0; }},
           {"top_k", [](auto& o) { o.top_k = 0; }},
           {"causal", [](auto& o) { o.causal = false; }}}) {
    auto options = small();
    change.second(options);
    expect_error([&] { MixtureOfBlocksSelfAttention{options}; }, {change.first});
  }
  EXPECT_EQ(m(torch::randn({2, 0, 12}, kDouble)).output.numel(), 0);
}

}  // namespace
}  // namespace attzoo::testing::moba_test
