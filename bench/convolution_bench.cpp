// short_convolution() (functional/short_convolution.hpp) beside ATen's conv1d of groups and silu on
// the transposed tensor, the two in turn: forward, forward and backward, and a token of decoding.

#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <attzoo/functional/short_convolution.hpp>

#include <algorithm>
#include <string>
#include <utility>

#include "measure.hpp"

namespace {

enum class Kind { kForward, kForwardBackward, kToken };

torch::Tensor of_aten(const torch::Tensor& x, const torch::Tensor& weight) {
  const auto y = torch::conv1d(x.transpose(1, 2), weight.unsqueeze(1), {}, 1, weight.size(1) - 1, 1,
                               x.size(2));
  return torch::silu(y.slice(2, 0, x.size(1))).transpose(1, 2);
}

void measure(benchmark::State& state, Kind kind, torch::ScalarType dtype, int64_t n, int64_t C) {
  constexpr int64_t K = 4;
  const bool learns = kind == Kind::kForwardBackward;
  const auto x = torch::randn({1, n, C}, dtype).set_requires_grad(learns);
  const auto weight = torch::randn({C, K}, dtype).set_requires_grad(learns);
  const auto before = torch::randn({1, K - 1, C}, dtype), grad = torch::randn_like(x);
  const torch::AutoGradMode records(learns);
  const auto run = [&](bool aten) {
    return bench::seconds(torch::kCPU, [&] {
      for (const auto& t : {x, weight}) t.mutable_grad().reset();
      torch::Tensor y;
      if (kind == Kind::kToken) {
        y = aten ? of_aten(torch::cat({before, x}, 1), weight).narrow(1, K - 1, n)
                 : attzoo::short_convolution(x, weight, {.initial_state = before}).output;
      } else {
        y = aten ? of_aten(x, weight) : attzoo::short_convolution(x, weight).output;
      }
      if (learns) y.backward(grad);
    });
  };
  for (int i = 0; i < 2; ++i) run(true), run(false);
  const auto least = bench::measure_in_turn(
      state, [&] { return run(false); }, [&] { return run(true); });
  const auto copy = torch::empty_like(grad);
  double least_copy = 1e300;
  for (int i = 0; i < 10; ++i) {
    least_copy = std::min(least_copy, bench::seconds(torch::kCPU, [&] { copy.copy_(x.detach()); }));
  }
  state.counters["us"] = least.first * 1e6;
  state.counters["aten_us"] = least.second * 1e6;
  state.counters["aten/this"] = least.second / least.first;
  state.counters["this/copy"] = least.first / least_copy;  // of x: a measure of memory's speed
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t most = bench::take_most_iterations(argc, argv);
  bench::add_context();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  for (const auto& [kind, of_kind] : {std::pair{Kind::kForward, "forward"},
                                      {Kind::kForwardBackward, "forward_backward"},
                                      {Kind::kToken, "token"}}) {
    for (const auto& [dtype, of_dtype] :
         {std::pair{torch::kFloat32, "f32"}, {torch::kBFloat16, "bf16"}, {torch::kHalf, "f16"}}) {
      for (const int threads : {1, 2}) {
        const int64_t n = kind == Kind::kToken ? 1 : 4096, C = 1536;
        const auto name = std::string("convolution/") + of_kind + "/" + of_dtype +
                          "/n:" + std::to_string(n) + "/C:" + std::to_string(C) +
                          "/threads:" + std::to_string(threads);
        const auto its_kind = kind;
        const auto its_dtype = dtype;
        benchmark::RegisterBenchmark(name.c_str(),
                                     [=](benchmark::State& state) {
                                       at::set_num_threads(threads);
                                       measure(state, its_kind, its_dtype, n, C);
                                     })
            ->UseManualTime()
            ->Iterations(std::min<int64_t>(most, kind == Kind::kToken ? 2000 : 20))
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
