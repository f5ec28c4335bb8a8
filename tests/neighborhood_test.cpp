#include <attzoo/neighborhood.hpp>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::neighborhood_test {
namespace {

/// The places that place i of n sees, as NATTEN counts them: of those of its residue, k in a row.
std::vector<int64_t> nearest(int64_t i, int64_t n, int64_t k, int64_t d, bool causal) {
  std::vector<int64_t> same, seen;
  for (int64_t j = i % d; j < n; j += d) same.push_back(j);
  const int64_t at = i / d, count = static_cast<int64_t>(same.size());
  int64_t begin = std::clamp<int64_t>(at - k / 2, 0, std::max<int64_t>(0, count - k));
  int64_t end = std::min(count, begin + k);
  if (causal) begin = std::max<int64_t>(0, at - k + 1), end = at + 1;
  for (int64_t p = begin; p < end; ++p) seen.push_back(same[static_cast<size_t>(p)]);
  return seen;
}

/// Of a sequence, bool [n, n].
torch::Tensor sequence_pattern(int64_t n, int64_t k, int64_t d, bool causal) {
  auto pattern = torch::zeros({n, n}, torch::kBool);
  for (int64_t i = 0; i < n; ++i) {
    for (const auto j : nearest(i, n, k, d, causal)) pattern[i][j] = true;
  }
  return pattern;
}

/// Sizes, kernel sizes, dilations and what is causal, of three dimensions.
struct Grid3 {
  std::vector<int64_t> n, k, d;
  std::vector<bool> causal;
  int64_t tokens() const { return n[0] * n[1] * n[2]; }
  int64_t token(int64_t x, int64_t y, int64_t z) const { return (x * n[1] + y) * n[2] + z; }
  std::vector<int64_t> along(size_t axis, int64_t i) const {
    return nearest(i, n[axis], k[axis], d[axis], causal[axis]);
  }
  template <class Visit>  // (query, key)
  void for_each_pair(const Visit& visit) const {
    for (int64_t q = 0; q < tokens(); ++q) {
      for (const auto x : along(0, q / n[2] / n[1])) {
        for (const auto y : along(1, q / n[2] % n[1])) {
          for (const auto z : along(2, q % n[2])) visit(q, token(x, y, z));
        }
      }
    }
  }
  torch::Tensor pattern() const {
    auto all = torch::zeros({tokens(), tokens()}, torch::kBool);
    for_each_pair([&](int64_t q, int64_t kv) { all[q][kv] = true; });
    return all;
  }
};

template <int64_t kDilation>
struct Traits : PlainTraits {
  using Module = NeighborhoodSelfAttention;
  static NeighborhoodSelfAttentionOptions options() {
    return {.d_model = 12,
            .num_heads = 3,
            .kernel_size = {5},
            .dilation = {kDilation},
            .dropout = 0,
            .bias = true};
  }
  static torch::Tensor allowed(int64_t n) { return sequence_pattern(n, 5, kDilation, false); }
  static torch::Tensor allowed_causal(int64_t n) { return sequence_pattern(n, 5, kDilation, true); }
};
INSTANTIATE_TEST_SUITE_P(Neighborhood, MechanismContract, mechanism<Traits<1>>());
INSTANTIATE_TEST_SUITE_P(DilatedNeighborhood, MechanismContract, mechanism<Traits<3>>());

NeighborhoodSelfAttention make(const Grid3& grid) {
  NeighborhoodSelfAttention m({.d_model = 8,
                               .num_heads = 2,
                               .kernel_size = grid.k,
                               .dilation = grid.d,
                               .is_causal = grid.causal,
                               .grid = grid.n,
                               .bias = true});
  m->to(torch::kFloat64);
  return m;
}

/// Every token by itself: a softmax over the list of its neighbours.
torch::Tensor by_tokens(NeighborhoodSelfAttention& m, const Grid3& grid, const torch::Tensor& x) {
  const auto q = m->w_q(x), k = m->w_k(x), v = m->w_v(x);
  std::vector<std::vector<int64_t>> keys(static_cast<size_t>(grid.tokens()));
  grid.for_each_pair([&](int64_t i, int64_t j) { keys[static_cast<size_t>(i)].push_back(j); });
  std::vector<torch::Tensor> rows;
  for (int64_t i = 0; i < grid.tokens(); ++i) {
    const auto near = torch::tensor(keys[static_cast<size_t>(i)]);
    const auto heads = [&](const torch::Tensor& t) {  // [B, keys, H, dh]
      return t.index_select(1, near).unflatten(2, {2, 4});
    };
    const auto scores = (heads(k) * q.slice(1, i, i + 1).unflatten(2, {2, 4})).sum(-1, true) / 2;
    rows.push_back((torch::softmax(scores, 1) * heads(v)).sum(1).flatten(1));
  }
  return m->w_o(torch::stack(rows, 1));
}

TEST(Neighborhood, IsItsDefinitionOnGrids) {
  torch::manual_seed(1);
  const std::vector<bool> none(3), some{false, true, false}, all{true, true, true};
  for (const auto& grid :
       {Grid3{{1, 9, 7}, {1, 3, 5}, {1, 1, 1}, none}, Grid3{{1, 8, 12}, {1, 5, 3}, {1, 2, 3}, none},
        Grid3{{1, 7, 11}, {1, 3, 3}, {1, 2, 4}, some}, Grid3{{4, 5, 6}, {3, 3, 3}, {1, 1, 1}, none},
        Grid3{{6, 4, 5}, {3, 1, 3}, {2, 3, 2}, some}, Grid3{{3, 4, 5}, {3, 3, 5}, {1, 1, 1}, all},
        Grid3{{2, 3, 4}, {9, 7, 5}, {1, 1, 1}, none}}) {
    auto m = make(grid);
    auto x = torch::randn({2, grid.tokens(), 8}, torch::kFloat64).requires_grad_();
    const auto r = m(x);
    const auto want = by_tokens(m, grid, x);
    EXPECT_TRUE(torch::allclose(r.output, want, 1e-10, 1e-12));
    EXPECT_TRUE(torch::equal(torch::Tensor(r.weights)[0][1] > 0, grid.pattern()));
    const auto cotangent = torch::randn_like(want);
    std::vector<torch::Tensor> leaves{x};
    for (const auto& p : m->parameters()) leaves.push_back(p);
    const auto got = torch::autograd::grad({(r.output * cotangent).sum()}, leaves),
               by_hand = torch::autograd::grad({(want * cotangent).sum()}, leaves);
    for (size_t i = 0; i < leaves.size(); ++i) {
      EXPECT_TRUE(torch::allclose(got[i], by_hand[i], 1e-10, 1e-12)) << i;
    }
  }
}

TEST(Neighborhood, TwoDimensionsAreThreeOfWhichOneIsOne) {
  NeighborhoodSelfAttention plane(
      {.d_model = 8, .num_heads = 2, .kernel_size = {3, 5}, .grid = {6, 9}}),
      block({.d_model = 8, .num_heads = 2, .kernel_size = {1, 3, 5}, .grid = {1, 6, 9}});
  load_state_dict(*block, state_dict(*plane));
  const auto x = torch::randn({2, 54, 8});
  EXPECT_TRUE(torch::allclose(plane(x).output, block(x).output, 1e-5, 1e-6));
  EXPECT_TRUE(torch::allclose(plane(x, {.causal = true}).output, block(x, {.causal = true}).output,
                              1e-5, 1e-6));
}

TEST(Neighborhood, WideWindowEqualsMultiHead) {
  for (const int64_t size : {int64_t{25}, int64_t{49}, std::numeric_limits<int64_t>::max()}) {
    const MultiHeadSelfAttention dense(12, 3);
    expect_equivalent(
        NeighborhoodSelfAttention({.d_model = 12, .num_heads = 3, .kernel_size = {size}}), dense);
    for (const auto& grid : {std::vector<int64_t>{4, 6}, std::vector<int64_t>{2, 3, 4}}) {
      expect_equivalent(NeighborhoodSelfAttention(
                            {.d_model = 12, .num_heads = 3, .kernel_size = {size}, .grid = grid}),
                        dense);
    }
  }
}

TEST(Neighborhood, EveryTokenHasAWholeWindow) {
  NeighborhoodSelfAttention m(
      {.d_model = 8, .num_heads = 2, .kernel_size = {3, 5}, .dilation = {2, 1}, .grid = {8, 9}});
  const torch::Tensor w = m(torch::randn({1, 72, 8})).weights;
  EXPECT_TRUE(((w[0][0] > 0).sum(-1) == 15).all().item<bool>());
  m->options.causal = true;  // read at each call
  const torch::Tensor back = m(torch::randn({1, 72, 8})).weights;
  EXPECT_EQ((back[0][0][0] > 0).sum().item<int64_t>(), 1);
  EXPECT_EQ((back[0][0][71] > 0).sum().item<int64_t>(), 15);
  m->options.grid = {6, 12};
  EXPECT_EQ(m(torch::randn({1, 72, 8})).output.size(1), 72);
}

TEST(Neighborhood, MasksOnAGrid) {
  const Grid3 grid{{1, 6, 8}, {1, 3, 3}, {1, 1, 2}, {false, false, false}};
  auto m = make(grid);
  const auto x = torch::randn({2, 48, 8}, torch::kFloat64);
  const auto real = torch::rand({2, 48}) < 0.7, mask = torch::rand({48, 48}) < 0.8;
  const torch::Tensor w = m(x, {.mask = mask, .key_padding_mask = real}).weights;
  const auto want = grid.pattern() & mask & real.view({2, 1, 1, 48});
  EXPECT_TRUE(torch::equal(w > 0, want.expand_as(w)));
  EXPECT_EQ(m(x, {.context = torch::randn({2, 48, 8}, torch::kFloat64)}).output.size(1), 48);
}

/// Small windows are listed, the eager reference is asked with the mask.
TEST(Neighborhood, ListedKeysAgreeWithTheMask) {
  torch::manual_seed(3);
  struct Case {
    std::vector<int64_t> grid, kernel_size;
    bool causal;
  };
  for (const auto& [grid, kernel_size, causal] :
       {Case{{12, 12}, {3}, false}, Case{{12, 12}, {3, 5}, true}, Case{{5, 6, 7}, {3}, false}}) {
    NeighborhoodSelfAttention m(
        {.d_model = 8, .num_heads = 2, .kernel_size = kernel_size, .grid = grid, .causal = causal});
    m->to(torch::kFloat64);
    int64_t n = 1;
    for (const auto size : grid) n *= size;
    const auto real = torch::rand({2, n}) < 0.7, mask = torch::rand({2, 2, n, n}) < 0.3;
    auto x = torch::randn({2, n, 8}, torch::kFloat64).requires_grad_();
    const auto along = torch::randn_like(x), of_lse = torch::randn({2, 2, n}, torch::kFloat64);
    for (const auto& inputs :
         {AttentionInputs{}, AttentionInputs{.mask = mask, .key_padding_mask = real}}) {
      const auto run = [&] {
        const auto r = m(x, inputs);
        const auto some = r.lse.isfinite();
        auto leaves = m->parameters();
        leaves.push_back(x);
        const auto loss = (r.output * along).sum() + torch::where(some, r.lse * of_lse, 0).sum();
        auto all = torch::autograd::grad({loss}, leaves);
        all.insert(all.end(), {r.output.detach(), r.lse.detach(), torch::Tensor(r.weights)});
        return all;
      };
      const auto got = run();
      const EagerReferenceGuard eager;
      const auto want = run();
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_TRUE(torch::allclose(got[i], want[i], 1e-10, 1e-12)) << i;
      }
    }
  }
}

/// Of 4 sequences, packed or padded on both sides, dilated: windows stop where each stops.
TEST(Neighborhood, WindowsStopWithTheDocument) {
  NeighborhoodSelfAttention m(
      {.d_model = 8, .num_heads = 2, .kernel_size = {3}, .dilation = {2}, .rope = false});
  const auto x = torch::randn({1, 30, 8});
  const torch::Tensor packed =
      m(x, {.documents = {.offsets = torch::tensor({0, 1, 8, 17, 30})}}).weights;
  for (const auto& [begin, end] : {std::pair{0, 1}, {1, 8}, {8, 17}, {17, 30}}) {
    const auto alone = m(x.slice(1, begin, end));
    EXPECT_TRUE(torch::allclose(packed.slice(2, begin, end).slice(3, begin, end), alone.weights));
    const auto places = torch::arange(30);
    const auto real = torch::logical_and(places >= begin, places < end).unsqueeze(0);
    EXPECT_TRUE(torch::allclose(m(x, {.key_padding_mask = real}).output.slice(1, begin, end),
                                alone.output, 1e-5, 1e-6));
  }
}

TEST(Neighborhood, ConstructorErrors) {
  using Options = NeighborhoodSelfAttentionOptions;
  const auto bad = [](Options o, std::vector<std::string> parts) {
    o.d_model = 16;
    parts.push_back("NeighborhoodSelfAttention");
    expect_error([&] { (void)NeighborhoodSelfAttention(o); }, parts);
    NeighborhoodSelfAttention later(16);
    later->options = o;
    later->options.input_dim = 16;
    expect_error([&] { later(torch::ones({1, 4, 16})); }, parts);
  };
  bad({.kernel_size = {4}}, {"kernel_size", "odd", "4"});
  bad({.kernel_size = {0}}, {"kernel_size", "0"});
  bad({.kernel_size = {-3}}, {"kernel_size", "-3"});
  bad({.kernel_size = {}}, {"kernel_size", "1", "0"});
  bad({.kernel_size = {3, 3}}, {"kernel_size", "1", "2"});
  bad({.kernel_size = {3, 3, 3}, .grid = {2, 2}}, {"kernel_size", "2", "3"});
  bad({.dilation = {0}}, {"dilation", "0"});
  bad({.dilation = {1, -1}, .grid = {2, 2}}, {"dilation", "-1"});
  bad({.dilation = {}}, {"dilation", "0"});
  bad({.is_causal = {true, false}}, {"is_causal", "1", "2"});
  bad({.grid = {4}}, {"grid", "1"});
  bad({.grid = {1, 1, 2, 2}}, {"grid", "4"});
  bad({.grid = {4, 0}}, {"grid", "0"});
  bad({.grid = {4, -1}}, {"grid", "-1"});
  bad({.grid = {int64_t{1} << 31, int64_t{1} << 31}}, {"grid", "2^30", "2147483648"});
}

TEST(Neighborhood, ForwardErrors) {
  NeighborhoodSelfAttention m({.d_model = 8, .num_heads = 2, .kernel_size = {3}, .grid = {3, 4}});
  const auto bad = [&](const torch::Tensor& x, const AttentionInputs& in,
                       std::vector<std::string> parts) {
    parts.push_back("NeighborhoodSelfAttention");
    expect_error([&] { m(x, in); }, parts);
  };
  const auto x = torch::ones({2, 12, 8});
  bad(torch::ones({2, 11, 8}), {}, {"x", "grid", "[3, 4]", "12", "11"});
  bad(torch::ones({12, 8}), {}, {"x", "[12, 8]"});
  bad({}, {}, {"x", "undefined"});
  bad(x, {.context = torch::ones({2, 13, 8})}, {"context", "grid", "13"});
  bad(x, {.documents = {.offsets = torch::tensor({0, 12})}}, {"documents", "grid"});
  expect_error([&] { m->make_cache(2, 12); }, {"NeighborhoodSelfAttention", "cache", "grid"});
  NeighborhoodSelfAttention sequence(8);
  bad(x, {.cache = sequence->make_cache(2, 12)}, {"cache", "grid"});
  std::stringstream text;
  text << *m;
  EXPECT_NE(text.str().find("kernel_size={3}, dilation={1}, is_causal={false}, grid={3, 4}"),
            std::string::npos)
      << text.str();
}

TEST(Neighborhood, MaskErrors) {
  const auto bad = [](auto&& call, std::vector<std::string> parts) {
    parts.push_back("neighborhood");
    expect_error(call, parts);
  };
  bad([] { neighborhood({}, {3}); }, {"grid", "0"});
  bad([] { neighborhood({2, 2, 2, 2}, {3}); }, {"grid", "4"});
  bad([] { neighborhood({4, 0}, {3}); }, {"grid", "0"});
  bad([] { neighborhood({int64_t{1} << 20, 1 << 11}, {3}); }, {"grid", "2^30"});
  bad([] { neighborhood({4, 4}, {3, 3, 3}); }, {"kernel_size", "2", "3"});
  bad([] { neighborhood({4, 4}, {2}); }, {"kernel_size", "odd", "2"});
  bad([] { neighborhood({4, 4}, {3}, {0}); }, {"dilation", "0"});
  bad([] { neighborhood({4, 4}, {3}, {}); }, {"dilation", "0"});
  bad([] { neighborhood({4, 4}, {3}, {1}, {true, false, true}); }, {"causal", "3"});
  const auto t = torch::ones({1, 1, 16, 4});
  bad([&] { attention(t, t, t, neighborhood({4, 5}, {3})); }, {"20", "S=16"});
  bad(
      [&] {
        attention(t.repeat({1, 1, 2, 1}), t, t, neighborhood({4, 4}, {3}));
      },
      {"L <= S", "32"});
}

}  // namespace
}  // namespace attzoo::testing::neighborhood_test
