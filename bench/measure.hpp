#pragma once
// What the benchmarks share: the devices to run on, and how often a call runs; its time is in
// timing.hpp.

#include <benchmark/benchmark.h>
#include <torch/types.h>
#include <torch/version.h>
#include <attzoo/kernel/isa/isa.hpp>
#include <attzoo/version.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "support/devices.hpp"
#include "timing.hpp"

namespace bench {

/// What runs, for the file of --benchmark_out.
inline void add_context() {
  const char* kernels = "";
#define ATTZOO_BENCH_KERNELS(enumerator, name, ...) \
  if (attzoo::kernel::isa() == attzoo::kernel::Isa::enumerator) kernels = name;
  ATTZOO_INSTRUCTION_SETS(ATTZOO_BENCH_KERNELS, )
#undef ATTZOO_BENCH_KERNELS
  benchmark::AddCustomContext("attzoo", ATTZOO_VERSION_STRING);
  benchmark::AddCustomContext("LibTorch", TORCH_VERSION);
  benchmark::AddCustomContext("kernels", kernels);
#if defined(__clang__)
  benchmark::AddCustomContext("compiler", __VERSION__);
#else
  benchmark::AddCustomContext("compiler", "g++ " __VERSION__);
#endif
#if defined(__OPTIMIZE__)
  benchmark::AddCustomContext("built", "optimised");
#else
  benchmark::AddCustomContext("built", "not optimised");
#endif
}

/// Takes `<flag>VALUE` out of the command line; the last value, or `otherwise`.
inline std::string_view take(std::string_view flag, std::string_view otherwise, int& argc,
                             char** argv) {
  const auto is_flag = [&](const char* arg) { return std::string_view(arg).starts_with(flag); };
  for (int i = 1; i < argc; ++i) {
    if (is_flag(argv[i])) otherwise = std::string_view(argv[i]).substr(flag.size());
  }
  argc = static_cast<int>(std::remove_if(argv + 1, argv + argc, is_flag) - argv);
  return otherwise;
}

/// Takes `--iterations=N` out of the command line: no measurement runs more often, as where several
/// runs of the program are put together (bench/run). Without it there is no limit.
inline int64_t take_most_iterations(int& argc, char** argv) {
  const std::string most(take("--iterations=", "1000000", argc, argv));
  if (std::atoll(most.c_str()) > 0) return std::atoll(most.c_str());
  std::fprintf(stderr, "--iterations: must be a number above 0\n");
  std::exit(1);
}

/// Takes `--device=cpu|cuda|all` out of the command line; without it, all there are. Ends the
/// program with status 1 where CUDA is asked for and there is none.
inline std::vector<torch::Device> take_devices(int& argc, char** argv) {
  const auto wanted = take("--device=", "all", argc, argv);
  const auto stop = [](const char* why) {
    std::fprintf(stderr, "--device: %s\n", why);
    std::exit(1);
  };
  if (wanted != "cpu" && wanted != "cuda" && wanted != "all") stop("must be cpu, cuda or all");
  std::vector<torch::Device> devices;
  if (wanted != "cuda") devices.emplace_back(torch::kCPU);
  const bool cuda = wanted != "cpu" && attzoo::testing::has_cuda();
  if (cuda) devices.emplace_back(torch::kCUDA, 0);
  if (wanted == "cuda" && !cuda) stop("this LibTorch sees no CUDA device");
  return devices;
}

/// The least times of two calls that run in turn.
struct Pair {
  double first, second;
};

/// Runs both in turn in every iteration of a benchmark whose own time is that of the first.
inline Pair measure_in_turn(benchmark::State& state, const std::function<double()>& first,
                            const std::function<double()>& second) {
  Pair least{1e300, 1e300};
  for (auto _ : state) {
    const double t = first();
    least.first = std::min(least.first, t);
    if (second) least.second = std::min(least.second, second());
    state.SetIterationTime(t);
  }
  return least;
}

}  // namespace bench
