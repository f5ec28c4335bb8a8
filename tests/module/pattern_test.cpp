// A module's inputs `pattern` and `score` are what their tensors are in `mask`, in every call.

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/attzoo.hpp>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "support/error_rule.hpp"
#include "support/every_mechanism.hpp"
#include "support/expect_error.hpp"
#include "support/same_result.hpp"

namespace attzoo::testing::pattern_test {
namespace {

constexpr int64_t kBatch = 2, kWidth = 24, kHeads = 2;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Subject {
  std::string name;
  AnyAttention attn;
};

/// Every mechanism and wrapper that knows pairs, and stranger options, in eval mode and float64.
std::vector<Subject> subjects() {
  std::vector<Subject> all;
  for (const auto& [name, make] :
       every_mechanism({.width = kWidth, .heads = kHeads, .span = 8, .buckets = 3})) {
    all.push_back({name, make()});
  }
  const auto add = [&](const char* name, const AnyAttention& attn) { all.push_back({name, attn}); };
  add("grouped, all options", GroupedSelfAttention({.d_model = kWidth,
                                                    .num_query_heads = kHeads,
                                                    .num_kv_heads = 1,
                                                    .rope = true,
                                                    .head_dim = 6,
                                                    .qk_norm = true,
                                                    .softcap = 3.0,
                                                    .sinks = true,
                                                    .output_gate = true,
                                                    .sliding_window = 9}));
  add("blocks alone",
      BlockSelfAttention({.d_model = kWidth, .num_heads = kHeads, .block_size = 5}));
  add("overlapping blocks", BlockSelfAttention({.d_model = kWidth,
                                                .num_heads = kHeads,
                                                .block_size = 6,
                                                .overlap = true,
                                                .rope = true}));
  add("exact LSH in two rounds", LSHSelfAttention({.d_model = kWidth,
                                                   .num_heads = kHeads,
                                                   .bucket_size = 4,
                                                   .num_hashes = 2,
                                                   .num_buckets = 3,
                                                   .exact_buckets = true}));
  add("global projections",
      LongformerSelfAttention(
          {.d_model = kWidth, .num_heads = kHeads, .window_size = 6, .global_projections = true}));
  add("a block", transformer_block(MultiHeadSelfAttention(kWidth, kHeads)));
  add("a stack", Stack(LocalSelfAttention({.d_model = kWidth, .num_heads = kHeads}),
                       gated(MultiHeadSelfAttention(kWidth, kHeads))));
  std::vector<Subject> of_pairs;
  for (const auto& s : all) {
    s.attn->eval();
    s.attn->to(torch::kFloat64);
    if (s.attn.takes().mask) of_pairs.push_back(s);
  }
  return of_pairs;
}

torch::Tensor tokens(int64_t n) { return torch::randn({kBatch, n, kWidth}, torch::kFloat64); }

/// Masks that count in every way, for n keys; one allows each query its own key, so that all of
/// them see something in every pattern.
std::vector<std::pair<std::string, AnyMask>> patterns(int64_t n) {
  const auto self = window(0, 0);
  auto says = torch::rand({kBatch, 1, n, n}) > 0.4;
  const auto marked = table(torch::arange(n) % 4);
  const auto aligned_mod =
      mask_mod([](auto b, auto, auto q, auto kv) { return (q * 2 + kv + b) % 3 != 1; }, aligned);
  return {{"causal and window", causal() && window(6, 0)},
          {"not a window", !window(3, 3) || self},
          {"blocks", blocks(7)},
          {"prefix", prefix(4) || self},
          {"a callable", aligned_mod || self},
          {"a table",
           mask_mod([=](auto, auto, auto q, auto kv) { return marked(q) >= marked(kv); }, aligned)},
          {"a tensor", mask_tensor(says) || self},
          {"documents", documents({.ids = torch::arange(n).div(6, "floor")})},
          {"global tokens", global_tokens(torch::arange(n) % 5 == 0) || window(2, 2)},
          {"tiles", block_mask(causal() && blocks(9), n, n)}};
}

/// Modifiers that add to the score what does not depend on it.
std::vector<std::pair<std::string, AnyScore>> scores(int64_t n) {
  const auto bias = table(torch::randn({2 * n}, torch::kFloat64));
  return {
      {"alibi", alibi(torch::rand({1}, torch::kFloat64))},
      {"relative bias", relative_bias(torch::randn({8, 1}, torch::kFloat64), {.max_distance = 20})},
      {"a tensor", bias_tensor(torch::randn({kBatch, 1, n, n}, torch::kFloat64))},
      {"a callable", score_mod([](auto s, auto b, auto, auto q,
                                  auto kv) { return s + 0.1 * ((q + 2 * kv + b) % 5); },
                               aligned)},
      {"a table",
       score_mod([=](auto s, auto, auto, auto q, auto kv) { return s + bias(q - kv + n); },
                 aligned)}};
}

/// What the modifier adds to the score of each pair of n tokens.
torch::Tensor added_by(const AnyScore& score, int64_t n) {
  const core::Grid all({kBatch, 1, n, n}, 0, n, torch::kCPU);
  return score.evaluate(torch::zeros({kBatch, 1, n, n}, torch::kFloat64), all);
}

TEST(Pattern, IsItsTensor) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(1);
  const int64_t n = 23;
  const auto x = tokens(n);
  for (const auto& [name, attn] : subjects()) {
    for (const bool is_causal : {false, true}) {
      if (!is_causal && name == "grouped, all options") continue;  // it has a sliding window
      if (!is_causal && !attn.takes().later) continue;
      for (const auto& [of, pattern] : patterns(n)) {
        const auto t = create_mask(pattern, kBatch, 1, n, n);
        expect_same(attn(x, {.causal = is_causal, .pattern = pattern}),
                    attn(x, {.mask = t, .causal = is_causal}),
                    c10::str(name, ", ", of, is_causal ? ", causal" : ""));
      }
      for (const auto& [of, score] : scores(n)) {
        expect_same(attn(x, {.causal = is_causal, .score = score}),
                    attn(x, {.mask = added_by(score, n), .causal = is_causal}),
                    c10::str(name, ", ", of, is_causal ? ", causal" : ""));
      }
    }
  }
}

TEST(Pattern, StandsBesideMaskAndPadding) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(2);
  const int64_t n = 17;
  const auto x = tokens(n);
  const auto real = torch::arange(n) < torch::tensor({{17}, {11}});
  const auto bias = torch::randn({n, n}, torch::kFloat64);
  const auto pattern = blocks(4) || window(2, 2);
  const auto score = score_mod(
      [](auto s, auto, auto, auto q, auto kv) { return 2.0 * tanh(s / 2.0) - 0.1 * abs(q - kv); });
  for (const auto& [name, attn] : subjects()) {
    const AttentionInputs both{
        .mask = bias, .key_padding_mask = real, .causal = true, .pattern = pattern, .score = score};
    auto first = both;  // the bias as a modifier behind the score
    first.mask = torch::Tensor();
    first.score = score + bias_tensor(bias);
    expect_same(attn(x, first), attn(x, both), name);
    auto second = both;  // the pattern as a part of the mask
    second.pattern = {};
    second.mask =
        bias.masked_fill(create_mask(pattern, 1, 1, n, n)[0][0].logical_not(), -kInfinity);
    expect_same(attn(x, second), attn(x, both), name);
  }
}

TEST(Pattern, ChangesScoresAsTheModulesOwnOptionsDo) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(3);
  MultiHeadSelfAttention plain({.d_model = kWidth, .num_heads = kHeads});
  MultiHeadSelfAttention capped({.d_model = kWidth, .num_heads = kHeads, .softcap = 0.5});
  load_state_dict(*capped, state_dict(*plain));
  const auto x = torch::randn({kBatch, 9, kWidth});
  expect_same(plain(x, {.score = softcap(0.5)}), capped(x), "softcap");
  GroupedSelfAttention sinks(
      {.d_model = kWidth, .num_query_heads = kHeads, .num_kv_heads = kHeads, .sinks = true});
  const auto logits = torch::randn({kHeads});
  auto with = state_dict(*plain);
  with["sinks"] = logits;
  load_state_dict(*sinks, with);
  expect_same(plain(x, {.score = sink(logits)}), sinks(x), "sink");
}

TEST(Pattern, IsItsTensorInPackedBatches) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(4);
  const int64_t n = 29;
  const auto x = tokens(n);
  const Documents packed{.offsets = torch::tensor({0, 8, 9, 22, 29})};
  for (const auto& [name, attn] : subjects()) {
    for (const auto& [of, pattern] : patterns(n)) {
      expect_same(attn(x, {.causal = true, .documents = packed, .pattern = pattern}),
                  attn(x, {.mask = create_mask(pattern, kBatch, 1, n, n),
                           .causal = true,
                           .documents = packed}),
                  name + ", " + of);
    }
    for (const auto& [of, score] : scores(n)) {
      expect_same(attn(x, {.causal = true, .documents = packed, .score = score}),
                  attn(x, {.mask = added_by(score, n), .causal = true, .documents = packed}),
                  name + ", " + of);
    }
  }
}

TEST(Pattern, CountsInDocuments) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(5);
  const auto x = tokens(29);
  const std::vector<int64_t> offsets{0, 8, 9, 22, 29};
  const auto f = [](auto, auto, auto q, auto kv) { return q / 3 == kv / 3 || kv == 0; };
  const auto g = [](auto s, auto, auto, auto q, auto kv) { return s + 0.3 * ((q + kv) % 4); };
  for (const auto& [name, attn] : subjects()) {
    const auto all = attn(x, {.causal = true,
                              .documents = {.offsets = torch::tensor(offsets)},
                              .pattern = mask_mod(f, in_document),
                              .score = score_mod(g, in_document)});
    for (size_t i = 0; i + 1 < offsets.size(); ++i) {
      const auto alone = x.slice(1, offsets[i], offsets[i + 1]);
      const auto gold =
          attn(alone, {.causal = true, .pattern = mask_mod(f), .score = score_mod(g)}).output;
      expect_within_rule(all.output.slice(1, offsets[i], offsets[i + 1]), gold, gold, 2, 64,
                         c10::str(name, ", document ", i));
    }
  }
}

/// Calls with a cache against each sequence alone, at once; `padding` tokens stand before the
/// first. `alone` says what a sequence is called with whose first token is the given one of its
/// row.
template <class Alone>
void expect_cached(const Subject& subject, const AttentionInputs& modified, Alone alone, int64_t n,
                   int64_t padding, const std::string& what) {
  const auto& attn = subject.attn;
  const auto x = tokens(n);
  const auto real = torch::arange(n) >= torch::tensor({{padding}, {int64_t{0}}});
  std::vector<torch::Tensor> gold;
  for (const int64_t first : {padding, int64_t{0}}) {
    AttentionInputs inputs = alone(first);
    inputs.causal = true;
    const auto b = static_cast<int64_t>(gold.size());
    gold.push_back(attn(x.slice(0, b, b + 1).slice(1, first), inputs).output[0]);
  }
  const auto cache = attn.make_cache(kBatch, n);
  int64_t begin = 0;
  for (const int64_t step : {11, 1, 40, 2, 30, 1, 15}) {
    const int64_t end = std::min(n - 10, begin + step);  // the last blocks that overlap differ
    auto call = modified;
    call.causal = true;
    call.cache = cache;
    if (call.mask.defined()) call.mask = call.mask.slice(-2, begin, end).slice(-1, 0, end);
    if (padding > 0) call.key_padding_mask = real.slice(1, begin, end);
    const auto got = attn(x.slice(1, begin, end), call).output;
    for (int64_t b = 0; b < kBatch; ++b) {
      const int64_t first = b == 0 ? padding : 0, from = std::max(begin, first);
      if (from >= end) continue;
      const auto rows = gold[static_cast<size_t>(b)].slice(0, from - first, end - first);
      expect_within_rule(got[b].slice(0, from - begin), rows, rows, 2, 128,
                         c10::str(subject.name, ", ", what, ", tokens ", begin, " to ", end));
    }
    begin = end;
  }
}

TEST(Pattern, GoesOnWithACache) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(6);
  const int64_t n = 110;  // windows forget
  const auto marked = table(torch::arange(n) % 4);
  const auto f = [](auto, auto, auto q, auto kv) { return (q + kv) % 3 != 1 || q == kv; };
  const auto g = [](auto s, auto, auto, auto q, auto kv) { return s + 0.3 * ((q + kv) % 4); };
  const std::vector<std::pair<std::string, AnyMask>> masks{
      {"blocks", blocks(7)},
      {"a window", window(4, 0)},
      {"a callable", mask_mod(f, aligned)},
      {"a table",
       mask_mod([=](auto, auto, auto q, auto kv) { return marked(q) >= marked(kv); }, aligned)}};
  const std::vector<std::pair<std::string, AnyScore>> modifiers{
      {"alibi", alibi(torch::rand({1}, torch::kFloat64))},
      {"relative bias", relative_bias(torch::randn({8, 1}, torch::kFloat64), {.max_distance = 20})},
      {"a score", score_mod(g, aligned)}};
  for (const auto& subject : subjects()) {
    const auto compare = [&](const AttentionInputs& modified, auto alone, const std::string& what) {
      for (const int64_t padding : {0, 5}) {
        expect_cached(subject, modified, alone, n, padding, c10::str(what, ", padding ", padding));
      }
    };
    const auto compare_tensor = [&](const AttentionInputs& modified, const torch::Tensor& t,
                                    const std::string& what) {
      compare(
          modified,
          [=](int64_t first) { return AttentionInputs{.mask = t.slice(0, first).slice(1, first)}; },
          what);
    };
    for (const auto& [what, pattern] : masks) {
      compare_tensor({.pattern = pattern}, create_mask(pattern, 1, 1, n, n)[0][0], what);
    }
    const auto random = torch::rand({n, n}) + torch::eye(n) > 0.5;
    compare_tensor({.mask = random}, random, "a mask");
    for (const auto& [what, score] : modifiers) {
      compare_tensor({.score = score}, added_by(score, n)[0][0], what);
    }
    compare(
        {.score = softcap(0.7)}, [](int64_t) { return AttentionInputs{.score = softcap(0.7)}; },
        "softcap");
    compare(
        {.pattern = mask_mod(f, in_document), .score = score_mod(g, in_document)},
        [&](int64_t) { return AttentionInputs{.pattern = mask_mod(f), .score = score_mod(g)}; },
        "in documents");
  }
}

TEST(Pattern, HoldsForGlobalTokensThatACacheKeeps) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(9);
  const int64_t n = 110;
  const auto x = tokens(n);
  auto global = torch::zeros({n}, torch::kBool);
  global.slice(0, 2, 4).fill_(true);
  const auto pattern = mask_mod(
      [](auto, auto, auto q, auto kv) { return (q * 2 + kv) % 3 != 1 || q == kv; }, aligned);
  const auto score = score_mod(
      [](auto s, auto, auto, auto q, auto kv) { return s + 0.3 * ((q + kv) % 4); }, aligned);
  const auto tensor =
      added_by(score, n).masked_fill(create_mask(pattern, 1, 1, n, n).logical_not(), -kInfinity);
  for (const bool own_projections : {false, true}) {
    LongformerSelfAttention attn({.d_model = kWidth,
                                  .num_heads = kHeads,
                                  .window_size = 6,
                                  .global_projections = own_projections,
                                  .rope = true,
                                  .causal = true});
    attn->eval();
    attn->to(torch::kFloat64);
    const auto gold = attn(x, {.mask = tensor, .global_attention = global});
    expect_same(attn(x, {.global_attention = global, .pattern = pattern, .score = score}), gold,
                "whole");
    const auto cache = attn->make_cache(kBatch, n);
    for (int64_t begin = 0; begin < n; begin += 11) {
      AttentionInputs call{.cache = cache, .pattern = pattern, .score = score};
      if (begin == 0) call.global_attention = global.slice(0, 0, 11);
      const auto rows = gold.output.slice(1, begin, begin + 11);
      expect_within_rule(attn(x.slice(1, begin, begin + 11), call).output, rows, rows, 2, 128,
                         c10::str("tokens from ", begin));
    }
  }
}

TEST(Pattern, GoesOnBehindAPackedPrompt) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(10);
  const int64_t n = 90, first = 8, prompt = 20;  // the last document goes on
  const auto f = [](auto, auto, auto q, auto kv) { return q / 3 == kv / 3 || kv == 0; };
  const auto g = [](auto s, auto, auto, auto q, auto kv) { return s + 0.3 * ((q + kv) % 4); };
  for (const auto& [name, attn] : subjects()) {
    if (name == "overlapping blocks") continue;  // the last blocks differ
    const auto x = tokens(n);
    const auto gold =
        attn(x.slice(1, first), {.causal = true, .pattern = mask_mod(f), .score = score_mod(g)})
            .output;
    AttentionInputs call{.causal = true,
                         .documents = {.offsets = torch::tensor({int64_t{0}, first, prompt})},
                         .cache = attn.make_cache(kBatch, n),
                         .pattern = mask_mod(f, in_document),
                         .score = score_mod(g, in_document)};
    attn(x.slice(1, 0, prompt), call);
    call.documents = {};
    for (int64_t begin = prompt; begin < n; begin += 10) {
      const auto rows = gold.slice(1, begin - first, begin - first + 10);
      expect_within_rule(attn(x.slice(1, begin, begin + 10), call).output, rows, rows, 2, 128,
                         c10::str(name, ", tokens from ", begin));
    }
  }
}

TEST(Pattern, HoldsForAContextAndItsCache) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(7);
  const int64_t L = 9, S = 14;
  const auto x = tokens(L), context = tokens(S);
  const auto pattern = mask_mod([](auto, auto, auto q, auto kv) { return (q + kv) % 3 != 1; });
  const auto score = score_mod(
      [](auto s, auto, auto, auto q, auto kv) { return s + 0.3 * ((q + kv) % 4); }, aligned);
  const auto mask = create_mask(pattern, 1, 1, L, S)[0][0];
  const core::Grid all({1, 1, L, S}, 0, L, torch::kCPU);
  const auto bias = AnyScore(score).evaluate(torch::zeros({1, 1, L, S}, torch::kFloat64), all);
  const auto both = bias[0][0].masked_fill(mask.logical_not(), -kInfinity);
  for (const auto& [name, attn] : subjects()) {
    if (name == "overlapping blocks" || name == "grouped, all options") continue;  // L == S, causal
    if (!attn.takes().context) continue;
    const auto gold = attn(x, {.mask = both, .context = context});
    expect_same(attn(x, {.context = context, .pattern = pattern, .score = score}), gold, name);
    const auto cache = attn.make_context_cache(context);
    expect_same(attn(x, {.cache = cache, .pattern = pattern, .score = score}), gold,
                name + ", cached");
  }
}

TEST(Pattern, LearnsAsItsTensor) {
  torch::manual_seed(8);
  const int64_t n = 19;
  const auto pattern = mask_mod([](auto, auto, auto q, auto kv) { return (q * kv) % 5 < 3; });
  for (const auto& subject : subjects()) {
    const auto& name = subject.name;
    const auto& attn = subject.attn;
    const auto x = tokens(n).requires_grad_();
    auto learned = torch::randn({2 * n}, torch::kFloat64).requires_grad_();
    const auto bias = table(learned);
    const auto score =
        score_mod([=](auto s, auto, auto, auto q, auto kv) { return s + bias(q - kv + n); });
    const auto q = torch::arange(n).unsqueeze(1), kv = torch::arange(n);
    const auto tensor = learned.index({q - kv + n}).masked_fill((q * kv % 5) >= 3, -kInfinity);
    std::vector<torch::Tensor> of = attn->parameters();
    of.push_back(x);
    of.push_back(learned);
    const auto cotangent = torch::randn({kBatch, n, kWidth}, torch::kFloat64);
    const auto gradients = [&](AttentionInputs inputs) {
      inputs.causal = true;
      return torch::autograd::grad({attn(x, inputs).output}, of, {cotangent}, std::nullopt, false,
                                   /*allow_unused=*/true);
    };
    const auto got = gradients({.pattern = pattern, .score = score});
    const auto gold = gradients({.mask = tensor});
    for (size_t i = 0; i < of.size(); ++i) {
      ASSERT_EQ(got[i].defined(), gold[i].defined()) << name << ", gradient " << i;
      if (!got[i].defined()) continue;
      expect_within_rule(got[i], gold[i], gold[i], 3, 256, c10::str(name, ", gradient ", i));
    }
  }
}

TEST(Pattern, IsRefusedWithItsReason) {
  const torch::NoGradGuard no_grad;
  const auto x = torch::randn({kBatch, 6, kWidth});
  const auto f = [](auto, auto, auto q, auto kv) { return q >= kv; };
  const auto g = [](auto s, auto, auto, auto, auto) { return s * 2.0; };
  LinearSelfAttention linear({.d_model = kWidth});
  expect_error([&] { linear(x, {.pattern = causal()}); }, {"LinearSelfAttention", "pattern"});
  expect_error([&] { linear(x, {.score = softcap(1)}); }, {"LinearSelfAttention", "score"});
  MultiHeadSelfAttention attn({.d_model = kWidth, .num_heads = kHeads, .causal = true});
  attn->eval();
  expect_error([&] { combined(attn, linear)(x, {.pattern = causal()}); },
               {"CombinedAttention", "pattern"});
  expect_error([&] { Stack(attn, linear)(x, {.score = softcap(1)}); }, {"Stack", "score"});
  LSHSelfAttention lsh({.d_model = kWidth, .num_heads = kHeads});
  expect_error([&] { lsh(x, {.score = sink(torch::zeros({kHeads}))}); }, {"LSH", "sink"});
  MultiHeadSelfAttention sinks({.d_model = kWidth, .num_heads = kHeads, .sinks = true});
  expect_error([&] { sinks(x, {.score = sink(torch::zeros({kHeads}))}); }, {"sinks of its own"});
  expect_error(
      [&] {
        attn(x, {.pattern = mask_tensor(torch::ones({5, 6}, torch::kBool))});
      },
      {"mask_tensor", "5, 6]"});
  // With a cache, before it takes the tokens.
  const auto cache = attn->make_cache(kBatch, 16);
  for (const int64_t length : {0, 6}) {
    expect_error([&] { attn(x, {.cache = cache, .pattern = mask_mod(f)}); },
                 {"MultiHeadSelfAttention", "aligned", "in_document"});
    expect_error([&] { attn(x, {.cache = cache, .score = score_mod(g)}); },
                 {"MultiHeadSelfAttention", "aligned", "in_document"});
    EXPECT_EQ(cache.length(), length);
    if (length == 0) attn(x, {.cache = cache});
  }
  const auto few = table(torch::arange(9));
  const auto reads = [=](auto, auto, auto, auto kv) { return few(kv) < 100; };
  expect_error([&] { attn(x, {.cache = cache, .pattern = mask_mod(reads, aligned)}); },
               {"table", "index 0"});
  expect_error([&] { attn(x, {.cache = cache, .score = alibi(torch::ones({5}))}); }, {"alibi"});
  EXPECT_EQ(cache.length(), 6);
}

}  // namespace
}  // namespace attzoo::testing::pattern_test
