// attention_bench: attention() beside ATen's scaled_dot_product_attention on CPU. Both run in turn
// in every iteration of one benchmark; the counters are
//   own_ms, aten_ms   the least times
//   ratio             aten_ms / own_ms
//   of_peak           share of the FLOP/s of mm(1024) in this run: 4 D for each allowed pair
//                     forward, 10 D backward
//
//   attention_bench --benchmark_filter='f32.*/n:4096/D:64/threads:2'
//
// B = 1, H = 8. Where ATen has no name for a pattern, it gets a bool mask forward, its float form
// backward. In "over_plain" the other side is attention() without the modifier.

#include <ATen/Parallel.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <benchmark/benchmark.h>
#include <attzoo/alibi.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>
#include <attzoo/functional/sdpa.hpp>

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>

namespace {

using Q = const torch::Tensor&;
using Call = std::function<torch::Tensor(Q, Q, Q)>;

double seconds(const std::function<void()>& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double peak_flops(torch::ScalarType dtype) {
  const auto x = torch::randn({1024, 1024}).to(dtype);
  double best = 1e300;
  for (int i = 0; i < 5; ++i) best = std::min(best, seconds([&] { at::mm(x, x); }));
  return 2 * 1024.0 * 1024 * 1024 / best;
}

struct Case {
  std::string name;
  int64_t n, D;
  torch::ScalarType dtype = torch::kFloat32;
  int64_t kv_heads = 8;
  double share = 1;  // of all pairs, that the pattern allows
};

void measure(benchmark::State& state, const Case& c, bool backward, int threads, const Call& own,
             const Call& other) {
  at::set_num_threads(threads);
  const auto leaf = [&](int64_t heads) {
    return torch::randn({1, heads, c.n, c.D}).to(c.dtype).requires_grad_();
  };
  const auto q = leaf(8), k = leaf(c.kv_heads), v = leaf(c.kv_heads);
  const auto grad = torch::randn({1, 8, c.n, c.D}).to(c.dtype);
  const auto time = [&](const Call& call) {
    if (backward) {
      const auto out = call(q, k, v);
      return seconds([&] { torch::autograd::grad({out}, {q, k, v}, {grad}); });
    }
    torch::NoGradGuard no_grad;
    return seconds([&] { benchmark::DoNotOptimize(call(q, k, v)); });
  };
  time(own);
  double own_best = 1e300, other_best = 1e300;
  for (auto _ : state) {
    const double t = time(own);
    own_best = std::min(own_best, t);
    if (other) other_best = std::min(other_best, time(other));
    state.SetIterationTime(t);
  }
  const double n = static_cast<double>(c.n);
  const double flops = (backward ? 10.0 : 4.0) * static_cast<double>(c.D) * 8 * n * n * c.share;
  state.counters["own_ms"] = own_best * 1e3;
  state.counters["of_peak"] = flops / own_best / peak_flops(c.dtype);
  if (!other) return;
  state.counters["aten_ms"] = other_best * 1e3;
  state.counters["ratio"] = other_best / own_best;
}

void add(const Case& c, const Call& own, const Call& other) {
  for (const int threads : {2, 1}) {
    for (const bool backward : {false, true}) {
      const std::string name = std::string(c.dtype == torch::kFloat32 ? "f32/" : "bf16/") + c.name +
                               (backward ? "/backward" : "/forward") + "/n:" + std::to_string(c.n) +
                               "/D:" + std::to_string(c.D) + "/threads:" + std::to_string(threads);
      benchmark::RegisterBenchmark(
          name.c_str(),
          [=](benchmark::State& state) { measure(state, c, backward, threads, own, other); })
          ->UseManualTime()
          ->Iterations(c.n <= 2048   ? 30
                       : c.n <= 4096 ? 4
                                     : 2)
          ->Unit(benchmark::kMillisecond);
    }
  }
}

/// ATen's attention under a mask of pairs.
Call aten_masked(const torch::Tensor& allowed) {
  const auto bias = torch::zeros(allowed.sizes()).masked_fill(allowed.logical_not(), -INFINITY);
  return [=](Q q, Q k, Q v) {
    const auto mask = torch::GradMode::is_enabled() ? bias.to(q.scalar_type()) : allowed;
    return at::scaled_dot_product_attention(q, k, v, mask);
  };
}

void add_all() {
  using namespace attzoo;
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
  const auto i = torch::arange(n), distance = (i.unsqueeze(1) - i).abs();
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
  const auto slopes = alibi_slopes(8);
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
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  add_all();
  benchmark::RunSpecifiedBenchmarks();
}
