// recurrence() beside causal linear attention on the same sizes, the two in turn: forward, forward
// and backward, and one token beside a copy of the state that it reads and writes.

#include <ATen/Parallel.h>
#include <benchmark/benchmark.h>
#include <attzoo/functional/linear_attention.hpp>
#include <attzoo/functional/recurrence.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include "measure.hpp"

namespace {

enum class Kind { kForward, kForwardBackward, kToken };

struct Sizes {
  int64_t heads, value_heads, n, D;
};

/// Inputs of a recurrence of this name.
struct Inputs {
  torch::Tensor q, k, v;
  attzoo::RecurrenceOptions options;

  Inputs(const std::string& name, const Sizes& s, torch::ScalarType dtype, bool learns) {
    const auto draw = [&](std::vector<int64_t> sizes, torch::ScalarType type) {
      return torch::rand(sizes).to(type).set_requires_grad(learns);
    };
    const int64_t HV = s.value_heads, H = s.heads;
    const auto keys = torch::rand({1, H, s.n, s.D});
    q = draw({1, H, s.n, s.D}, dtype);
    k = (keys / keys.norm(2, -1, true)).to(dtype).set_requires_grad(learns);
    v = draw({1, HV, s.n, s.D}, dtype);
    const auto logs = [&](std::vector<int64_t> sizes) {
      return torch::rand(sizes).neg().set_requires_grad(learns);
    };
    if (name == "tokens" || name == "gated_delta") options.decay = logs({1, HV, s.n});
    if (name == "channels" || name == "kimi_delta" || name == "rwkv7") {
      options.decay = logs({1, HV, s.n, s.D});
    }
    if (name.ends_with("delta")) options.beta = draw({1, HV, s.n}, torch::kFloat32);
    if (name == "rwkv7") {
      options.a = k.detach().neg().set_requires_grad(learns);
      options.b = draw({1, H, s.n, s.D}, dtype);
    }
  }
  void forget_gradients() const {
    for (const auto* t : {&q, &k, &v, &options.decay, &options.beta, &options.a, &options.b}) {
      if (t->defined()) t->mutable_grad().reset();
    }
  }
};

/// Least seconds of two functions in turn, as counters of these names and their ratio.
template <class F, class G>
void compare(benchmark::State& state, F&& f, G&& g, const std::string& other) {
  const auto timed = [](auto& call) { return bench::seconds(torch::kCPU, call); };
  for (int i = 0; i < 2; ++i) timed(f), timed(g);
  const auto least = bench::measure_in_turn(
      state, [&] { return timed(f); }, [&] { return timed(g); });
  state.counters["own_ms"] = least.first * 1e3;
  state.counters[c10::str(other, "_ms")] = least.second * 1e3;
  state.counters[c10::str("this/", other)] = least.first / least.second;
}

void measure(benchmark::State& state, const std::string& name, Kind kind, torch::ScalarType dtype,
             const Sizes& s) {
  const bool learns = kind == Kind::kForwardBackward;
  const torch::AutoGradMode records(learns);
  Inputs in(name, s, dtype, learns);
  if (kind == Kind::kToken) {
    in.options.initial_state = torch::rand({1, s.value_heads, s.D, s.D});
    auto copy = torch::empty_like(in.options.initial_state);
    in.options.inplace = true;
    const auto step = [&] { attzoo::recurrence(in.q, in.k, in.v, in.options); };
    return compare(
        state, step, [&] { copy.copy_(in.options.initial_state); }, "copy");
  }
  const auto grad = torch::rand({1, s.value_heads, s.n, s.D}).to(dtype);
  const auto finish = [&](const torch::Tensor& y) {
    if (learns) y.backward(grad);
    in.forget_gradients();
  };
  const auto linear_heads = [&](const torch::Tensor& t) {
    return t.repeat_interleave(s.value_heads / s.heads, 1).detach().set_requires_grad(learns);
  };
  const auto lq = linear_heads(in.q), lk = linear_heads(in.k);
  compare(
      state, [&] { finish(attzoo::recurrence(in.q, in.k, in.v, in.options).output); },
      [&] { finish(attzoo::linear_attention(lq, lk, in.v, {.causal = true}).output); }, "linear");
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t most = bench::take_most_iterations(argc, argv);
  bench::add_context();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const auto add = [most](const std::string& name, Kind kind, torch::ScalarType dtype,
                          const Sizes& s, int threads) {
    constexpr const char* kKinds[] = {"forward", "forward_backward", "token"};
    const std::string label = c10::str(
        name, "/", kKinds[static_cast<int>(kind)], "/", dtype == torch::kFloat32 ? "f32" : "bf16",
        "/H:", s.heads, ":", s.value_heads, "/D:", s.D, "/n:", s.n, "/threads:", threads);
    benchmark::RegisterBenchmark(label.c_str(),
                                 [=](benchmark::State& state) {
                                   at::set_num_threads(threads);
                                   measure(state, name, kind, dtype, s);
                                 })
        ->UseManualTime()
        ->Iterations(std::min<int64_t>(most, kind == Kind::kToken ? 2000 : 5))
        ->Unit(benchmark::kMillisecond);
  };
  constexpr Sizes kSizes[] = {{8, 8, 1024, 64},  {8, 8, 4096, 64},   {8, 8, 16384, 64},
                              {8, 8, 65536, 64}, {16, 32, 512, 128}, {16, 32, 4096, 128}};
  for (const std::string name :
       {"plain", "tokens", "channels", "delta", "gated_delta", "kimi_delta", "rwkv7"}) {
    for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
      for (const int threads : {1, 2}) {
        for (const Sizes& s : kSizes) {
          for (const Kind kind : {Kind::kForward, Kind::kForwardBackward}) {
            add(name, kind, dtype, s, threads);
          }
        }
        add(name, Kind::kToken, dtype, {16, 32, 1, 128}, threads);
      }
    }
  }
  benchmark::RunSpecifiedBenchmarks();
}
