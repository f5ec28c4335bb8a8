// attzoo_bench: every mechanism of the zoo, forward and forward + backward, beside torch's own.
//
//   attzoo_bench --benchmark_filter='local|multi_head' --benchmark_out=f.json
//   attzoo_bench --benchmark_filter=vs_eager
//   attzoo_bench --benchmark_filter=packed
//   attzoo_bench --device=cuda         cpu, cuda or all; default: all there are
//   attzoo_bench --iterations=2        at most so many of each
//
// Batch 1, d_model 512, 8 heads, float32, on CUDA bfloat16, too (cuda/f32/..., cuda/bf16/...); CPU
// threads by OMP_NUM_THREADS. <name>/<direction>/n times a mechanism, with the peak and total bytes
// of one call; vs_eager/<name>/<direction> runs it at n = 4096 in turn with the eager n x n
// reference, and `ratio` is reference / own of the least times. packed/<name>/<direction> runs
// eight sequences of up to 1024 tokens, 60 % of the batch padding, as one packed row and in turn as
// a padded batch; `ratio` is padded / packed. At the end: growth with n between 4096 and 16384, and
// time relative to multi_head at 4096.

#include <ATen/ops/scaled_dot_product_attention.h>
#include <torch/nn/modules/activation.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "measure.hpp"
#include "support/mechanisms.hpp"
#include "support/peak_memory.hpp"

namespace {

using namespace attzoo;
constexpr int64_t kWidth = 512, kHeads = 8, kQuadratic = 4096, kLinear = 16384;

/// x [1, n, 512] -> output.
using Call = std::function<torch::Tensor(const torch::Tensor&)>;

/// Where a benchmark runs, and what its name begins with.
struct Place {
  torch::Device device;
  torch::ScalarType dtype;
  std::string prefix = "";

  torch::Tensor randn(at::IntArrayRef sizes) const { return torch::randn(sizes, device).to(dtype); }
  torch::Tensor input(int64_t n, bool backward) const {
    return randn({1, n, kWidth}).requires_grad_(backward);
  }
  template <class Module>
  void move(Module& module) const {
    module->to(device, dtype);
  }
};

void once(const Call& call, const torch::Tensor& x) {
  if (x.requires_grad()) {
    call(x).sum().backward();
  } else {
    torch::NoGradGuard no_grad;
    benchmark::DoNotOptimize(call(x));
  }
}

double seconds(const Call& call, const torch::Tensor& x) {
  return bench::seconds(x.device(), [&] { once(call, x); });
}

int64_t most_iterations;  // of a measurement

/// Registers `run(state, backward)` for both directions.
void register_both(const std::string& name, const std::string& suffix, int64_t iterations,
                   const std::function<void(benchmark::State&, bool)>& run) {
  for (const bool backward : {false, true}) {
    const auto full = name + (backward ? "/forward_backward" : "/forward") + suffix;
    benchmark::RegisterBenchmark(full.c_str(),
                                 [=](benchmark::State& state) { run(state, backward); })
        ->UseManualTime()
        ->Iterations(std::min(iterations, most_iterations))
        ->Unit(benchmark::kMillisecond);
  }
}

void add(const Place& place, const std::string& name, int64_t largest, const Call& call) {
  for (int64_t n = 256; n <= largest; n *= 2) {
    const int64_t iterations = n <= 1024 ? 30 : n <= 4096 ? 10 : 4;
    register_both(place.prefix + name, c10::str("/", n), iterations,
                  [=](benchmark::State& state, bool backward) {
                    once(call, place.input(256, backward));  // what is done once
                    const auto x = place.input(n, backward);
                    int64_t peak = 0, total = 0;
                    const auto counted = [&] {
                      const attzoo::testing::PeakMemory memory;
                      const double t = seconds(call, x);
                      peak = std::max(peak, memory.peak());
                      total = memory.total();
                      return t;
                    };
                    const auto least = bench::measure_in_turn(state, counted, nullptr);
                    state.counters["peak_bytes"] = static_cast<double>(peak);
                    state.counters["total_bytes"] = static_cast<double>(total);
                    state.counters["least_ms"] = least.first * 1e3;
                  });
  }
}

void add_against_eager(const Place& place, const std::string& name, const Call& call) {
  register_both(place.prefix + "vs_eager/" + name, "", 5,
                [=](benchmark::State& state, bool backward) {
                  once(call, place.input(256, backward));  // what is done once
                  const auto x = place.input(kQuadratic, backward);
                  // The first call pays for the memory that the reference gave back.
                  const auto own = [&] { return std::min(seconds(call, x), seconds(call, x)); };
                  const auto least = bench::measure_in_turn(state, own, [&] {
                    EagerReferenceGuard guard;
                    return seconds(call, x);
                  });
                  state.counters["own_ms"] = least.first * 1e3;
                  state.counters["eager_ms"] = least.second * 1e3;
                  state.counters["ratio"] = least.second / least.first;
                });
}

/// Eight sequences, 60 % of [8, 1024] padding.
template <class Module>
void add_packed(const Place& place, const std::string& name, const Module& module) {
  register_both(
      place.prefix + "packed/" + name, "", 5, [=](benchmark::State& state, bool backward) {
        const std::vector<int64_t> lengths{1024, 640, 480, 384, 256, 224, 160, 108};
        const auto sizes = torch::tensor(lengths).to(place.device);
        const auto offsets = torch::constant_pad_nd(sizes.cumsum(0), {1, 0});
        const auto real = create_padding_mask(sizes);
        const auto row = place.randn({1, offsets[-1].item<int64_t>(), kWidth});
        const auto rows = torch::zeros({real.size(0), real.size(1), kWidth}, row.options())
                              .index_put({real}, row[0]);
        const auto packed = row.requires_grad_(backward), padded = rows.requires_grad_(backward);
        const Call on_packed = [=](const torch::Tensor& x) {
          return module->forward(x, {.documents = {.offsets = offsets}}).output;
        };
        const Call on_padded = [=](const torch::Tensor& x) {
          return module->forward(x, {.key_padding_mask = real}).output;
        };
        once(on_packed, packed);
        once(on_padded, padded);
        const auto least = bench::measure_in_turn(
            state, [&] { return seconds(on_packed, packed); },
            [&] { return seconds(on_padded, padded); });
        state.counters["packed_ms"] = least.first * 1e3;
        state.counters["padded_ms"] = least.second * 1e3;
        state.counters["ratio"] = least.second / least.first;
      });
}

/// A mechanism's name with what its cost depends on: local_128.
template <class Options>
std::string name_with_size(std::string name, const Options& o) {
  const auto with = [&](int64_t size) { return name + "_" + std::to_string(size); };
  if constexpr (requires { o.dilation_rate; }) {
    return with(o.dilation_rate);
  } else if constexpr (requires { o.block_size; }) {
    return with(o.block_size);
  } else if constexpr (requires { o.bucket_size; }) {
    return with(o.bucket_size);
  } else if constexpr (requires { o.window_size; }) {
    return with(o.window_size);
  } else {
    return name;
  }
}

/// A mechanism that takes global tokens has 16.
template <class Module>
void add_mechanism(const Place& place, std::string name, Module module) {
  place.move(module);
  const bool globals = module->takes().global_attention;
  const Call call = [=](const torch::Tensor& x) mutable {
    if (!globals) return module(x).output;
    const auto global = torch::arange(x.size(1), x.device()) < 16;
    return module(x, {.global_attention = global}).output;
  };
  const bool takes_documents = name != "native_sparse";
  name = name_with_size(name, module->options) + (globals ? "_g16" : "");
  add(place, name, kLinear, call);
  add_against_eager(place, name, call);
  if (takes_documents) add_packed(place, name, module.ptr());
}

void add_peers(const Place& place) {
  const auto heads = [](const torch::Tensor& x) {
    return x.view({1, x.size(1), kHeads, kWidth / kHeads}).transpose(1, 2);
  };
  add(place, "aten_sdpa", kQuadratic, [=](const torch::Tensor& x) {
    return at::scaled_dot_product_attention(heads(x), heads(x), heads(x));
  });
  torch::nn::MultiheadAttention peer(torch::nn::MultiheadAttentionOptions(kWidth, kHeads));
  place.move(peer);
  add(place, "torch_nn_MultiheadAttention", kQuadratic, [=](const torch::Tensor& x) mutable {
    const auto t = x.transpose(0, 1);
    return std::get<0>(peer(t, t, t));
  });
}

void add_all(const Place& place) {
  add_peers(place);
  attzoo::testing::Size size{.width = kWidth, .heads = kHeads, .span = 128};
  attzoo::testing::for_each_mechanism(
      [&](const std::string& name, auto, auto make) { add_mechanism(place, name, make(size)); });
  add_mechanism(
      place, "linear_causal",
      LinearSelfAttention({.d_model = kWidth, .num_heads = kHeads, .dropout = 0, .causal = true}));
}

/// The console table, and what several rows say together.
class Summary : public benchmark::ConsoleReporter {
 public:
  Summary() : ConsoleReporter(OO_Tabular) {}
  void ReportRuns(const std::vector<Run>& runs) override {
    ConsoleReporter::ReportRuns(runs);
    for (const auto& run : runs) {
      const std::string name = run.run_name.function_name;
      const auto slash = name.rfind('/');
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
      const auto direction = name.rfind('/');
      const auto prefix = name.rfind('/', direction - 1) + 1;  // 0 where there is none
      const auto same = name.substr(0, prefix) + "multi_head" + name.substr(direction);
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
  const auto devices = bench::take_devices(argc, argv);
  most_iterations = bench::take_most_iterations(argc, argv);
  bench::add_context();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const auto device : devices) {
    if (device.is_cpu()) {
      add_all({device, torch::kFloat32});
    } else {
      add_all({device, torch::kFloat32, "cuda/f32/"});
      add_all({device, torch::kBFloat16, "cuda/bf16/"});
    }
  }
  Summary summary;
  benchmark::RunSpecifiedBenchmarks(&summary);
}
