// The option rope of modules, and positions that come with a call.

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <attzoo/attzoo.hpp>

#include <sstream>

#include "support/expect_error.hpp"

namespace attzoo::testing::positions_test {
namespace {

constexpr int64_t kWidth = 16;

std::vector<RopeOptions> variants() {
  return {{},
          {.base = 5e5, .pairs = RopePairs::kHalves},
          {.pairs = RopePairs::kHalves, .dimensions = 4},
          {.dimensions = 2, .scaling = LinearRopeScaling{.factor = 2}},
          {.pairs = RopePairs::kHalves, .scaling = NtkRopeScaling{.factor = 4}},
          {.pairs = RopePairs::kHalves,
           .scaling = YarnRopeScaling{.factor = 4, .original_max_position = 16, .truncate = false}},
          {.scaling = Llama3RopeScaling{.original_max_position = 32}}};
}

/// Heads turned by apply_rope, attended densely: what a module with this rope must give.
torch::Tensor by_definition(MultiHeadSelfAttention& m, const torch::Tensor& x,
                            const torch::Tensor& context, RopeOptions of_q, RopeOptions of_k,
                            bool causal) {
  const int64_t B = x.size(0), L = x.size(1), S = context.size(1), H = kWidth / m->d_head();
  const auto split = [&](const torch::Tensor& t) {
    return t.view({B, t.size(1), H, -1}).transpose(1, 2);
  };
  const auto q = apply_rope(split(m->w_q(x)), of_q), k = apply_rope(split(m->w_k(context)), of_k);
  auto s = torch::matmul(q, k.transpose(-1, -2)) / std::sqrt(static_cast<double>(m->d_head()));
  if (causal) {
    s = s.masked_fill(torch::ones({L, S}, torch::kBool).triu(S - L + 1), -INFINITY);
  }
  const auto o = torch::matmul(torch::softmax(s, -1), split(m->w_v(context)));
  return m->w_o(o.transpose(1, 2).flatten(2));
}

TEST(ModuleRope, EveryVariantTurnsQueriesAndKeys) {
  torch::manual_seed(1);
  for (const auto& rope : variants()) {
    MultiHeadSelfAttention m({.d_model = kWidth, .num_heads = 2, .dropout = 0, .rope = rope});
    m->to(torch::kFloat64);
    auto x = torch::randn({2, 9, kWidth}, torch::kFloat64).requires_grad_();
    const auto context = torch::randn({2, 12, kWidth}, torch::kFloat64);
    auto shifted = rope;
    shifted.position_offset = 3;
    const auto expect = [&](const AttentionInputs& in, const torch::Tensor& want) {
      const auto got = m(x, in).output;
      EXPECT_TRUE(torch::allclose(got, want, 1e-10, 1e-12));
      const auto cotangent = torch::randn_like(got);
      EXPECT_TRUE(torch::allclose(torch::autograd::grad({(got * cotangent).sum()}, {x})[0],
                                  torch::autograd::grad({(want * cotangent).sum()}, {x})[0], 1e-9,
                                  1e-11));
    };
    expect({}, by_definition(m, x, x, rope, rope, false));
    expect({.causal = true}, by_definition(m, x, x, rope, rope, true));
    expect({.causal = true, .context = context, .position_offset = 3},
           by_definition(m, x, context, shifted, rope, true));
    // Positions of the call's own: of all sequences, and of each.
    for (const auto& at : {torch::randint(0, 100, {9}), torch::randint(0, 100, {1, 9}),
                           torch::randint(-5, 100, {2, 9}, torch::kInt32)}) {
      auto placed = rope;
      placed.positions = at.dim() == 1 ? at : at.unsqueeze(1);
      expect({.positions = at}, by_definition(m, x, x, placed, placed, false));
      expect({.context = context, .positions = at},
             by_definition(m, x, context, placed, rope, false));
    }
  }
}

TEST(ModuleRope, EveryVariantThroughACache) {
  torch::manual_seed(2);
  const torch::NoGradGuard no_grad;
  for (const auto& rope : variants()) {
    GroupedSelfAttention m({.d_model = kWidth,
                            .num_query_heads = 2,
                            .num_kv_heads = 1,
                            .dropout = 0,
                            .rope = rope,
                            .causal = true});
    m->to(torch::kFloat64);
    const auto x = torch::randn({2, 40, kWidth}, torch::kFloat64);
    const auto want = m(x).output;
    auto cache = m->make_cache(2, 40);
    for (int64_t at = 0, L = 11; at < 40; at += L, L = at % 3 + 1) {
      const int64_t end = std::min<int64_t>(40, at + L);
      const auto got = m(x.slice(1, at, end), {.cache = cache}).output;
      EXPECT_TRUE(torch::allclose(got, want.slice(1, at, end), 1e-10, 1e-12)) << at;
    }
    // Left padding: positions count real tokens, and so do those that Hugging Face would pass.
    const auto real = torch::arange(12).unsqueeze(0) >= torch::tensor({{0}, {5}});
    const auto ids = (real.cumsum(1) - 1).clamp_min(0);
    auto padded = m->make_cache(2, 40);
    const auto by_cache = m(x.slice(1, 0, 12), {.key_padding_mask = real, .cache = padded}).output;
    const auto by_ids = m(x.slice(1, 0, 12), {.key_padding_mask = real, .positions = ids}).output;
    EXPECT_TRUE(torch::allclose(by_cache[0], by_ids[0], 1e-10, 1e-12));
    EXPECT_TRUE(torch::allclose(by_cache[1].slice(0, 5), by_ids[1].slice(0, 5), 1e-10, 1e-12));
    const auto alone = m(x.slice(0, 1, 2).slice(1, 5, 12)).output;
    EXPECT_TRUE(torch::allclose(by_ids.slice(0, 1, 2).slice(1, 5), alone, 1e-10, 1e-12));
  }
}

TEST(ModuleRope, EveryMechanismTakesIt) {
  torch::manual_seed(3);
  const RopeOptions rope{.base = 500, .pairs = RopePairs::kHalves};
  const auto check = [&](auto m, bool relative = true) {
    m->eval();
    m->to(torch::kFloat64);
    const auto x = torch::randn({2, 13, kWidth}, torch::kFloat64);
    EXPECT_TRUE(m->takes().positions);
    const auto want = m(x).output;
    EXPECT_TRUE(torch::allclose(m(x, {.positions = torch::arange(13)}).output, want));
    // Scores depend on differences of positions alone, but for maps behind the rotation.
    EXPECT_EQ(torch::allclose(m(x, {.positions = torch::arange(13) + 99}).output, want, 1e-7, 1e-9),
              relative);
    EXPECT_FALSE(torch::allclose(m(x, {.positions = torch::arange(13) * 3}).output, want, 1e-4));
    auto config = m->get_config();
    decltype(m) again(config);
    again->to(torch::kFloat64);
    again->eval();
    load_state_dict(*again, state_dict(*m));
    EXPECT_TRUE(torch::equal(again(x).output, want));
    config.rope = true;
    decltype(m) other(config);
    other->to(torch::kFloat64);
    other->eval();
    load_state_dict(*other, state_dict(*m));
    EXPECT_FALSE(torch::allclose(other(x).output, want, 1e-4));
    std::ostringstream text;
    text << m << other;
    EXPECT_NE(text.str().find("rope={base=500, pairs=halves}"), std::string::npos) << text.str();
    EXPECT_NE(text.str().find("rope=true"), std::string::npos) << text.str();
  };
  check(VanillaSelfAttention({.d_model = kWidth, .rope = rope}));
  check(MultiHeadSelfAttention({.d_model = kWidth, .num_heads = 2, .rope = rope}));
  check(GroupedSelfAttention(
      {.d_model = kWidth, .num_query_heads = 2, .num_kv_heads = 1, .rope = rope}));
  check(LocalSelfAttention({.d_model = kWidth, .num_heads = 2, .window_size = 6, .rope = rope}));
  check(
      DilatedSelfAttention({.d_model = kWidth, .num_heads = 2, .dilation_rate = 2, .rope = rope}));
  check(BlockSelfAttention({.d_model = kWidth, .num_heads = 2, .block_size = 6, .rope = rope}));
  check(BlockSelfAttention(
      {.d_model = kWidth, .num_heads = 2, .block_size = 6, .overlap = true, .rope = rope}));
  check(
      LongformerSelfAttention({.d_model = kWidth, .num_heads = 2, .window_size = 6, .rope = rope}));
  check(LinearSelfAttentionWith<ExpMap>({.d_model = kWidth, .num_heads = 2, .rope = rope}),
        /*relative=*/false);
}

TEST(ModuleRope, WrappersPassPositionsOn) {
  torch::manual_seed(4);
  const auto x = torch::randn({2, 7, kWidth});
  const MultiHeadSelfAttention with({.d_model = kWidth, .num_heads = 2, .rope = true}),
      without({.d_model = kWidth, .num_heads = 2});
  const AttentionInputs far{.positions = torch::arange(7) * 5};
  auto one = combined(with, without);
  one->eval();
  EXPECT_TRUE(one->takes().positions);
  EXPECT_FALSE(torch::allclose(one(x, far).output, one(x).output, 1e-4));
  auto none = combined(without, without);
  expect_error([&] { none(x, far); }, {"CombinedAttention", "positions", "rope"});
  // position_offset as positions.
  const AttentionInputs later{.context = x, .position_offset = 9};
  EXPECT_FALSE(torch::allclose(one(x, later).output, one(x, {.context = x}).output, 1e-4));
  expect_error([&] { none(x, later); }, {"CombinedAttention", "position_offset", "rope", "9"});
  auto block = transformer_block(gated(without));
  expect_error([&] { block(x, {.position_offset = 9}); },
               {"MultiHeadSelfAttention", "position_offset", "rope", "9"});
  auto gate = gated(with);
  gate->eval();
  EXPECT_FALSE(torch::allclose(gate(x, far).output, gate(x).output, 1e-4));
}

TEST(ModuleRope, Errors) {
  const auto make = [](const Rope& rope) {
    return MultiHeadSelfAttention({.d_model = kWidth, .num_heads = 2, .rope = rope});
  };
  const std::string name = "MultiHeadSelfAttention";
  expect_error([&] { make(RopeOptions{.position_offset = 1}); }, {name, "position_offset"});
  expect_error([&] { make(RopeOptions{.positions = torch::arange(3)}); }, {name, "positions"});
  expect_error([&] { make(RopeOptions{.base = 0}); }, {name, "rope", "base", "0"});
  expect_error([&] { make(RopeOptions{.dimensions = 10}); }, {name, "rope", "dimensions", "10"});
  expect_error([&] { make(RopeOptions{.scaling = YarnRopeScaling{.factor = 2}}); },
               {name, "rope", "original_max_position"});
  // Part of an odd head may turn.
  MultiHeadSelfAttention({.d_model = 15, .num_heads = 3, .rope = RopeOptions{.dimensions = 4}});

  const auto x = torch::randn({2, 5, kWidth});
  auto m = make(true), off = make(false);
  const auto ids = torch::arange(5);
  const auto bad = [&](const AttentionInputs& in, std::vector<std::string> parts) {
    parts.push_back(name);
    expect_error([&] { m(x, in); }, parts);
  };
  expect_error([&] { off(x, {.positions = ids}); }, {name, "positions", "rope"});
  expect_error([&] { ALiBiSelfAttention(kWidth, 2)(x, {.positions = ids}); },
               {"ALiBiSelfAttention", "positions", "rope"});
  expect_error([&] { off(x, {.position_offset = -2}); }, {name, "position_offset", "rope", "-2"});
  bad({.positions = ids.to(torch::kFloat32)}, {"positions", "integers", "Float"});
  bad({.positions = ids > 2}, {"positions", "integers", "Bool"});
  bad({.positions = ids.slice(0, 1)}, {"positions", "[4]", "L=5"});
  bad({.positions = ids.expand({3, 5})}, {"positions", "[3, 5]", "B=2"});
  bad({.positions = ids.view({1, 1, 5})}, {"positions", "[1, 1, 5]"});
  bad({.positions = torch::tensor(3)}, {"positions"});
  bad({.positions = ids.to(torch::kMeta)}, {"positions", "meta"});
  bad({.positions = ids.to_sparse()}, {"positions", "dense"});
  bad({.position_offset = 1, .positions = ids}, {"positions", "position_offset"});
  bad({.documents = {.offsets = torch::tensor({0, 5})}, .positions = ids},
      {"positions", "documents"});
  const torch::NoGradGuard no_grad;
  m->eval();
  const auto cache = m->make_cache(2, 8);
  bad({.causal = true, .cache = cache, .positions = ids}, {"positions", "cache"});
}

}  // namespace
}  // namespace attzoo::testing::positions_test
