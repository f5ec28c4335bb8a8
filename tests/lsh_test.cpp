#include <attzoo/lsh.hpp>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::lsh_test {
namespace {

/// One bucket: plain multi-head attention.
struct LSHTraits : PlainTraits {
  using Module = LSHSelfAttention;
  static LSHSelfAttentionOptions options() {
    return {.d_model = 12, .num_heads = 3, .bucket_size = 200, .dropout = 0, .bias = true};
  }
};
INSTANTIATE_TEST_SUITE_P(LSH, MechanismContract, mechanism<LSHTraits>());

LSHSelfAttention make(LSHSelfAttentionOptions options) {
  torch::manual_seed(11);
  LSHSelfAttention m(options);
  m->to(torch::kFloat64);
  m->eval();
  return m;
}

/// d_model 16, two heads, no dropout.
LSHSelfAttentionOptions small(int64_t bucket_size, int64_t rounds, bool causal = false) {
  return {.d_model = 16,
          .num_heads = 2,
          .bucket_size = bucket_size,
          .num_hashes = rounds,
          .dropout = 0,
          .causal = causal};
}

/// One projection for each round, the same for all calls.
std::vector<torch::Tensor> random_projections(int64_t rounds, int64_t columns = 4) {
  std::vector<torch::Tensor> projections;
  for (int64_t r = 0; r < rounds; ++r) projections.push_back(torch::randn({2, 8, columns}));
  return projections;
}

/// Who attends to whom in one round, token by token.
torch::Tensor allowed_pairs(const torch::Tensor& id, bool causal, int64_t reach) {
  const int64_t n = id.size(-1);
  auto allowed = torch::zeros({id.size(0), id.size(1), n, n}, torch::kBool);
  auto a = allowed.accessor<bool, 4>();
  const auto ids = id.accessor<int64_t, 3>();
  for (int64_t b = 0; b < id.size(0); ++b) {
    for (int64_t h = 0; h < id.size(1); ++h) {
      for (int64_t i = 0; i < n; ++i) {
        std::vector<int64_t> bucket;
        int64_t place = 0;
        for (int64_t j = 0; j < n; ++j) {
          if (ids[b][h][j] != ids[b][h][i]) continue;
          if (j == i) place = static_cast<int64_t>(bucket.size());
          bucket.push_back(j);
        }
        for (int64_t p = 0; p < static_cast<int64_t>(bucket.size()); ++p) {
          // here = place + 1 keys up to the query itself
          const int64_t begin = place + 1 - (causal ? 2 * reach : reach);
          const int64_t end = causal ? place + 1 : place + 1 + reach;
          if (p >= begin && p < end) a[b][h][i][bucket[static_cast<size_t>(p)]] = true;
        }
      }
    }
  }
  return allowed;
}

TEST(LSH, IsItsDefinition) {
  for (const bool causal : {false, true}) {
    for (const int64_t rounds : {1, 3}) {
      auto m = make(small(6, rounds, causal));
      const auto projections = random_projections(rounds);
      m->set_projections(projections);
      auto x = torch::randn({2, 50, 16}, torch::kFloat64).requires_grad_();
      const auto got = m(x);

      const auto q = split_heads(m->w_q(x), 2), k = split_heads(m->w_k(x), 2),
                 v = split_heads(m->w_v(x), 2);
      const auto scores = torch::matmul(q, k.transpose(-2, -1)) / std::sqrt(8.0);
      std::vector<torch::Tensor> lse, outputs, weights;
      for (const auto& p : projections) {
        const auto s = torch::matmul(q, p.to(torch::kFloat64));
        const auto id = s.slice(-1, 0, 2).argmax(-1) * 2 + s.slice(-1, 2).argmax(-1);
        const auto masked =
            scores.masked_fill(allowed_pairs(id, causal, 6).logical_not(), kNegativeInfinity);
        weights.push_back(torch::softmax(masked, -1));
        lse.push_back(torch::logsumexp(masked, -1));
      }
      const auto share = torch::softmax(torch::stack(lse), 0).unsqueeze(-1);
      const auto w = (share * torch::stack(weights)).sum(0);
      const auto want = m->w_o(torch::matmul(w, v).transpose(1, 2).flatten(2));
      EXPECT_TRUE(torch::allclose(got.output, want, 1e-10, 1e-12)) << causal << rounds;
      EXPECT_TRUE(torch::allclose(got.weights, w, 1e-10, 1e-12));
      EXPECT_TRUE(torch::allclose(got.weights.rows(7, 20), w.slice(2, 7, 20), 1e-10, 1e-12));
      EXPECT_TRUE(torch::allclose(got.lse, torch::logsumexp(torch::stack(lse), 0), 1e-10, 1e-12));
      const auto g = torch::randn_like(want);
      EXPECT_TRUE(torch::allclose(torch::autograd::grad({got.output}, {x}, {g}, true)[0],
                                  torch::autograd::grad({want}, {x}, {g}, true)[0], 1e-9, 1e-11));
    }
  }
}

TEST(LSH, CausalDependsOnThePastAlone) {
  auto m = make(small(8, 3, true));
  auto x = torch::randn({2, 90, 16}, torch::kFloat64);
  const auto before = m(x).output.slice(1, 0, 50);
  x.slice(1, 50).normal_();
  EXPECT_TRUE(torch::allclose(before, m(x).output.slice(1, 0, 50), 1e-12, 1e-14));
}

TEST(LSH, PaddedKeysAreInNoBucket) {
  for (const bool causal : {false, true}) {
    auto m = make(small(4, 2, causal));
    m->set_projections(random_projections(2));
    const std::vector<int64_t> lengths{30, 17};
    auto x = torch::randn({2, 30, 16}, torch::kFloat64);
    const auto padded = m(x, {.key_padding_mask = create_padding_mask(lengths)});
    for (int64_t b = 0; b < 2; ++b) {
      const int64_t n = lengths[static_cast<size_t>(b)];
      const auto alone = m(x.slice(0, b, b + 1).slice(1, 0, n)).output;
      EXPECT_TRUE(
          torch::allclose(padded.output.slice(0, b, b + 1).slice(1, 0, n), alone, 1e-10, 1e-12));
    }
    EXPECT_EQ(torch::Tensor(padded.weights)[1].slice(-1, 17).abs().sum().item<double>(), 0);
  }
}

/// A query that finds no key in any round: its lse is -inf in all of them.
TEST(LSH, QueriesWithoutAnyKeyHaveFiniteGradients) {
  const int64_t n = 50;
  auto masked = torch::rand({n, n}) < 0.1;  // some rows find nothing in one round, some in none
  masked[3] = false;
  const auto padding = create_padding_mask(std::vector<int64_t>{n, 0});
  for (const bool exact : {false, true}) {
    for (const int64_t rounds : {1, 2, 3}) {
      for (const bool causal : {false, true}) {
        auto options = small(6, rounds, causal);
        options.exact_buckets = exact;
        auto m = make(options);
        auto x = torch::randn({2, n, 16}, torch::kFloat64).requires_grad_();
        for (const AttentionInputs& in :
             {AttentionInputs{.mask = masked}, AttentionInputs{.key_padding_mask = padding},
              AttentionInputs{.mask = torch::zeros({n, n}).masked_fill(masked, -INFINITY)},
              AttentionInputs{.key_padding_mask = torch::zeros({2, n}, torch::kBool)}}) {
          const auto r = m(x, in);
          const auto lse = r.lse.masked_fill(r.lse.isinf(), 0);
          ASSERT_TRUE(r.lse.isinf().any().item<bool>() || in.mask.is_floating_point());
          auto leaves = m->parameters();
          leaves.push_back(x);
          const auto grads = torch::autograd::grad(
              {r.output.square().sum() + lse.sum() + r.weights.tensor().square().sum()}, leaves);
          for (const auto& g : grads) EXPECT_TRUE(g.isfinite().all().item<bool>());
          const auto none = r.lse.isinf().all(1);  // [2, n]
          EXPECT_EQ(r.output.masked_select(none.unsqueeze(-1)).abs().sum().item<double>(), 0);
        }
      }
    }
  }
}

/// The gradients with rows that find nothing are those of the definition on the others.
TEST(LSH, GradientsBesideEmptyRows) {
  auto m = make({.d_model = 8, .num_heads = 1, .bucket_size = 3, .num_hashes = 2, .dropout = 0});
  m->set_projections({torch::randn({1, 8, 4}), torch::randn({1, 8, 4})});
  auto mask = torch::ones({10, 10}, torch::kBool);
  mask[4] = false;
  auto x = torch::randn({1, 10, 8}, torch::kFloat64).requires_grad_();
  const auto g = torch::randn({1, 10, 8}, torch::kFloat64);
  gradcheck([&] { return (m(x, {.mask = mask}).output * g).sum(); },
            {m->w_k->weight, m->w_v->weight}, "lsh");
}

TEST(LSH, DocumentsAreAlone) {
  for (const bool exact : {false, true}) {
    for (const bool own : {false, true}) {
      auto options = small(4, 2);
      options.exact_buckets = exact;
      auto m = make(options);
      if (own) m->set_projections({torch::randn({2, 8, 4}), torch::randn({2, 8, 6})});
      expect_packs(m, exact ? "exact buckets" : "buckets");
    }
  }
  auto options = small(4, 2);
  options.dropout = 0.1;
  auto m = make(options);
  m->train();
  auto x = torch::randn({2, 40, 16}, torch::kFloat64).requires_grad_();
  m(x, {.documents = {.offsets = torch::tensor({0, 13, 40})}}).output.sum().backward();
  EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
}

TEST(LSH, HugeBucketsAreOne) {
  const auto x = torch::randn({2, 30, 16}, torch::kFloat64);
  for (const bool causal : {false, true}) {
    const auto of = [&](int64_t size) { return make(small(size, 1, causal))(x).output; };
    EXPECT_TRUE(torch::equal(of(std::numeric_limits<int64_t>::max()), of(30)));
  }
}

TEST(LSH, DropsTheSameInOutputAndWeights) {
  auto options = small(6, 2);
  options.dropout = 0.4;
  auto m = make(options);
  m->train();
  const auto x = torch::randn({2, 50, 16}, torch::kFloat64);
  const auto r = m(x);
  const auto v = split_heads(m->w_v(x), 2);
  const auto want = m->w_o(torch::matmul(r.weights.tensor(), v).transpose(1, 2).flatten(2));
  EXPECT_TRUE(torch::allclose(r.output, want, 1e-10, 1e-12));
}

TEST(LSH, ProjectionsAreFixedInEvalAndDrawnInTraining) {
  auto m = make(small(4, 1));
  const auto x = torch::randn({1, 60, 16}, torch::kFloat64);
  EXPECT_TRUE(torch::equal(m(x).output, m(x).output));
  m->train();
  EXPECT_FALSE(torch::equal(m(x).output, m(x).output));
  const auto with_generator = [&] {
    m->set_generator(at::make_generator<at::CPUGeneratorImpl>(5));
    return m(x).output;
  };
  EXPECT_TRUE(torch::equal(with_generator(), with_generator()));
}

/// The more rounds, the more of the full attention's mass is found; sharing projections helps.
TEST(LSH, RecallGrowsWithRounds) {
  double last = 0;
  for (const int64_t rounds : {1, 2, 4, 8}) {
    auto m = make(
        {.d_model = 32, .num_heads = 2, .bucket_size = 16, .num_hashes = rounds, .dropout = 0});
    torch::NoGradGuard no_grad;
    m->w_k->weight.copy_(m->w_q->weight);
    const auto x = 3 * torch::randn({1, 256, 32}, torch::kFloat64);
    const torch::Tensor found = m(x).weights;
    const auto q = split_heads(m->w_q(x), 2);
    const auto full = torch::softmax(torch::matmul(q, q.transpose(-2, -1)) / 4.0, -1);
    const double recall = (full * (found > 0)).sum(-1).mean().item<double>();
    EXPECT_GT(recall, last);
    last = recall;
  }
  EXPECT_GT(last, 0.5);
}

TEST(LSH, Errors) {
  expect_error([] { LSHSelfAttention({.d_model = 16, .num_heads = 2, .bucket_size = 0}); },
               {"LSHSelfAttention", "bucket_size", "0"});
  expect_error([] { LSHSelfAttention({.d_model = 16, .num_heads = 2, .num_hashes = 0}); },
               {"LSHSelfAttention", "num_hashes", "0"});
  LSHSelfAttention m(16, 2);
  expect_error([&] { m->set_projections(random_projections(2)); },
               {"LSHSelfAttention", "num_hashes=1", "2"});
  expect_error(
      [&] {
        m->set_projections({torch::randn({2, 7, 4})});
      },
      {"LSHSelfAttention", "d_head=8", "[2, 7, 4]"});
  const auto bad = [&](const torch::Tensor& p, std::vector<std::string> parts) {
    parts.insert(parts.end(), {"LSHSelfAttention", "projection"});
    expect_error([&] { m->set_projections({p}); }, parts);
  };
  bad({}, {"undefined"});
  bad(torch::randn({2, 8, 4}, torch::kComplexFloat), {"Complex"});
  bad(torch::ones({2, 8, 4}, torch::kInt64), {"Long"});
  bad(torch::randn({2, 8, 4}).to(torch::kMeta), {"meta"});
  bad(torch::randn({2, 8, 4}).to_sparse(), {"dense", "Sparse"});
  bad(torch::randn({2, 8, 0}), {"[2, 8, 0]"});
  expect_error([&] { m->set_generator({}); }, {"LSHSelfAttention", "set_generator", "undefined"});
  expect_error(
      [] {
        LSHSelfAttention(
            {.d_model = 16, .num_heads = 2, .num_hashes = std::numeric_limits<int64_t>::max()});
      },
      {"LSHSelfAttention", "num_hashes", "9223372036854775807"});
}

}  // namespace
}  // namespace attzoo::testing::lsh_test
