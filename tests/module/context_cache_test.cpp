// Cross attention with a context's keys and values projected once is that with the context itself.

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <attzoo/attzoo.hpp>

#include <string>
#include <utility>
#include <vector>

#include "support/error_rule.hpp"
#include "support/every_mechanism.hpp"
#include "support/expect_error.hpp"
#include "support/same_result.hpp"

namespace attzoo::testing::context_cache_test {
namespace {

constexpr int64_t kBatch = 3, kWidth = 32;

struct Cross {
  std::string name;
  AnyAttention attn;
};

/// Every mechanism and wrapper that keeps keys and values, in eval mode, and their stranger
/// options.
std::vector<Cross> every_cross() {
  std::vector<Cross> all;
  for (const auto& [name, make] : every_mechanism({.width = kWidth, .heads = 4, .span = 8})) {
    if (make().takes().context) all.push_back({name, make()});  // recurrences take none
  }
  const auto add = [&](const std::string& name, const AnyAttention& attn) {
    all.push_back({name, attn});
  };
  add("grouped, all options", GroupedSelfAttention({.d_model = kWidth,
                                                    .num_query_heads = 4,
                                                    .num_kv_heads = 2,
                                                    .bias = true,
                                                    .rope = true,
                                                    .head_dim = 6,
                                                    .qk_norm = true,
                                                    .softcap = 3.0,
                                                    .sinks = true,
                                                    .output_gate = true}));
  add("exact LSH", LSHSelfAttention({.d_model = kWidth,
                                     .num_heads = 2,
                                     .bucket_size = 4,
                                     .num_hashes = 2,
                                     .exact_buckets = true}));
  add("a transformer block", transformer_block(MultiHeadSelfAttention(kWidth, 4)));
  add("a stack", Stack(MultiHeadSelfAttention(kWidth, 4), gated(LocalSelfAttention(kWidth))));
  for (const auto& cross : all) cross.attn->eval();
  return all;
}

bool has_keys(const AnyAttention& attn) { return !attn->as<LinearSelfAttentionImpl<>>(); }

/// A context's tokens that are real, [B, S]: the first is, so that nobody sees nothing.
torch::Tensor real_tokens(int64_t S) {
  auto real = torch::rand({kBatch, S}) > 0.3;
  real.select(1, 0).fill_(true);
  return real;
}

TEST(ContextCache, IsTheContext) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(1);
  for (const auto& [name, attn] : every_cross()) {
    if (!has_keys(attn)) continue;
    for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16}) {
      attn->to(dtype);
      for (const auto& [L, S] : {std::pair{1, 1}, {1, 21}, {7, 21}, {21, 7}, {40, 33}}) {
        for (const bool padded : {false, true}) {
          const auto what = c10::str(name, " L=", L, " S=", S, padded ? " padded " : " ", dtype);
          const auto x = torch::randn({kBatch, L, attn.input_dim()}).to(dtype);
          const auto context = torch::randn({kBatch, S, attn.input_dim()}).to(dtype);
          const auto real = padded ? real_tokens(S) : torch::Tensor();
          const auto cache = attn.make_context_cache(context, real);
          EXPECT_EQ(cache.length(), S) << what;
          const auto gold = attn(x, {.key_padding_mask = real, .context = context});
          expect_same(attn(x, {.cache = cache}), gold, what);
          // Another call finds the same.
          expect_same(attn(x, {.cache = cache}), gold, what + ", again");
        }
      }
    }
  }
}

TEST(ContextCache, TakesMasksPositionsAndCausality) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(2);
  const int64_t L = 9, S = 14;
  for (const auto& [name, attn] : every_cross()) {
    if (!has_keys(attn)) continue;
    attn->to(torch::kFloat64);
    const auto x = torch::randn({kBatch, L, attn.input_dim()}, torch::kFloat64);
    const auto context = torch::randn({kBatch, S, attn.input_dim()}, torch::kFloat64);
    const auto cache = attn.make_context_cache(context);
    const auto compare = [&, name = name, attn = attn](AttentionInputs inputs,
                                                       const std::string& what) {
      inputs.context = context;
      const auto gold = attn(x, inputs);
      inputs.context = torch::Tensor();
      inputs.cache = cache;
      expect_same(attn(x, inputs), gold, name + ", " + what);
    };
    if (attn.takes().causal) compare({.causal = true}, "causal");
    if (attn.takes().mask) {
      auto mask = torch::rand({L, S}) > 0.5;
      mask.select(1, S - 1).fill_(true);
      compare({.mask = mask}, "mask");
      compare({.mask = torch::randn({kBatch, 1, L, S}, torch::kFloat64)}, "bias");
    }
    if (attn.takes().positions && name != "streaming") {  // which counts them in its cache
      compare({.position_offset = 5}, "position_offset");
      compare({.positions = torch::randint(50, {kBatch, L})}, "positions");
    }
  }
}

TEST(ContextCache, OfOverlappingBlocksIsAsLongAsX) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(6);
  BlockSelfAttention cross(
      {.d_model = kWidth, .num_heads = 2, .block_size = 4, .overlap = true, .rope = true});
  cross->eval();
  const auto x = torch::randn({kBatch, 10, kWidth}), context = torch::randn({kBatch, 10, kWidth});
  const auto real = real_tokens(10);
  const auto cache = cross->make_context_cache(context, real);
  expect_same(cross(x, {.cache = cache}), cross(x, {.key_padding_mask = real, .context = context}),
              "overlapping");
  expect_error([&] { cross(x.slice(1, 0, 3), {.cache = cache}); }, {"as long as x"});
}

TEST(ContextCache, GoesTokenByToken) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(3);
  GroupedSelfAttention cross({.d_model = kWidth, .num_query_heads = 4, .num_kv_heads = 1});
  cross->eval();
  cross->to(torch::kFloat64);
  const auto x = torch::randn({kBatch, 6, kWidth}, torch::kFloat64);
  const auto context = torch::randn({kBatch, 30, kWidth}, torch::kFloat64);
  const auto real = real_tokens(30);
  const auto cache = cross->make_context_cache(context, real);
  const auto gold = cross(x, {.key_padding_mask = real, .context = context});
  for (int64_t i = 0; i < x.size(1); ++i) {
    const auto row = gold.output.slice(1, i, i + 1);
    expect_within_rule(cross(x.slice(1, i, i + 1), {.cache = cache}).output, row, row, 2, 64, "");
  }
}

TEST(ContextCache, ReordersAndClones) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(4);
  for (const auto& [name, attn] : every_cross()) {
    if (!has_keys(attn)) continue;
    attn->to(torch::kFloat64);
    const auto x = torch::randn({kBatch, 2, attn.input_dim()}, torch::kFloat64);
    const auto context = torch::randn({kBatch, 11, attn.input_dim()}, torch::kFloat64);
    const auto real = real_tokens(11);
    auto cache = attn.make_context_cache(context, real);
    auto copy = cache.clone();
    const auto order = torch::tensor({2, 0, 0});
    cache.reorder(order);
    const auto taken = [&](const torch::Tensor& t) { return t.index_select(0, order); };
    expect_same(attn(x, {.cache = cache}),
                attn(x, {.key_padding_mask = taken(real), .context = taken(context)}),
                name + ", reordered");
    expect_same(attn(x, {.cache = copy}), attn(x, {.key_padding_mask = real, .context = context}),
                name + ", its clone");
  }
}

TEST(ContextCache, KeepsKeysAndValuesAlone) {
  const torch::NoGradGuard no_grad;
  GroupedSelfAttention cross({.d_model = 64, .num_query_heads = 8, .num_kv_heads = 2});
  const auto context = torch::randn({2, 100, 64});
  const int64_t rows = 2 * 100, d_head = 8;
  EXPECT_EQ(cross->make_context_cache(context).bytes(), 2 * rows * 2 * d_head * 4);
  EXPECT_EQ(cross->make_context_cache(context, torch::ones({2, 100}, torch::kBool)).bytes(),
            2 * rows * 2 * d_head * 4 + rows);
}

TEST(ContextCache, DoesNotSeeLaterChangesOfItsContext) {
  const torch::NoGradGuard no_grad;
  MultiHeadSelfAttention cross(kWidth, 4);
  cross->eval();
  auto context = torch::randn({kBatch, 5, kWidth});
  auto real = torch::ones({kBatch, 5}, torch::kBool);
  const auto x = torch::randn({kBatch, 2, kWidth});
  const auto cache = cross->make_context_cache(context, real);
  const auto before = cross(x, {.cache = cache}).output;
  context.zero_();
  real.zero_();
  EXPECT_TRUE(torch::equal(cross(x, {.cache = cache}).output, before));
}

TEST(ContextCache, WorksUnderAutocastAndInferenceMode) {
  torch::manual_seed(5);
  MultiHeadSelfAttention cross({.d_model = kWidth, .num_heads = 4, .qk_norm = true});
  cross->eval();
  const auto x = torch::randn({kBatch, 2, kWidth}), context = torch::randn({kBatch, 5, kWidth});
  const c10::InferenceMode inference;
  const auto cache = cross->make_context_cache(context);
  const auto gold = cross(x, {.context = context}).output;
  EXPECT_TRUE(torch::allclose(cross(x, {.cache = cache}).output, gold, 1e-5, 1e-6));
  at::autocast::set_autocast_enabled(torch::kCPU, true);
  const auto half = cross->make_context_cache(context);
  const auto output = cross(x, {.cache = half}).output;
  at::autocast::set_autocast_enabled(torch::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_TRUE(torch::allclose(output.to(torch::kFloat32), gold, 0.05, 0.05));
  EXPECT_TRUE(torch::allclose(cross(x, {.cache = half}).output, gold, 0.05, 0.05));
}

TEST(ContextCache, RefusesWhatItCannotDo) {
  MultiHeadSelfAttention cross(kWidth, 4), other(kWidth, 4);
  cross->eval();
  other->eval();
  const auto x = torch::randn({kBatch, 2, kWidth}), context = torch::randn({kBatch, 5, kWidth});
  expect_error([&] { cross->make_context_cache(context); }, {"gradients", "NoGradGuard"});
  const torch::NoGradGuard no_grad;
  const auto ones = [](int64_t B, int64_t S) { return torch::ones({B, S}, torch::kBool); };
  for (const auto& [bad, said] : std::vector<std::pair<torch::Tensor, std::string>>{
           {torch::Tensor(), "context"},
           {torch::randn({5, kWidth}), "context"},
           {torch::randn({kBatch, 5, kWidth + 1}), "context"},
           {torch::randn({kBatch, 5, kWidth}, torch::kFloat64), "dtype"}}) {
    expect_error([&, &bad = bad] { cross->make_context_cache(bad); },
                 {"MultiHeadSelfAttention", said});
  }
  expect_error([&] { cross->make_context_cache(context, ones(kBatch, 6)); }, {"key_padding_mask"});
  expect_error(
      [&] {
        cross->make_context_cache(context, torch::ones({kBatch, 5}));
      },
      {"key_padding_mask"});

  auto cache = cross->make_context_cache(context);
  const auto refused = [&](const AttentionInputs& inputs, const std::string& said) {
    expect_error([&] { cross(x, inputs); }, {"MultiHeadSelfAttention", said});
  };
  refused({.context = context, .cache = cache}, "context");
  refused({.key_padding_mask = ones(kBatch, 5), .cache = cache}, "make_context_cache");
  refused({.documents = {.offsets = torch::tensor({0, 2})}, .cache = cache}, "documents");
  refused({.mask = ones(2, 4), .cache = cache}, "mask");
  refused({.position_offset = 3, .cache = cache}, "rope");
  expect_error([&] { other(x, {.cache = cache}); }, {"another module's"});
  expect_error([&] { cross(x.slice(0, 0, 1), {.cache = cache}); }, {"batch=3"});
  expect_error([&] { cache.truncate(2); }, {"do not grow", "make_context_cache"});
  expect_error([&] { cache.reset(); }, {"do not grow"});
  cache.truncate(5);
  expect_error([&] { cache.reorder(torch::tensor({0, 1})); }, {"batch=3"});
  cross->to(torch::kFloat64);
  expect_error([&] { cross(x.to(torch::kFloat64), {.cache = cache}); }, {"dtype was Float"});
  {
    MultiHeadSelfAttention drops({.d_model = kWidth, .num_heads = 4, .dropout = 0.5});
    const auto its = drops->make_context_cache(context);
    expect_error([&] { drops(x, {.cache = its}); }, {"dropped at random", "eval()"});
  }
  {
    LongformerSelfAttention global({.d_model = kWidth, .num_heads = 4});
    global->eval();
    const auto its = global->make_context_cache(context);
    expect_error([&] { global(x, {.global_attention = torch::ones({2}), .cache = its}); },
                 {"no meaning with a context"});
  }
  LinearSelfAttention linear(kWidth);
  expect_error([&] { linear->make_context_cache(context); }, {"make_context_cache", "context"});
  const torch::AutoGradMode grad(true);
  MultiHeadSelfAttention learns(kWidth, 4);
  learns->eval();
  const auto its = [&] {
    const torch::NoGradGuard none;
    return learns->make_context_cache(context);
  }();
  expect_error([&] { learns(x, {.cache = its}); }, {"gradients do not flow"});
}

TEST(ContextCache, StaysBesideOneThatGrows) {
  const torch::NoGradGuard no_grad;
  core::CacheHead head{0, kBatch, 16, torch::kFloat32, torch::kFloat32, torch::kCPU};
  MultiHeadSelfAttention self({.d_model = kWidth, .num_heads = 4, .causal = true});
  MultiHeadSelfAttention cross(kWidth, 4);
  self->eval();
  const auto x = torch::randn({kBatch, 3, kWidth});
  auto grows = self->make_cache(kBatch, 16);
  Cache both(std::make_shared<core::JoinedCache>(
      head,
      std::vector<Cache>{cross->make_context_cache(torch::randn({kBatch, 7, kWidth})), grows}));
  self(x, {.cache = grows});
  EXPECT_EQ(both.length(), 3);
  both.truncate(1);
  EXPECT_EQ(grows.length(), 1);
  both.reset();
  EXPECT_EQ(both.length(), 0);
}

}  // namespace
}  // namespace attzoo::testing::context_cache_test
