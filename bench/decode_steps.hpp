#pragma once
// One token through a module with a cache, at growing contexts: how long it takes and what the
// cache weighs.

#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <attzoo/attzoo.hpp>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>

#include "measure.hpp"
#include "support/mechanisms.hpp"

namespace bench {

inline constexpr int64_t kSteps = 60;

/// Time of a step behind `context` tokens and up to kSteps more, in turn with that of the same
/// module behind 1024, which the counter `to_1k` divides it by. No token is taken back: a state
/// would compute others again.
template <class Make>
void measure_steps(benchmark::State& state, const Make& make, int64_t context) {
  constexpr int64_t kWidth = 512, kShort = 1024, kChunk = 1024;
  const torch::NoGradGuard no_grad;
  auto module = make({.width = kWidth, .heads = 8, .span = 128, .causal = true});
  module->eval();
  const auto filled = [&](int64_t tokens) {
    auto cache = module->make_cache(1, context + kSteps);
    const auto x = torch::randn({1, kChunk, kWidth});
    for (int64_t i = 0; i < tokens; i += kChunk) module(x, {.cache = cache});
    return cache;
  };
  attzoo::Cache caches[] = {filled(context), filled(kShort)};
  const auto token = torch::randn({1, 1, kWidth});
  double least[] = {1e300, 1e300};
  for (auto _ : state) {
    for (size_t i = 0; i < 2; ++i) {
      const double t = seconds(torch::kCPU, [&] { module(token, {.cache = caches[i]}); });
      least[i] = std::min(least[i], t);
      if (i == 0) state.SetIterationTime(t);
    }
  }
  state.counters["step_us"] = least[0] * 1e6;
  state.counters["to_1k"] = least[0] / least[1];
  state.counters["state_bytes"] = static_cast<double>(caches[0].bytes());
}

/// `step/<mechanism>/context:N`; those that keep all tokens up to 16,384, for filling the cache of
/// 65,536 takes minutes.
inline void add_steps() {
  attzoo::testing::for_each_mechanism([](const char* mechanism, auto cost, auto make) {
    if (!make(attzoo::testing::Size{})->takes().causal) return;
    for (int64_t context = 1024; context <= 65536; context *= 4) {
      if (cost == attzoo::testing::Cost::kQuadratic && context > 16384) continue;
      const auto name = std::string("step/") + mechanism + "/context:" + std::to_string(context);
      benchmark::RegisterBenchmark(name.c_str(),
                                   [=](benchmark::State& state) {
                                     at::set_num_threads(2);
                                     measure_steps(state, make, context);
                                   })
          ->UseManualTime()
          ->Iterations(kSteps)
          ->Unit(benchmark::kMicrosecond);
    }
  });
}

/// One token of cross attention, d_model 256 of 4 heads on one thread, by a cache of its context;
/// in turn with a call that projects the context again, and with attention() to such keys and
/// values.
inline void measure_cross(benchmark::State& state, int64_t context) {
  constexpr int64_t kWidth = 256, kHeads = 4;
  at::set_num_threads(1);
  const torch::NoGradGuard no_grad;
  attzoo::MultiHeadSelfAttention cross(kWidth, kHeads);
  cross->eval();
  const auto token = torch::randn({1, 1, kWidth}), memory = torch::randn({1, context, kWidth});
  const auto q = torch::randn({1, kHeads, 1, kWidth / kHeads});
  const auto k = torch::randn({1, kHeads, context, kWidth / kHeads}), v = torch::randn_like(k);
  const auto cache = cross->make_context_cache(memory);
  const std::function<void()> calls[] = {[&] { cross(token, {.cache = cache}); },
                                         [&] { cross(token, {.context = memory}); },
                                         [&] { attzoo::attention(q, k, v); }};
  double least[] = {1e300, 1e300, 1e300};
  for (auto _ : state) {
    for (size_t i = 0; i < 3; ++i) {
      const double t = seconds(torch::kCPU, calls[i]);
      least[i] = std::min(least[i], t);
      if (i == 0) state.SetIterationTime(t);
    }
  }
  state.counters["step_us"] = least[0] * 1e6;
  state.counters["context_us"] = least[1] * 1e6;
  state.counters["attention_us"] = least[2] * 1e6;
}

/// `cross/context:N`.
inline void add_cross() {
  for (int64_t context = 128; context <= 2048; context *= 2) {
    benchmark::RegisterBenchmark(("cross/context:" + std::to_string(context)).c_str(),
                                 [=](benchmark::State& state) { measure_cross(state, context); })
        ->UseManualTime()
        ->Iterations(100)
        ->Unit(benchmark::kMicrosecond);
  }
}

}  // namespace bench
