// Every mechanism on the device against itself in float64 on the CPU: forward, backward, and token
// by token behind a cache.

#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/debug.hpp>

#include <algorithm>
#include <string>
#include <vector>

#include "gpu/report.hpp"
#include "support/every_mechanism.hpp"
#include "support/judge.hpp"

namespace bench {
namespace {

using attzoo::AnyAttention;
using attzoo::testing::Listed;

constexpr auto kF32 = torch::kFloat32, kBf16 = torch::kBFloat16, kF64 = torch::kFloat64;

struct Problem {
  Listed mechanism;
  torch::ScalarType dtype;  // that parameters and x are rounded to
  torch::Tensor x, grad;    // [B, n, width]
  torch::Tensor real;       // key_padding_mask, where there is one
};

/// The mechanism with the same parameters each time.
AnyAttention make(const Problem& p, torch::ScalarType dtype, const torch::Device& device) {
  torch::manual_seed(5);
  auto m = p.mechanism.make();
  m->to(p.dtype);
  m->to(device, dtype);
  m->eval();
  return m;
}

/// Output and gradients of x and of all parameters.
std::vector<torch::Tensor> forward_backward(const Problem& p, torch::ScalarType dtype,
                                            const torch::Device& device) {
  const auto m = make(p, dtype, device);
  const auto x = p.x.to(device, dtype).requires_grad_();
  std::vector<torch::Tensor> inputs{x};
  for (const auto& parameter : m->parameters()) {
    if (parameter.requires_grad()) inputs.push_back(parameter);
  }
  const auto real = p.real.defined() ? p.real.to(device) : p.real;
  const auto output = m(x, {.key_padding_mask = real}).output;
  auto all = torch::autograd::grad({output}, inputs, {p.grad.to(device, dtype)}, std::nullopt,
                                   false, /*allow_unused=*/true);
  for (size_t i = 0; i < all.size(); ++i) {
    if (!all[i].defined()) all[i] = torch::zeros_like(inputs[i]);
  }
  all.insert(all.begin(), output.detach());
  return all;
}

/// Output: half of the tokens at once, the others one by one.
std::vector<torch::Tensor> decode(const Problem& p, torch::ScalarType dtype,
                                  const torch::Device& device) {
  const torch::NoGradGuard no_grad;
  const auto m = make(p, dtype, device);
  const auto x = p.x.to(device, dtype);
  const int64_t n = x.size(1);
  const auto cache = m.make_cache(x.size(0), n);
  std::vector<torch::Tensor> outputs;
  for (int64_t at = 0; at < n;) {
    const int64_t end = at == 0 ? n / 2 : at + 1;
    outputs.push_back(m(x.slice(1, at, end), {.cache = cache}).output);
    at = end;
  }
  return {torch::cat(outputs, 1)};
}

using Run = std::vector<torch::Tensor> (*)(const Problem&, torch::ScalarType, const torch::Device&);

/// Runs it with and without kernels that are compiled at run time. What `run` gives is judged by
/// what forward_backward() gives first.
void judge_mechanism(Entry& entry, const Problem& p, const torch::Device& device, Run run) {
  std::vector<torch::Tensor> gold, own;
  {
    const attzoo::EagerReferenceGuard eager;
    gold = forward_backward(p, kF64, torch::kCPU);
    own = forward_backward(p, p.dtype, torch::kCPU);
  }
  const int64_t tokens = p.x.size(0) * p.x.size(1);
  for (const bool jit : device.is_cuda() ? std::vector{true, false} : std::vector{false}) {
    attzoo::set_cuda_jit(jit);
    const std::string way = !device.is_cuda() ? "cpu" : jit ? "jit" : "chunks";
    const auto got = run(p, p.dtype, device);
    double used = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const auto verdict = attzoo::testing::judge(got[i].cpu(), gold[i], own[i], i == 0 ? 2 : 3,
                                                  tokens + p.x.size(2));
      used = std::max(used, verdict.used);
      if (verdict.broken.empty()) continue;
      const auto what = i == 0   ? "output"
                        : i == 1 ? "gradient of x"
                                 : "gradient of parameter " + std::to_string(i - 2);
      entry.fail(way + ", " + what + ": " + verdict.broken);
    }
    if (jit && !attzoo::core::cuda_jit()) entry.fail("a launch failed");
    entry.number(way + " of the allowed error", used);
  }
}

}  // namespace

void check_mechanisms(Report& report) {
  const auto& order = report.order();
  const int64_t n = order.quick ? 40 : 300;
  for (const bool causal : {false, true}) {
    const auto all = attzoo::testing::every_mechanism({.width = order.quick ? 32 : 128,
                                                       .heads = 2,
                                                       .span = order.quick ? 16 : 64,
                                                       .overlap = !causal,
                                                       .causal = causal});
    for (const auto& mechanism : all) {
      const auto problem = [&](torch::ScalarType dtype) {
        torch::manual_seed(6);
        const int64_t width = mechanism.make().input_dim();
        const auto numbers = [&] { return torch::randn({2, n, width}).to(dtype); };
        const auto x = numbers();
        return Problem{mechanism, dtype, x, numbers(), {}};
      };
      const auto name = mechanism.name + (causal ? " causal" : "");
      for (const auto dtype : {kF32, kBf16}) {
        // Rounded projections put tokens into other buckets.
        if (mechanism.name == "lsh" && dtype != kF32) continue;
        report.run(name + " " + c10::toString(dtype), [&](Entry& entry) {
          auto p = problem(dtype);
          if (causal) p.real = torch::arange(n) < torch::tensor({n, n - 7}).unsqueeze(1);
          judge_mechanism(entry, p, order.device, forward_backward);
        });
      }
      if (!causal || !mechanism.make().takes().causal) continue;  // no cache where none is causal
      report.run(mechanism.name + " token by token", [&](Entry& entry) {
        judge_mechanism(entry, problem(kF32), order.device, decode);
      });
    }
  }
}

}  // namespace bench
