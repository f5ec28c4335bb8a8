// One step of training with LoRA (module/lora.hpp) beside the same module of which only w_q and w_v
// learn: forward and backward, the two in turn.

#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <attzoo/attzoo.hpp>

#include <string>

#include "measure.hpp"

namespace {

/// What is around the attention.
enum class Around { kNothing, kBlock };

attzoo::AnyAttention make(Around around, int64_t width) {
  attzoo::MultiHeadSelfAttention attn(
      {.d_model = width, .num_heads = width / 64, .dropout = 0, .causal = true});
  if (around == Around::kNothing) return attn;
  return attzoo::transformer_block(attn);
}

void measure(benchmark::State& state, Around around, int64_t width, int64_t n, int64_t batch) {
  const auto lora = make(around, width), dense = lora.clone();
  attzoo::add_lora(lora, {.rank = 8, .targets = {"w_q", "w_v"}});
  attzoo::freeze(dense);
  attzoo::unfreeze(dense, {"*w_q.*", "*w_v.*"});
  // The gradient goes on to whatever is before, as in all layers of a model but the first.
  const auto x = torch::randn({batch, n, width}).requires_grad_();
  const auto grad = torch::randn({batch, n, width});
  const auto step = [&](const attzoo::AnyAttention& attn) {
    return bench::seconds(torch::kCPU, [&] {
      for (auto& t : attn->parameters()) t.mutable_grad().reset();
      x.mutable_grad().reset();
      attn(x).output.backward(grad);
    });
  };
  for (int i = 0; i < 2; ++i) step(lora), step(dense);
  const auto least = bench::measure_in_turn(
      state, [&] { return step(lora); }, [&] { return step(dense); });
  state.counters["lora_ms"] = least.first * 1e3;
  state.counters["dense_ms"] = least.second * 1e3;
  state.counters["lora/dense"] = least.first / least.second;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t most = bench::take_most_iterations(argc, argv);
  bench::add_context();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const auto around : {Around::kNothing, Around::kBlock}) {
    for (const int64_t width : {256, 1024}) {
      for (const int threads : {1, 2}) {
        const auto name =
            std::string("lora/") + (around == Around::kBlock ? "block" : "attention") +
            "/d:" + std::to_string(width) + "/n:512/B:4/threads:" + std::to_string(threads);
        benchmark::RegisterBenchmark(name.c_str(),
                                     [=](benchmark::State& state) {
                                       at::set_num_threads(threads);
                                       measure(state, around, width, 512, 4);
                                     })
            ->UseManualTime()
            ->Iterations(std::min<int64_t>(most, width > 512 ? 20 : 100))
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
