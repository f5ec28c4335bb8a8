// attention_bench: attention() beside ATen's scaled_dot_product_attention. Both run in turn
// in every iteration of one benchmark; the counters are
//   own_ms, aten_ms   the least times
//   ratio             aten_ms / own_ms
//   gflops            10^9 FLOP/s of attention(): 4 D for each allowed pair forward, 10 D backward
//   mm_gflops         those of mm(1024), on CUDA mm(4096), right after
//   of_peak           gflops / mm_gflops
//
//   attention_bench --benchmark_filter='f32.*/n:4096/D:64/threads:2'
//   attention_bench --device=cuda      cpu, cuda or all; default: all there are
//   attention_bench --iterations=2     at most so many of each
//
// B = 1, H = 8. Where ATen has no name for a pattern, it gets a bool mask forward, its float form
// backward. In "over_plain" the other side is attention() without the modifier, in "over_named"
// with the named mask of the same meaning.

#include <ATen/Parallel.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/alibi.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>
#include <attzoo/functional/sdpa.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "measure.hpp"

namespace {

using Q = const torch::Tensor&;
using Call = std::function<torch::Tensor(Q, Q, Q)>;

double peak_flops(torch::Device device, torch::ScalarType dtype) {
  const int64_t n = device.is_cpu() ? 1024 : 4096;
  const auto x = torch::randn({n, n}, device).to(dtype);
  double best = 1e300;
  for (int i = 0; i < 5; ++i) {
    best = std::min(best, bench::seconds(device, [&] { at::mm(x, x); }));
  }
  return 2 * std::pow(static_cast<double>(n), 3) / best;
}

struct Case {
  std::string name;
  int64_t n, D;
  torch::ScalarType dtype = torch::kFloat32;
  int64_t kv_heads = 8;
  double share = 1;  // of all pairs, that the pattern allows
};

void measure(benchmark::State& state, torch::Device device, const Case& c, bool backward,
             const Call& own, const Call& other) {
  const auto leaf = [&](int64_t heads) {
    return torch::randn({1, heads, c.n, c.D}, device).to(c.dtype).requires_grad_();
  };
  const auto q = leaf(8), k = leaf(c.kv_heads), v = leaf(c.kv_heads);
  const auto grad = torch::randn({1, 8, c.n, c.D}, device).to(c.dtype);
  const auto timer = [&](const Call& call) -> std::function<double()> {
    if (!call) return nullptr;
    return [&] {
      if (backward) {
        const auto out = call(q, k, v);
        return bench::seconds(device, [&] { torch::autograd::grad({out}, {q, k, v}, {grad}); });
      }
      torch::NoGradGuard no_grad;
      return bench::seconds(device, [&] { benchmark::DoNotOptimize(call(q, k, v)); });
    };
  };
  timer(own)();
  const auto least = bench::measure_in_turn(state, timer(own), timer(other));
  const double n = static_cast<double>(c.n);
  const double flops = (backward ? 10.0 : 4.0) * static_cast<double>(c.D) * 8 * n * n * c.share;
  state.counters["own_ms"] = least.first * 1e3;
  const double rate = flops / least.first, peak = peak_flops(device, c.dtype);
  state.counters["gflops"] = rate / 1e9;
  state.counters["mm_gflops"] = peak / 1e9;
  state.counters["of_peak"] = rate / peak;
  if (!other) return;
  state.counters["aten_ms"] = least.second * 1e3;
  state.counters["ratio"] = least.second / least.first;
}

int64_t most_iterations;  // of a measurement

void add(torch::Device device, const Case& c, const Call& own, const Call& other) {
  const int64_t iterations = std::min<int64_t>(most_iterations, c.n <= 2048   ? 30
                                                                : c.n <= 4096 ? 4
                                                                              : 2);
  for (const int threads : device.is_cpu() ? std::vector{2, 1} : std::vector{0}) {
    for (const bool backward : {false, true}) {
      const std::string name = std::string(device.is_cpu() ? "" : "cuda/") +
                               (c.dtype == torch::kFloat32 ? "f32/" : "bf16/") + c.name +
                               (backward ? "/backward" : "/forward") + "/n:" + std::to_string(c.n) +
                               "/D:" + std::to_string(c.D) +
                               (threads ? "/threads:" + std::to_string(threads) : "");
      benchmark::RegisterBenchmark(name.c_str(),
                                   [=](benchmark::State& state) {
                                     if (threads) at::set_num_threads(threads);
                                     measure(state, device, c, backward, own, other);
                                   })
          ->UseManualTime()
          ->Iterations(iterations)
          ->Unit(benchmark::kMillisecond);
    }
  }
}

/// ATen's attention under a mask of pairs.
Call aten_masked(const torch::Tensor& allowed) {
  const auto bias =
      torch::zeros(allowed.sizes(), allowed.device()).masked_fill(allowed.logical_not(), -INFINITY);
  return [=](Q q, Q k, Q v) {
    const auto mask = torch::GradMode::is_enabled() ? bias.to(q.scalar_type()) : allowed;
    return at::scaled_dot_product_attention(q, k, v, mask);
  };
}

void add_all(torch::Device device) {
  using namespace attzoo;
  const auto add = [device](const Case& c, const Call& own, const Call& other) {
    ::add(device, c, own, other);
  };
  const Call dense = [](Q q, Q k, Q v) { return attention(q, k, v).output; };
  const Call own_causal = [](Q q, Q k, Q v) { return attention(q, k, v, causal()).output; };
  const Call local = [](Q q, Q k, Q v) { return attention(q, k, v, window(64, 64)).output; };
  const Call aten = [](Q q, Q k, Q v) { return at::scaled_dot_product_attention(q, k, v); };
  const Call aten_causal = [](Q q, Q k, Q v) {
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, true);
  };
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    for (const int64_t D : {32, 64, 128}) {
      for (const int64_t n : {512, 1024, 4096, 16384}) {
        if (n > 4096 && D != 64) continue;
        add({"dense", n, D, dtype}, dense, aten);
        add({"causal", n, D, dtype, 8, 0.5}, own_causal, aten_causal);
      }
    }
  }
  const int64_t n = 4096, D = 64;
  const auto i = torch::arange(n, device), distance = (i.unsqueeze(1) - i).abs();
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    add({"window64", n, D, dtype, 8, 129.0 / n}, local, aten_masked(distance <= 64));
  }
  for (int64_t m = 8192; m <= 65536; m *= 2) {
    add({"window64", m, D, torch::kFloat32, 8, 129.0 / static_cast<double>(m)}, local, nullptr);
  }
  const auto block = i.div(128, "floor");
  add(
      {"blocks128", n, D, torch::kFloat32, 8, 128.0 / n},
      [](Q q, Q k, Q v) { return attention(q, k, v, blocks(128)).output; },
      aten_masked(block.unsqueeze(1) == block));
  add(
      {"dilated4", n, D, torch::kFloat32, 8, 0.25},
      [](Q q, Q k, Q v) { return attention(q, k, v, dilated(4)).output; },
      aten_masked(distance.remainder(4) == 0));
  add({"gqa8to2", n, D, torch::kFloat32, 2}, dense, [](Q q, Q k, Q v) {
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, false, std::nullopt, true);
  });
  const auto slopes = alibi_slopes(8).to(device);
  const auto bias = (slopes.view({8, 1, 1}) * distance).neg();
  const Call own_alibi = [=](Q q, Q k, Q v) { return attention(q, k, v, alibi(slopes)).output; };
  add({"alibi", n, D}, own_alibi,
      [=](Q q, Q k, Q v) { return at::scaled_dot_product_attention(q, k, v, bias); });
  add({"alibi_over_plain", n, D}, own_alibi, dense);
  const Call softcap_lambda = [](Q q, Q k, Q v) {
    return attention(q, k, v, score_mod([](auto s, auto, auto, auto, auto) {
                       using std::tanh;
                       return 20.0 * tanh(s / 20.0);
                     }))
        .output;
  };
  add({"softcap_lambda_over_plain", n, D}, softcap_lambda, dense);
  const auto masked = [](const AnyMask& mask) -> Call {
    return [=](Q q, Q k, Q v) { return attention(q, k, v, mask).output; };
  };
  add({"window_lambda_over_named", n, D, torch::kFloat32, 8, 129.0 / n},
      masked(mask_mod([](auto, auto, auto q, auto kv) { return q - kv <= 64 && kv - q <= 64; })),
      local);
  add({"blocks_lambda_over_named", n, D, torch::kFloat32, 8, 128.0 / n},
      masked(mask_mod([](auto, auto, auto q, auto kv) { return q / 128 == kv / 128; })),
      masked(blocks(128)));
  add({"sinks_lambda_over_named", n, D, torch::kFloat32, 8, 260.0 / n},
      masked(mask_mod(
          [](auto, auto, auto q, auto kv) { return kv <= q && (kv < 4 || q - kv < 256); })),
      masked(causal() && (prefix(4) || window(255, 0))));
  const auto document = table(i.div(512, "floor"));
  add({"documents_table_over_plain", n, D},
      masked(mask_mod([=](auto, auto, auto q, auto kv) { return document(q) == document(kv); })),
      dense);
}

}  // namespace

int main(int argc, char** argv) {
  const auto devices = bench::take_devices(argc, argv);
  most_iterations = bench::take_most_iterations(argc, argv);
  bench::add_context();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const auto device : devices) add_all(device);
  benchmark::RunSpecifiedBenchmarks();
}
