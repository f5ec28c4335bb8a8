// Token by token from a cache is the whole causal pass, for every mechanism and wrapper.

#include <gtest/gtest.h>
#include <attzoo/attzoo.hpp>

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "support/error_rule.hpp"
#include "support/every_mechanism.hpp"
#include "support/expect_error.hpp"

namespace attzoo::testing::cache_test {
namespace {

constexpr int64_t kWidth = 16, kBatch = 2;

/// A module of any type in eval mode, and how many tokens the whole pass must go on behind the rows
/// that are compared: overlapping blocks fade to the end of a sequence.
struct Module {
  AnyAttention any;
  int64_t beyond = 0;

  AttentionResult operator()(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    return any(x, inputs);
  }
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = 4096,
                   const CacheOptions& options = {}) {
    return any.make_cache(batch, capacity, options);
  }
  /// The output of a whole pass over x [B, n, kWidth].
  torch::Tensor whole(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    const auto longer = torch::cat({x, torch::randn({x.size(0), beyond, kWidth}, x.options())}, 1);
    return (*this)(longer, inputs).output.slice(1, 0, x.size(1));
  }
};

struct Case {
  std::string name;
  std::function<Module()> make;
};

Module module(const AnyAttention& m, int64_t beyond = 0) {
  m->eval();
  return {m, beyond};
}

LocalSelfAttention local() {
  return LocalSelfAttention(
      {.d_model = kWidth, .num_heads = 2, .window_size = 9, .rope = true, .causal = true});
}
LinearSelfAttention linear() {
  return LinearSelfAttention({.d_model = kWidth, .num_heads = 2, .rope = true, .causal = true});
}
BlockSelfAttention block(int64_t size, bool overlap, bool python = false) {
  return BlockSelfAttention({.d_model = kWidth,
                             .num_heads = 2,
                             .block_size = size,
                             .overlap = overlap,
                             .rope = true,
                             .causal = true,
                             .python_blend = python});
}
LongformerSelfAttention longformer(bool projections = false) {
  return LongformerSelfAttention({.d_model = kWidth,
                                  .num_heads = 2,
                                  .window_size = 6,
                                  .global_projections = projections,
                                  .rope = true,
                                  .causal = true});
}
LSHSelfAttention lsh(bool exact) {
  return LSHSelfAttention({.d_model = kWidth,
                           .num_heads = 2,
                           .bucket_size = 4,
                           .num_hashes = 2,
                           .num_buckets = exact ? 5 : 9,
                           .exact_buckets = exact,
                           .rope = true,
                           .causal = true});
}

/// Every mechanism of the list, and other forms of them.
std::vector<Case> all_cases() {
  std::vector<Case> cases{
      {"multi_head_bias",
       [] {
         return module(MultiHeadSelfAttention(
             {.d_model = kWidth, .num_heads = 2, .bias = true, .rope = true, .causal = true}));
       }},
      {"multi_query",
       [] {
         return module(GroupedSelfAttention(
             {.d_model = kWidth, .num_query_heads = 4, .num_kv_heads = 1, .causal = true}));
       }},
      {"dilated_window",
       [] {
         return module(DilatedSelfAttention({.d_model = kWidth,
                                             .num_heads = 2,
                                             .dilation_rate = 2,
                                             .window_size = 11,
                                             .causal = true}));
       }},
      {"block_odd", [] { return module(block(7, false)); }},
      {"overlap", [] { return module(block(6, true), 6); }},
      {"overlap_odd", [] { return module(block(5, true), 5); }},
      {"python_blend", [] { return module(block(6, true, true), 6); }},
      {"longformer_projections", [] { return module(longformer(true)); }},
      {"lsh_exact", [] { return module(lsh(true)); }},
      {"gated_local", [] { return module(gated(local())); }},
      {"combined_linear", [] { return module(combined(linear(), block(7, false))); }},
      {"transformer",
       [] { return module(transformer_block(combined(local(), gated(lsh(false))))); }},
  };
  for (const auto& [name, make] : every_mechanism({.width = kWidth,
                                  .heads = 4,
                                  .span = 8,
                                  .dilation = 3,
                                  .hashes = 2,
                                  .causal = true,
                                  .buckets = 9})) {
    if (!make().takes().causal) continue;  // without a causal form there is no cache
    cases.push_back({name, [make = make] { return module(make()); }});
  }
  return cases;
}

class CacheTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override { torch::manual_seed(20240917); }

  static Module make(torch::ScalarType dtype = torch::kFloat64) {
    auto m = GetParam().make();
    m.any.ptr()->to(dtype);
    return m;
  }
  static torch::Tensor tokens(int64_t n, torch::ScalarType dtype = torch::kFloat64) {
    return torch::randn({kBatch, n, kWidth}, dtype);
  }
  /// The outputs of x [B, n, kWidth], fed in chunks of these sizes, the last one again and again.
  static torch::Tensor feed(Module& m, const Cache& cache, const torch::Tensor& x,
                            std::vector<int64_t> sizes = {1}) {
    std::vector<torch::Tensor> outputs, copies;
    for (int64_t at = 0; at < x.size(1);) {
      const int64_t end = std::min(x.size(1), at + sizes[0]);
      outputs.push_back(m(x.slice(1, at, end), {.cache = cache}).output);
      copies.push_back(outputs.back().clone());
      if (sizes.size() > 1) sizes.erase(sizes.begin());
      at = end;
    }
    const auto all = torch::cat(outputs, 1);
    EXPECT_TRUE(torch::equal(all, torch::cat(copies, 1))) << "an earlier output was changed";
    return all;
  }
  static void expect_same(const torch::Tensor& got, const torch::Tensor& want) {
    ASSERT_EQ(got.sizes(), want.sizes());
    EXPECT_TRUE(torch::allclose(got, want, 1e-9, 1e-10))
        << "largest difference " << (got - want).abs().max().item<double>();
  }

  static bool is_one_of(std::initializer_list<const char*> names) {
    return std::any_of(names.begin(), names.end(),
                       [](const char* name) { return GetParam().name == name; });
  }
  /// Whether the cache has keys and values, and not sums or a state alone.
  static bool has_keys() {
    return !is_one_of({"linear", "performer", "combined_linear", "delta_net", "gated_delta_net",
                       "gated_linear", "kimi_delta", "lightning", "mamba2", "retention", "rwkv7"});
  }
  static bool chooses_by_keys() { return is_one_of({"moba", "native_sparse"}); }

  torch::NoGradGuard no_grad_;
};

TEST_P(CacheTest, ChunksOfAnySplitAreTheWholePass) {
  auto m = make();
  const int64_t n = 230;  // beyond the memory of a window: it moves several times
  const auto x = tokens(n), want = m.whole(x);
  auto cache = m.make_cache(kBatch);
  for (const auto& sizes : std::vector<std::vector<int64_t>>{
           {1}, {n}, {5, 1}, {100, 1}, {3, 90, 1, 1, 80, 7}, {64}, {33}}) {
    cache.reset();
    EXPECT_EQ(cache.length(), 0);
    expect_same(feed(m, cache, x, sizes), want);
    EXPECT_EQ(cache.length(), n);
  }
  std::mt19937 random(7);
  for (int i = 0; i < 5; ++i) {
    std::vector<int64_t> sizes;
    for (int64_t sum = 0; sum < n; sum += sizes.back()) sizes.push_back(1 + random() % 60);
    cache.reset();
    expect_same(feed(m, cache, x, sizes), want);
  }
}

TEST_P(CacheTest, EveryDtypeByTheErrorRule) {
  const int64_t n = 90;
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    auto m = make();
    m.any.ptr()->to(dtype);
    const auto x = tokens(n, dtype);
    auto cache = m.make_cache(kBatch);
    const auto got = feed(m, cache, x, {20, 1});
    // LSH hashes rounded queries: what lies between two buckets may go to either in another dtype.
    const std::string name = GetParam().name;
    // So does what chooses keys by their scores.
    if (name.find("lsh") != std::string::npos || name == "transformer" || name == "indexed" ||
        name == "native_sparse") {
      if (dtype != torch::kFloat32) continue;
    }
    torch::manual_seed(5);
    const auto reference = m.whole(x);
    m.any.ptr()->to(torch::kFloat64);
    torch::manual_seed(5);
    const auto gold = m.whole(x.to(torch::kFloat64));
    expect_within_rule(got, gold, reference, 2, n, std::string(torch::toString(dtype)));
  }
}

/// Rows of 8 bits: read by kernels as by definition, near those of float32, and refused where there
/// are no keys.
TEST_P(CacheTest, EightBits) {
  constexpr int64_t n = 90;
  auto m = make(torch::kFloat32);
  const auto x = tokens(n, torch::kFloat32);
  const std::vector<int64_t> sizes{40, 1, 17, 1, 3, 1};
  for (const auto dtype : {torch::kInt8, torch::kFloat8_e4m3fn}) {
    if (!has_keys()) {
      expect_error([&] { m.make_cache(kBatch, n, {.dtype = dtype}); }, {"cannot have 8 bits"});
      continue;
    }
    const auto cache = m.make_cache(kBatch, n, {.dtype = dtype});
    const auto got = feed(m, cache, x, sizes);
    {
      const EagerReferenceGuard guard;
      const auto want = feed(m, m.make_cache(kBatch, n, {.dtype = dtype}), x, sizes);
      EXPECT_TRUE(torch::allclose(got, want, 1e-4, 1e-5)) << (got - want).abs().max();
    }
    auto copy = cache.clone();
    copy.truncate(58);
    EXPECT_TRUE(torch::equal(feed(m, copy, x.slice(1, 58), {1, 3, 1}), got.slice(1, 58)));
    if (chooses_by_keys()) continue;  // rounded ones may choose others
    const auto exact = feed(m, m.make_cache(kBatch, n), x, sizes);
    const double error = (got - exact).norm().item<double>() / exact.norm().item<double>();
    EXPECT_LT(error, dtype == torch::kInt8 ? 0.02 : 0.06);
    EXPECT_GT(error, 0);
  }
}

TEST_P(CacheTest, TruncatesAndGoesOn) {
  auto m = make();
  const int64_t n = 160;
  const auto x = tokens(n), want = m.whole(x);
  auto cache = m.make_cache(kBatch);
  std::mt19937 random(3);
  std::vector<torch::Tensor> outputs;
  for (int64_t at = 0; at < n;) {
    const int64_t drafted = 1 + random() % 32, kept = std::min<int64_t>(n - at, 1 + random() % 9);
    m(tokens(drafted), {.cache = cache});
    cache.truncate(at);
    EXPECT_EQ(cache.length(), at);
    outputs.push_back(m(x.slice(1, at, at + kept), {.cache = cache}).output);
    at += kept;
  }
  expect_same(torch::cat(outputs, 1), want);
  // Half of a chunk, too.
  cache.reset();
  m(x.slice(1, 0, 30), {.cache = cache});
  cache.truncate(11);
  expect_same(m(x.slice(1, 11, 40), {.cache = cache}).output, want.slice(1, 11, 40));
}

TEST_P(CacheTest, ReordersSequencesAndClones) {
  auto m = make();
  const auto x = tokens(120);
  const auto order = torch::tensor({1, 1});
  const auto after = torch::cat({x.slice(1, 0, 90).index_select(0, order), x.slice(1, 90)}, 1);
  auto cache = m.make_cache(kBatch);
  feed(m, cache, x.slice(1, 0, 90), {50, 1});
  auto copy = cache.clone();
  cache.reorder(order);
  auto back = cache.clone();
  back.truncate(81);
  const auto want = m.whole(after);
  expect_same(feed(m, cache, x.slice(1, 90)), want.slice(1, 90));
  expect_same(feed(m, back, after.slice(1, 81)), want.slice(1, 81));
  EXPECT_EQ(copy.length(), 90);
  expect_same(feed(m, copy, x.slice(1, 90)), m.whole(x).slice(1, 90));
}

TEST_P(CacheTest, PaddingOnTheLeftIsNotThere) {
  if (GetParam().name == "native_sparse") return;  // refuses it
  auto m = make();
  const int64_t n = 100, prompt = 20;
  const std::vector<int64_t> pads{0, 13};
  const auto x = tokens(n);
  auto real = torch::ones({kBatch, prompt}, torch::kBool);
  real[1].slice(0, 0, pads[1]) = false;
  for (const int64_t first : {prompt, int64_t{5}}) {  // a prompt in one chunk or in two
    auto cache = m.make_cache(kBatch);
    std::vector<torch::Tensor> outputs;
    for (int64_t at = 0; at < prompt; at += first) {
      const int64_t end = std::min(prompt, at + first);
      outputs.push_back(
          m(x.slice(1, at, end), {.key_padding_mask = real.slice(1, at, end), .cache = cache})
              .output);
    }
    auto swapped = cache.clone();
    const auto order = torch::tensor({1, 0});
    swapped.reorder(order);
    outputs.push_back(feed(m, cache, x.slice(1, prompt), {1, 3, 1}));
    const auto other = feed(m, swapped, x.slice(1, prompt).index_select(0, order), {1, 3, 1});
    expect_same(other.index_select(0, order), outputs.back());
    const auto got = torch::cat(outputs, 1);
    for (int64_t b = 0; b < kBatch; ++b) {
      const auto at = pads[static_cast<size_t>(b)];
      expect_same(got.slice(0, b, b + 1).slice(1, at), m.whole(x.slice(0, b, b + 1).slice(1, at)));
    }
    EXPECT_FALSE(got.isnan().any().item<bool>());
  }
}

TEST_P(CacheTest, ContinuesTheLastDocument) {
  // They know no documents.
  if (GetParam().name == "python_blend" || GetParam().name == "native_sparse") return;
  auto m = make();
  const auto x = tokens(70);
  auto cache = m.make_cache(kBatch);
  const auto offsets = torch::tensor({0, 9, 13, 30});
  const auto got = m(x.slice(1, 0, 30), {.documents = {.offsets = offsets}, .cache = cache}).output;
  // The last document is not at its end yet, where overlapping blocks fade.
  const auto packed = m(x.slice(1, 0, 30), {.documents = {.offsets = offsets}}).output;
  expect_same(got.slice(1, 0, 13), packed.slice(1, 0, 13));
  const auto want = m.whole(x.slice(1, 13));
  expect_same(got.slice(1, 13), want.slice(1, 0, 17));
  expect_same(feed(m, cache, x.slice(1, 30), {1, 4, 1}), want.slice(1, 17));
  // Other documents in each sequence.
  cache.reset();
  const auto ids =
      torch::cat({torch::zeros({2, 10}, torch::kInt64), torch::ones({2, 6}, torch::kInt64)}, 1);
  ids[1].slice(0, 4) = 7;
  const auto prompt = m(x.slice(1, 0, 16), {.documents = {.ids = ids}, .cache = cache}).output;
  expect_same(prompt[0].slice(0, 10), m.whole(x.slice(1, 10)).slice(1, 0, 6)[0]);
  expect_same(prompt[1].slice(0, 4), m.whole(x.slice(1, 4)).slice(1, 0, 12)[1]);
  const auto rest = feed(m, cache, x.slice(1, 16));
  expect_same(rest[0], m.whole(x.slice(1, 10)).slice(1, 6)[0]);
  expect_same(rest[1], m.whole(x.slice(1, 4)).slice(1, 12)[1]);
}

TEST_P(CacheTest, APromptOfOneDocumentIsAPlainOne) {
  if (GetParam().name == "python_blend" || GetParam().name == "native_sparse") return;
  auto m = make();
  const auto x = tokens(23);
  const auto plain = m(x, {.cache = m.make_cache(kBatch)}).output;
  const Documents one{.ids = torch::zeros({23}, torch::kInt64)};
  expect_same(m(x, {.documents = one, .cache = m.make_cache(kBatch)}).output, plain);
}

TEST_P(CacheTest, InAndOutOfInferenceMode) {
  auto m = make();
  const int64_t n = 140;
  const auto x = tokens(n), want = m.whole(x);
  for (const bool first : {true, false}) {
    Cache cache;
    {
      const c10::InferenceMode guard(first);
      const torch::NoGradGuard no_grad;
      cache = m.make_cache(kBatch);
      expect_same(m(x.slice(1, 0, 50), {.cache = cache}).output, want.slice(1, 0, 50));
      cache = cache.clone();
    }
    for (int64_t at = 50, end = at; at < n; at = end) {
      end = std::min(n, at + 1 + at % 40);
      const c10::InferenceMode guard(at % 3 == 0);
      const torch::NoGradGuard no_grad;
      expect_same(m(x.slice(1, at, end), {.cache = cache}).output, want.slice(1, at, end));
      cache.truncate(end - 1);
      cache.reorder(torch::arange(kBatch));
      m(x.slice(1, end - 1, end), {.cache = cache});
    }
  }
}

TEST_P(CacheTest, AnyParameterThatLearnsIsAnError) {
  auto m = make();
  auto cache = m.make_cache(kBatch);
  const auto x = tokens(3);
  const torch::AutoGradMode grad(true);
  const auto parameters = m.any.ptr()->named_parameters();
  for (const auto& learns : parameters) {
    for (const auto& p : parameters) p.value().set_requires_grad(p.key() == learns.key());
    expect_error([&] { m(x, {.cache = cache}); }, {"gradients", "NoGradGuard"});
    EXPECT_EQ(cache.length(), 0) << learns.key();
  }
  for (const auto& p : parameters) p.value().set_requires_grad(false);
  m(x, {.cache = cache});
  EXPECT_EQ(cache.length(), 3);
}

TEST_P(CacheTest, HoldsNoMoreThanItsCapacity) {
  auto m = make();
  const auto x = tokens(80);
  auto cache = m.make_cache(kBatch, 70);
  EXPECT_EQ(cache.capacity(), 70);
  EXPECT_EQ(cache.batch(), kBatch);
  const auto bytes = cache.bytes();
  expect_same(feed(m, cache, x.slice(1, 0, 69), {30, 1}), m.whole(x.slice(1, 0, 69)));
  expect_error([&] { m(x.slice(1, 69, 71), {.cache = cache}); },
               {"cache is full", "69 of 70", "larger capacity"});
  EXPECT_EQ(cache.length(), 69);
  expect_same(m(x.slice(1, 69, 70), {.cache = cache}).output,
              m.whole(x.slice(1, 0, 70)).slice(1, 69));
  expect_error([&] { m(x.slice(1, 70, 71), {.cache = cache}); }, {"cache is full"});
  // A recurrence's states come with its first call; their memory is recurrence_contract's.
  if (m.any.takes().later) {
    EXPECT_EQ(cache.bytes(), bytes);
  }
}

TEST_P(CacheTest, ThreadsShareAModule) {
  auto m = make();
  constexpr int kThreads = 8;
  std::vector<torch::Tensor> x, got(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) x.push_back(tokens(60));
  for (size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const torch::NoGradGuard no_grad;
      got[i] = feed(m, m.make_cache(kBatch), x[i], {7, 1});
    });
  }
  for (auto& t : threads) t.join();
  for (size_t i = 0; i < kThreads; ++i) expect_same(got[i], m.whole(x[i]));
}

TEST_P(CacheTest, WrongCallsAreErrorsAndChangeNothing) {
  auto m = make();
  auto other = make();
  const auto x = tokens(50);
  const auto want = m.whole(x);
  auto cache = m.make_cache(kBatch, 64);
  m(x.slice(1, 0, 40), {.cache = cache});
  const auto next = x.slice(1, 40, 41);
  const auto foreign = other.make_cache(kBatch, 64);
  expect_error([&] { m(next, {.cache = foreign}); }, {"another module"});
  expect_error([&] { m(next.slice(0, 0, 1), {.cache = cache}); }, {"batch=2"});
  expect_error([&] { m(x.slice(1, 0, 0), {.cache = cache}); }, {"L > 0"});
  expect_error([&] { m(next, {.causal = false, .cache = cache}); }, {"causal"});
  expect_error([&] { m(next, {.context = next, .cache = cache}); },
               {"a cache has no meaning with a context"});
  expect_error([&] { m(next, {.causal = false, .context = next, .cache = cache}); },
               {"a cache has no meaning with a context"});
  expect_error([&] { m(next, {.position_offset = 3, .cache = cache}); }, {"position_offset"});
  expect_error(
      [&] {
        m(next, {.documents = {.offsets = torch::tensor({0, 1})}, .cache = cache});
      },
      {"documents"});
  expect_error(
      [&] {
        m(next, {.key_padding_mask = torch::zeros({kBatch, 1}, torch::kBool), .cache = cache});
      },
      {"padding"});
  expect_error([&] { m(next.to(torch::kFloat32), {.cache = cache}); }, {"dtype"});
  {
    const torch::AutoGradMode grad(true);
    expect_error([&] { m(next, {.cache = cache}); }, {"gradients", "NoGradGuard"});
  }
  expect_error([&] { cache.truncate(41); }, {"truncate", "40"});
  expect_error([&] { cache.truncate(-1); }, {"truncate"});
  expect_error([&] { cache.reorder(torch::tensor({0, 2})); }, {"reorder"});
  expect_error([&] { cache.reorder(torch::tensor({0})); }, {"reorder"});
  expect_error([&] { cache.reorder(torch::tensor({0.0, 1.0})); }, {"reorder", "integers"});
  expect_error([&] { Cache().length(); }, {"undefined"});
  expect_error([&] { m.make_cache(0, 8); }, {"batch > 0"});
  expect_error([&] { m.make_cache(1, 0); }, {"capacity > 0"});
  expect_error([&] { m.make_cache(1, 8, {.dtype = torch::kInt64}); }, {"dtype"});
  m.any.ptr()->to(torch::kFloat32);
  expect_error([&] { m(next.to(torch::kFloat32), {.cache = cache}); }, {"dtype"});
  m.any.ptr()->to(torch::kFloat64);
  m.any.ptr()->train();
  if (GetParam().name.find("lsh") != std::string::npos) {
    expect_error([&] { m(next, {.cache = cache}); }, {"eval()"});
  }
  m.any.ptr()->eval();
  EXPECT_EQ(cache.length(), 40);
  // The module is as it was but for the way through float32, and so is the cache.
  auto fresh = m.make_cache(kBatch, 64);
  feed(m, fresh, x.slice(1, 0, 40), {40});
  EXPECT_TRUE(torch::allclose(m(x.slice(1, 40), {.cache = cache}).output,
                              m(x.slice(1, 40), {.cache = fresh}).output, 1e-4, 1e-5));
}

INSTANTIATE_TEST_SUITE_P(All, CacheTest, ::testing::ValuesIn(all_cases()),
                         [](const auto& info) { return info.param.name; });

class Caches : public ::testing::Test {
 protected:
  void SetUp() override { torch::manual_seed(3); }
  torch::NoGradGuard no_grad_;
};

TEST_F(Caches, AStreamWithoutEndTakesConstantMemory) {
  constexpr int64_t kTokens = 200'000, kChunk = 1000;
  for (auto& m : {module(local()), module(linear()), module(block(7, true))}) {
    auto stream = m;
    stream.any.ptr()->to(torch::kFloat32);
    auto cache = stream.make_cache(1, std::nullopt);
    const auto bytes = cache.bytes();
    EXPECT_LT(bytes, 200 * kWidth * 4 * 2);
    const auto x = torch::randn({1, kChunk, kWidth});
    torch::Tensor last;
    for (int64_t i = 0; i < kTokens / kChunk; ++i) last = stream(x, {.cache = cache}).output;
    for (int64_t i = 0; i < 100; ++i) stream(x.slice(1, i, i + 1), {.cache = cache});
    EXPECT_EQ(cache.length(), kTokens + 100);
    EXPECT_EQ(cache.bytes(), bytes);
    EXPECT_TRUE(last.isfinite().all().item<bool>());
  }
}

TEST_F(Caches, KeepWhatTheMechanismNeeds) {
  constexpr int64_t kRow = 2 * kWidth * 8;  // bytes of a token's key and value, float64
  const auto bytes = [](Module m, int64_t capacity) {
    m.any.ptr()->to(torch::kFloat64);
    return m.make_cache(1, capacity).bytes();
  };
  EXPECT_EQ(bytes(module(VanillaSelfAttention({.d_model = kWidth, .causal = true})), 1000),
            1000 * kRow);
  EXPECT_EQ(
      bytes(module(GroupedSelfAttention(
                {.d_model = kWidth, .num_query_heads = 4, .num_kv_heads = 1, .causal = true})),
            1000),
      1000 * kRow / 4);
  for (const auto& make : std::vector<std::function<Module()>>{
           [] { return module(local()); }, [] { return module(block(7, false)); },
           [] { return module(longformer()); }, [] { return module(linear()); }}) {
    EXPECT_EQ(bytes(make(), 100'000), bytes(make(), 1'000'000));
    EXPECT_LT(bytes(make(), 1'000'000), 100 * kRow);
  }
  // Half types for a module of float32.
  auto m = module(MultiHeadSelfAttention({.d_model = kWidth, .num_heads = 2, .causal = true}));
  EXPECT_EQ(2 * m.make_cache(1, 64, {.dtype = torch::kBFloat16}).bytes(),
            m.make_cache(1, 64).bytes());
}

/// 8 bits a number and 4 bytes a row; a module of any type takes them.
TEST_F(Caches, OfEightBits) {
  const MultiHeadSelfAttentionOptions options{.d_model = 128, .num_heads = 2, .causal = true};
  auto m = module(MultiHeadSelfAttention(options));
  const auto x = torch::randn({2, 40, 128});
  const auto exact = m(x).output;
  for (const auto dtype : {torch::kInt8, torch::kFloat8_e4m3fn}) {
    EXPECT_EQ(m.make_cache(1, 64, {.dtype = dtype}).bytes(), 2 * 2 * 64 * (64 + 4));
    for (const auto own : {torch::kFloat64, torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
      m.any.ptr()->to(own);
      const auto cache = m.make_cache(2, 64, {.dtype = dtype});
      std::vector<torch::Tensor> outputs;
      for (int64_t i = 0; i < 40; ++i) {
        outputs.push_back(m(x.slice(1, i, i + 1).to(own), {.cache = cache}).output);
      }
      const auto got = torch::cat(outputs, 1);
      EXPECT_EQ(got.scalar_type(), own);
      EXPECT_LT((got.to(torch::kFloat32) - exact).norm().item<double>(),
                0.05 * exact.norm().item<double>());
    }
    m.any.ptr()->to(torch::kFloat32);
  }
}

TEST_F(Caches, AHalfTypeForAFloat32Module) {
  auto m = module(MultiHeadSelfAttention({.d_model = kWidth, .num_heads = 2, .causal = true}));
  const auto x = torch::randn({2, 40, kWidth});
  auto cache = m.make_cache(2, 64, {.dtype = torch::kHalf});
  std::vector<torch::Tensor> outputs;
  for (int64_t i = 0; i < 40; ++i)
    outputs.push_back(m(x.slice(1, i, i + 1), {.cache = cache}).output);
  const auto got = torch::cat(outputs, 1);
  EXPECT_EQ(got.scalar_type(), torch::kFloat32);
  EXPECT_TRUE(torch::allclose(got, m(x).output, 3e-3, 3e-3));
}

TEST_F(Caches, AMaskHasTheColumnsOfAllTokens) {
  for (auto m : {module(local()), module(lsh(false)), module(lsh(true)),
                 module(ALiBiSelfAttention({.d_model = kWidth, .num_heads = 2, .causal = true}))}) {
    m.any.ptr()->to(torch::kFloat64);
    const int64_t n = 120;
    const auto x = torch::randn({2, n, kWidth}, torch::kFloat64);
    for (const auto& mask :
         {torch::rand({2, n, n}) < 0.7, torch::rand({1, n}) < 0.7,
          torch::randn({2, 2, n, n}, torch::kFloat64), torch::rand({n, 1}) < 0.7}) {
      const auto whole = m(x, {.mask = mask});
      auto cache = m.make_cache(2);
      std::vector<torch::Tensor> outputs;
      for (int64_t at = 0, L = 17; at < n; at += L, L = L == 17 ? 1 : L % 4 + 1) {
        const int64_t end = std::min(n, at + L);
        auto part = mask.slice(-1, 0, mask.size(-1) == 1 ? 1 : end);
        if (part.size(-2) > 1) part = part.slice(-2, at, end);
        outputs.push_back(m(x.slice(1, at, end), {.mask = part, .cache = cache}).output);
      }
      EXPECT_TRUE(torch::allclose(torch::cat(outputs, 1), whole.output, 1e-9, 1e-10));
    }
  }
}

TEST_F(Caches, WeightsAreThoseOfTheKeptTokens) {
  const int64_t n = 100;
  const auto x = torch::randn({1, n, kWidth}, torch::kFloat64);
  for (auto m : {module(local()), module(lsh(false)), module(block(6, true), 6),
                 module(block(6, true, true), 6)}) {
    m.any.ptr()->to(torch::kFloat64);
    const auto longer = torch::cat({x, torch::randn({1, m.beyond, kWidth}, torch::kFloat64)}, 1);
    const torch::Tensor want = m(longer).weights;
    auto cache = m.make_cache(1);
    for (int64_t at = 0, L = 30; at < n; at += L, L = 1) {
      const torch::Tensor w = m(x.slice(1, at, at + L), {.cache = cache}).weights;
      const int64_t end = at + L;
      EXPECT_TRUE(
          torch::allclose(w, want.slice(2, at, end).slice(3, end - w.size(3), end), 1e-9, 1e-10));
    }
  }
}

TEST_F(Caches, WeightsAreReadBeforeTheNextCall) {
  for (const bool inference : {false, true}) {  // whose tensors count no versions
    const c10::InferenceMode guard(inference);
    const torch::NoGradGuard no_grad;
    for (auto m : {module(local()), module(lsh(false)), module(block(6, true))}) {
      auto cache = m.make_cache(1, 64);
      const auto first = m(torch::randn({1, 9, kWidth}), {.cache = cache}).weights;
      EXPECT_EQ(first.tensor().size(2), 9);
      const auto second = m(torch::randn({1, 1, kWidth}), {.cache = cache}).weights;
      expect_error([&] { first.tensor(); },
                   {"LazyWeights", "the cache has gone on", "result.weights"});
      auto copy = cache.clone();
      copy.truncate(3);
      EXPECT_EQ(second.tensor().size(2), 1);
      cache.truncate(3);
      expect_error([&] { second.tensor(); }, {"LazyWeights", "the cache has gone on"});
    }
  }
}

TEST_F(Caches, GlobalTokensAreNeverForgotten) {
  const int64_t n = 260, prompt = 70;
  const auto x = torch::randn({2, n, kWidth}, torch::kFloat64);
  auto is_global = torch::zeros({2, n}, torch::kBool);
  // The last ones while others are forgotten already.
  for (const int64_t i : {3, 17, 60, 66}) is_global[i % 2][i] = true;
  is_global[0][0] = true;
  const auto pattern =
      mask_mod([](auto, auto, auto q, auto kv) { return (q + kv) % 5 > 0; }, aligned);
  for (const bool projections : {false, true}) {
    auto m = module(longformer(projections));
    m.any.ptr()->to(torch::kFloat64);
    const auto want = m(x, {.global_attention = is_global, .pattern = pattern}).output;
    for (const int64_t step : {int64_t{1}, int64_t{7}, int64_t{120}}) {
      auto cache = m.make_cache(2, std::nullopt);
      const auto bytes = cache.bytes();
      std::vector<torch::Tensor> outputs;
      for (int64_t at = 0; at < n;) {
        const int64_t end = at == 0 ? prompt : std::min(n, at + step);
        AttentionInputs inputs{.cache = cache, .pattern = pattern};
        if (at == 0) inputs.global_attention = is_global.slice(1, 0, prompt);
        outputs.push_back(m(x.slice(1, at, end), inputs).output);
        at = end;
      }
      EXPECT_TRUE(torch::allclose(torch::cat(outputs, 1), want, 1e-9, 1e-10)) << step;
      EXPECT_LE(cache.bytes(), bytes + 8 * 2 * 2 * kWidth * 8);
      expect_error(
          [&] { m(x.slice(1, 0, 1), {.global_attention = torch::ones({1}), .cache = cache}); },
          {"global"});
      EXPECT_EQ(cache.length(), n);
      // Another mask of pairs has the columns of all tokens, forgotten or not.
      auto again = cache.clone();
      const auto nobody = torch::zeros({1, n + 1}, torch::kBool);
      EXPECT_TRUE(torch::allclose(m(x.slice(1, 0, 1), {.mask = nobody, .cache = again}).output,
                                  torch::zeros({}, torch::kFloat64)));
    }
  }
}

TEST_F(Caches, GlobalTokensInAnyChunkWhileNothingIsForgotten) {
  const int64_t n = 40;
  const auto x = torch::randn({1, n, kWidth}, torch::kFloat64);
  const auto is_global = torch::rand({1, n}) < 0.2;
  auto m = module(longformer());
  m.any.ptr()->to(torch::kFloat64);
  const auto want = m(x, {.global_attention = is_global}).output;
  auto cache = m.make_cache(1, std::nullopt);
  std::vector<torch::Tensor> outputs;
  for (int64_t at = 0; at < n; at += 5) {
    outputs.push_back(m(x.slice(1, at, at + 5),
                        {.global_attention = is_global.slice(1, at, at + 5), .cache = cache})
                          .output);
  }
  EXPECT_TRUE(torch::allclose(torch::cat(outputs, 1), want, 1e-9, 1e-10));
}

TEST_F(Caches, MechanismsThatKeepAllNeedACapacity) {
  auto all = module(VanillaSelfAttention({.d_model = kWidth, .causal = true}));
  expect_error([&] { all.make_cache(1, std::nullopt); }, {"VanillaSelfAttention", "capacity"});
  auto some = module(local());
  EXPECT_EQ(some.make_cache(1, std::nullopt).capacity(), std::numeric_limits<int64_t>::max());
}

TEST_F(Caches, AReachBeyondAllNeedsACapacity) {
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  for (const int64_t size : {kMost, kMost - 1, kMost / 2, kMost / 4, int64_t{1} << 40,
                             int64_t{1} << 33, (int64_t{1} << 32) + 1}) {
    for (auto& m : {module(LocalSelfAttention(
                        {.d_model = kWidth, .num_heads = 2, .window_size = size, .causal = true})),
                    module(DilatedSelfAttention(
                        {.d_model = kWidth, .num_heads = 2, .window_size = size, .causal = true})),
                    module(LongformerSelfAttention(
                        {.d_model = kWidth, .num_heads = 2, .window_size = size, .causal = true})),
                    module(block(size, false)), module(block(size, true))}) {
      auto some = m;
      some.any.ptr()->to(torch::kFloat64);
      const auto x = torch::randn({1, 40, kWidth}, torch::kFloat64);
      // Of a whole pass that goes on, as blocks do.
      const auto want =
          some(torch::cat({x, x}, 1), {.cache = some.make_cache(1, 80)}).output.slice(1, 0, 40);
      auto cache = some.make_cache(1, 64);
      some(x.slice(1, 0, 30), {.cache = cache});
      EXPECT_TRUE(torch::allclose(some(x.slice(1, 30), {.cache = cache}).output, want.slice(1, 30),
                                  1e-9, 1e-10))
          << size;
      expect_error([&] { some.make_cache(1, std::nullopt); }, {"make_cache", "capacity"});
    }
  }
  auto wide = module(
      LocalSelfAttention({.d_model = kWidth, .num_heads = 2, .window_size = int64_t{1} << 31}));
  expect_error([&] { wide.make_cache(int64_t{1} << 40, std::nullopt); },
               {"LocalSelfAttention", "make_cache", "1099511627776", "2147483713", "capacity"});
}

TEST_F(Caches, AnOptionChangedSinceItWasMadeIsAnError) {
  auto m = local();
  m->eval();
  const auto x = torch::randn({1, 60, kWidth});
  const auto cache = m->make_cache(1);
  m(x, {.cache = cache});
  m->options.window_size = 99;
  expect_error([&] { m(x, {.cache = cache}); },
               {"LocalSelfAttention", "4 tokens", "49", "another cache"});
  EXPECT_EQ(cache.length(), 60);
  EXPECT_EQ(m(x, {.cache = m->make_cache(1)}).output.size(1), 60);
}

TEST_F(Caches, CanTakeBack32TokensOfTheMostThatTheyHad) {
  for (auto& m : {module(local()), module(longformer()), module(linear()),
                  module(block(6, true), 6), module(block(7, false))}) {
    auto some = m;
    some.any.ptr()->to(torch::kFloat64);
    const auto x = torch::randn({1, 300, kWidth}, torch::kFloat64), want = some.whole(x);
    auto cache = some.make_cache(1);
    for (int64_t at = 0; at < 300; at += 1 + at % 5) {
      if (cache.length() < at) some(x.slice(1, cache.length(), at), {.cache = cache});
      for (const int64_t back : {20, 32}) {  // again and again
        const int64_t n = std::max<int64_t>(0, at - back);
        cache.truncate(n);
        if (n + 1 > at) break;
        EXPECT_TRUE(torch::allclose(some(x.slice(1, n, n + 1), {.cache = cache}).output,
                                    want.slice(1, n, n + 1), 1e-9, 1e-10));
      }
    }
  }
}

TEST_F(Caches, WhatIsForgottenIsNotTruncatedTo) {
  for (auto& m : {module(local()), module(longformer())}) {
    auto some = m;
    some.any.ptr()->to(torch::kFloat64);
    const auto x = torch::randn({1, 500, kWidth}, torch::kFloat64), want = some.whole(x);
    auto cache = some.make_cache(1, std::nullopt);
    some(x, {.cache = cache});  // at once: no more is kept than must be
    for (const int64_t n : {100, 467}) {
      expect_error([&] { cache.truncate(n); }, {"truncate", "forgotten"});
    }
    EXPECT_EQ(cache.length(), 500);
    cache.truncate(500 - 32);
    EXPECT_EQ(cache.length(), 468);
    EXPECT_TRUE(torch::allclose(some(x.slice(1, 468), {.cache = cache}).output, want.slice(1, 468),
                                1e-9, 1e-10));
    cache.truncate(0);
    EXPECT_EQ(cache.length(), 0);
  }
}

TEST_F(Caches, AClonedModuleIsAnotherOne) {
  auto a = local();
  a->eval();
  auto b = std::dynamic_pointer_cast<LocalSelfAttentionImpl>(a->clone());
  const auto cache = a->make_cache(1);
  expect_error(
      [&] {
        b->forward(torch::randn({1, 1, kWidth}), {.cache = cache});
      },
      {"another module"});
}

}  // namespace
}  // namespace attzoo::testing::cache_test
