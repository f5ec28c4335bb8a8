// attzoo_bench: every mechanism and the functional core, forward and forward + backward, beside
// ATen's scaled_dot_product_attention and torch::nn::MultiheadAttention in the same process.
//
//   attzoo_bench --benchmark_filter=... --benchmark_out=bench.json --benchmark_out_format=json
//
// Shapes: batch 1, d_model 512, 8 heads; the argument is n, the sequence length. Counters: peak and
// allocated bytes of one call. Threads: OMP_NUM_THREADS.

#include <benchmark/benchmark.h>
#include <torch/nn/modules/activation.h>
#include <attzoo/attzoo.hpp>

#include "tests/support/peak_memory.hpp"

namespace {

using attzoo::AttentionResult;

constexpr int64_t kWidth = 512, kHeads = 8;

/// Times `call`, which returns the output to differentiate, or not.
template <class Call>
void measure(benchmark::State& state, bool backward, Call&& call) {
  const auto once = [&] {
    if (backward) {
      call().sum().backward();
    } else {
      torch::NoGradGuard no_grad;
      benchmark::DoNotOptimize(call());
    }
  };
  once();
  {
    attzoo::testing::PeakMemory memory;
    once();
    state.counters["peak_bytes"] = static_cast<double>(memory.peak());
    state.counters["total_bytes"] = static_cast<double>(memory.total());
  }
  for (auto _ : state) once();
}

template <class Module>
void add_module(const char* name, Module module, int64_t max_n) {
  for (const bool backward : {false, true}) {
    auto* b = benchmark::RegisterBenchmark(
        (std::string(name) + (backward ? "/forward_backward" : "/forward")).c_str(),
        [=](benchmark::State& state) mutable {
          auto x = torch::randn({1, state.range(0), kWidth}).requires_grad_(backward);
          measure(state, backward, [&] { return module(x).output; });
        });
    for (int64_t n = 256; n <= max_n; n *= 2) b->Arg(n);
    b->Unit(benchmark::kMillisecond)->UseRealTime();
  }
}

template <class Function>
void add_function(const char* name, Function function) {
  for (const bool backward : {false, true}) {
    auto* b = benchmark::RegisterBenchmark(
        (std::string(name) + (backward ? "/forward_backward" : "/forward")).c_str(),
        [=](benchmark::State& state) {
          const auto make = [&] {
            return torch::randn({1, kHeads, state.range(0), kWidth / kHeads})
                .requires_grad_(backward);
          };
          const auto q = make(), k = make(), v = make();
          measure(state, backward, [&] { return function(q, k, v); });
        });
    b->RangeMultiplier(2)->Range(256, 4096)->Unit(benchmark::kMillisecond)->UseRealTime();
  }
}

void add_peers() {
  add_function("aten/sdpa", [](const auto& q, const auto& k, const auto& v) {
    return at::scaled_dot_product_attention(q, k, v);
  });
  add_function("aten/sdpa_causal", [](const auto& q, const auto& k, const auto& v) {
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, true);
  });
  torch::nn::MultiheadAttention peer(torch::nn::MultiheadAttentionOptions(kWidth, kHeads));
  for (const bool backward : {false, true}) {
    auto* b = benchmark::RegisterBenchmark(
        backward ? "torch/nn_MultiheadAttention/forward_backward"
                 : "torch/nn_MultiheadAttention/forward",
        [=](benchmark::State& state) mutable {
          auto x = torch::randn({state.range(0), 1, kWidth}).requires_grad_(backward);
          measure(state, backward, [&] { return std::get<0>(peer(x, x, x)); });
        });
    b->RangeMultiplier(2)->Range(256, 4096)->Unit(benchmark::kMillisecond)->UseRealTime();
  }
}

void add_attzoo() {
  using namespace attzoo;
  add_function("attzoo/attention", [](const auto& q, const auto& k, const auto& v) {
    return attention(q, k, v).output;
  });
  add_function("attzoo/attention_causal", [](const auto& q, const auto& k, const auto& v) {
    return attention(q, k, v, causal()).output;
  });
  constexpr int64_t kQuadratic = 4096;
  add_module("attzoo/vanilla", VanillaSelfAttention({.d_model = kWidth, .dropout = 0}), kQuadratic);
  const MultiHeadSelfAttention multi_head({.d_model = kWidth, .num_heads = kHeads, .dropout = 0});
  add_module("attzoo/multi_head", multi_head, kQuadratic);
  add_module("attzoo/grouped",
             GroupedSelfAttention(
                 {.d_model = kWidth, .num_query_heads = kHeads, .num_kv_heads = 2, .dropout = 0}),
             kQuadratic);
  add_module("attzoo/gated", GatedSelfAttention(multi_head), kQuadratic);
  add_module("attzoo/combined",
             CombinedAttention(multi_head, VanillaSelfAttention({.d_model = kWidth, .dropout = 0})),
             kQuadratic);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  add_peers();
  add_attzoo();
  benchmark::RunSpecifiedBenchmarks();
}
