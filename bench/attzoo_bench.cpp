// attzoo_bench: every mechanism of the zoo, forward and forward + backward, beside torch's own.
//
//   attzoo_bench --benchmark_filter='local|multi_head' --benchmark_out=f.json
//   attzoo_bench --benchmark_filter=vs_eager
//   attzoo_bench --benchmark_filter=packed
//
// Batch 1, d_model 512, 8 heads, float32; threads by OMP_NUM_THREADS. <name>/<direction>/n times a
// mechanism, with the peak and total bytes of one call; vs_eager/<name>/<direction> runs it at
// n = 4096 in turn with the eager n x n reference, and `ratio` is reference / own of the least
// times. packed/<name>/<direction> runs eight sequences of up to 1024 tokens, 60 % of the batch
// padding, as one packed row and in turn as a padded batch; `ratio` is padded / packed. At the end:
// growth with n between 4096 and 16384, and time relative to multi_head at 4096.

#include <benchmark/benchmark.h>
#include <torch/nn/modules/activation.h>
#include <attzoo/attzoo.hpp>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <string>

#include "tests/support/peak_memory.hpp"

namespace {

using namespace attzoo;
constexpr int64_t kWidth = 512, kHeads = 8, kQuadratic = 4096, kLinear = 16384;

/// x [1, n, 512] -> output.
using Call = std::function<torch::Tensor(const torch::Tensor&)>;

void once(const Call& call, const torch::Tensor& x) {
  if (x.requires_grad()) {
    call(x).sum().backward();
  } else {
    torch::NoGradGuard no_grad;
    benchmark::DoNotOptimize(call(x));
  }
}

double seconds(const Call& call, const torch::Tensor& x) {
  const auto start = std::chrono::steady_clock::now();
  once(call, x);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

torch::Tensor input(int64_t n, bool backward) {
  return torch::randn({1, n, kWidth}).requires_grad_(backward);
}

const char* direction(bool backward) { return backward ? "forward_backward" : "forward"; }

void add(const std::string& name, int64_t largest, const Call& call) {
  for (const bool backward : {false, true}) {
    for (int64_t n = 256; n <= largest; n *= 2) {
      benchmark::RegisterBenchmark(
          (name + "/" + direction(backward) + "/" + std::to_string(n)).c_str(),
          [=](benchmark::State& state) {
            const auto x = input(n, backward);
            once(call, x);
            {
              attzoo::testing::PeakMemory memory;
              once(call, x);
              state.counters["peak_bytes"] = static_cast<double>(memory.peak());
              state.counters["total_bytes"] = static_cast<double>(memory.total());
            }
            double best = 1e300;
            for (auto _ : state) {
              const double t = seconds(call, x);
              best = std::min(best, t);
              state.SetIterationTime(t);
            }
            state.counters["least_ms"] = best * 1e3;
          })
          ->UseManualTime()
          ->Iterations(n <= 1024   ? 30
                       : n <= 4096 ? 10
                                   : 4)
          ->Unit(benchmark::kMillisecond);
    }
  }
}

void add_against_eager(const std::string& name, const Call& call) {
  for (const bool backward : {false, true}) {
    benchmark::RegisterBenchmark(("vs_eager/" + name + "/" + direction(backward)).c_str(),
                                 [=](benchmark::State& state) {
                                   const auto x = input(kQuadratic, backward);
                                   once(call, x);
                                   double own = 1e300, eager = 1e300;
                                   for (auto _ : state) {
                                     const double t = seconds(call, x);
                                     own = std::min(own, t);
                                     EagerReferenceGuard guard;
                                     eager = std::min(eager, seconds(call, x));
                                     state.SetIterationTime(t);
                                   }
                                   state.counters["own_ms"] = own * 1e3;
                                   state.counters["eager_ms"] = eager * 1e3;
                                   state.counters["ratio"] = eager / own;
                                 })
        ->UseManualTime()
        ->Iterations(5)
        ->Unit(benchmark::kMillisecond);
  }
}

/// Eight sequences, 60 % of [8, 1024] padding.
template <class Module>
void add_packed(const std::string& name, const Module& module) {
  for (const bool backward : {false, true}) {
    benchmark::RegisterBenchmark(
        ("packed/" + name + "/" + direction(backward)).c_str(),
        [=](benchmark::State& state) {
          const std::vector<int64_t> lengths{1024, 640, 480, 384, 256, 224, 160, 108};
          const auto sizes = torch::tensor(lengths);
          const auto offsets = torch::cat({torch::zeros({1}, torch::kInt64), sizes.cumsum(0)});
          const auto real = create_padding_mask(sizes);
          const auto row = torch::randn({1, offsets[-1].item<int64_t>(), kWidth});
          const auto rows =
              torch::zeros({real.size(0), real.size(1), kWidth}).index_put({real}, row[0]);
          const auto packed = row.requires_grad_(backward), padded = rows.requires_grad_(backward);
          const Call on_packed = [=](const torch::Tensor& x) {
            return module->forward(x, {.documents = {.offsets = offsets}}).output;
          };
          const Call on_padded = [=](const torch::Tensor& x) {
            return module->forward(x, {.key_padding_mask = real}).output;
          };
          once(on_packed, packed);
          once(on_padded, padded);
          double own = 1e300, other = 1e300;
          for (auto _ : state) {
            const double t = seconds(on_packed, packed);
            own = std::min(own, t);
            other = std::min(other, seconds(on_padded, padded));
            state.SetIterationTime(t);
          }
          state.counters["packed_ms"] = own * 1e3;
          state.counters["padded_ms"] = other * 1e3;
          state.counters["ratio"] = other / own;
        })
        ->UseManualTime()
        ->Iterations(5)
        ->Unit(benchmark::kMillisecond);
  }
}

template <class Module>
void add_mechanism(const std::string& name, int64_t largest, Module module) {
  const Call call = [module](const torch::Tensor& x) mutable { return module(x).output; };
  add(name, largest, call);
  add_against_eager(name, call);
  add_packed(name, module.ptr());
}

void add_peers() {
  const auto heads = [](const torch::Tensor& x) {
    return x.view({1, x.size(1), kHeads, kWidth / kHeads}).transpose(1, 2);
  };
  add("aten_sdpa", kQuadratic, [=](const torch::Tensor& x) {
    return at::scaled_dot_product_attention(heads(x), heads(x), heads(x));
  });
  torch::nn::MultiheadAttention peer(torch::nn::MultiheadAttentionOptions(kWidth, kHeads));
  add("torch_nn_MultiheadAttention", kQuadratic, [=](const torch::Tensor& x) mutable {
    const auto t = x.transpose(0, 1);
    return std::get<0>(peer(t, t, t));
  });
}

void add_zoo() {
  const MultiHeadSelfAttention multi_head({.d_model = kWidth, .num_heads = kHeads, .dropout = 0});
  add_mechanism("vanilla", kQuadratic, VanillaSelfAttention({.d_model = kWidth, .dropout = 0}));
  add_mechanism("multi_head", kLinear, multi_head);
  add_mechanism(
      "grouped", kQuadratic,
      GroupedSelfAttention(
          {.d_model = kWidth, .num_query_heads = kHeads, .num_kv_heads = 2, .dropout = 0}));
  add_mechanism("local_128", kLinear,
                LocalSelfAttention({.d_model = kWidth, .window_size = 128, .dropout = 0}));
  add_mechanism("dilated_4", kLinear,
                DilatedSelfAttention(
                    {.d_model = kWidth, .dilation_rate = 4, .num_heads = kHeads, .dropout = 0}));
  add_mechanism("block_128", kLinear,
                BlockSelfAttention({.d_model = kWidth, .block_size = 128, .dropout = 0}));
  add_mechanism("alibi", kQuadratic,
                ALiBiSelfAttention({.d_model = kWidth, .num_heads = kHeads, .dropout = 0}));
  add_mechanism("lsh_64", kLinear,
                LSHSelfAttention({.d_model = kWidth, .num_heads = kHeads, .dropout = 0}));
  LongformerSelfAttention longformer(
      {.d_model = kWidth, .num_heads = kHeads, .window_size = 128, .dropout = 0});
  const Call with_globals = [longformer](const torch::Tensor& x) mutable {
    auto global = torch::zeros({x.size(1)}, torch::kBool);
    global.slice(0, 0, 16) = true;
    return longformer(x, {.global_attention = global}).output;
  };
  add("longformer_128_g16", kLinear, with_globals);
  add_against_eager("longformer_128_g16", with_globals);
  const auto linear = [](bool causal) -> Call {
    LinearSelfAttention module(
        {.d_model = kWidth, .dropout = 0, .causal = causal, .num_heads = kHeads});
    add_packed(causal ? "linear_causal" : "linear", module.ptr());
    return [module](const torch::Tensor& x) mutable { return module(x).output; };
  };
  add("linear", kLinear, linear(false));
  add("linear_causal", kLinear, linear(true));
  add_mechanism("gated", kQuadratic, gated(multi_head));
  add_mechanism("combined", kQuadratic,
                combined(multi_head, LocalSelfAttention(
                                         {.d_model = kWidth, .window_size = 128, .dropout = 0})));
}

/// The console table, and what several rows say together.
class Summary : public benchmark::ConsoleReporter {
 public:
  Summary() : ConsoleReporter(OO_Tabular) {}
  void ReportRuns(const std::vector<Run>& runs) override {
    ConsoleReporter::ReportRuns(runs);
    for (const auto& run : runs) {
      const std::string name = run.benchmark_name();
      const auto slash = name.find('/', name.find('/') + 1);
      const auto least = run.counters.find("least_ms");
      if (least == run.counters.end()) continue;
      times_[name.substr(0, slash)][std::atol(name.c_str() + slash + 1)] = least->second.value;
    }
  }
  void Finalize() override {
    const auto time = [&](const std::string& name, int64_t n) {
      const auto of_name = times_.find(name);
      if (of_name == times_.end() || !of_name->second.count(n)) return std::nan("");
      return of_name->second.at(n);
    };
    if (!times_.empty()) {
      std::printf("\n%-46s %10s %18s %14s\n", "", "ms at 4096", "times multi_head", "n^k, 4k..16k");
    }
    for (const auto& [name, of_n] : times_) {
      const std::string same = "multi_head" + name.substr(name.find('/'));
      std::printf("%-46s %10.2f %18.3f %14.2f\n", name.c_str(), time(name, 4096),
                  time(name, 4096) / time(same, 4096),
                  std::log(time(name, 16384) / time(name, 4096)) / std::log(4.0));
    }
    ConsoleReporter::Finalize();
  }

 private:
  std::map<std::string, std::map<int64_t, double>> times_;
};

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  add_peers();
  add_zoo();
  Summary summary;
  benchmark::RunSpecifiedBenchmarks(&summary);
}
