// The memory that attention takes for output, gradients and what it keeps grows with n, not n^2.

#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>

#include <string>
#include <tuple>
#include <vector>

#include "gpu/report.hpp"
#include "support/peak_memory.hpp"

namespace bench {
namespace {

/// Most bytes alive at once, above q, k, v and the gradient of the output.
double peak_bytes(const attzoo::AnyMask& mask, const attzoo::AnyScore& score, int64_t n,
                  torch::ScalarType dtype, const torch::Device& device) {
  const auto numbers = [&] { return torch::randn({1, 8, n, 64}, device).to(dtype); };
  const auto q = numbers().requires_grad_(), k = numbers().requires_grad_(),
             v = numbers().requires_grad_(), grad = numbers();
  const attzoo::testing::PeakMemory memory;
  const auto output = attzoo::attention(q, k, v, mask, score).output;
  torch::autograd::grad({output}, {q, k, v}, {grad});
  return static_cast<double>(memory.peak());
}

}  // namespace

void check_memory(Report& report) {
  const auto& order = report.order();
  const int64_t n = order.quick ? 128 : 16384;
  const auto capped =
      attzoo::score_mod([](auto s, auto, auto, auto, auto) { return 30 * tanh(s / 30); });
  for (const auto& [name, mask, score] :
       std::vector<std::tuple<std::string, attzoo::AnyMask, attzoo::AnyScore>>{
           {"no mask", {}, {}},
           {"causal", attzoo::causal(), {}},
           {"causal softcap", attzoo::causal(), capped},
           {"window", attzoo::window(1023, 0), capped}}) {
    for (const auto dtype : {torch::kBFloat16, torch::kFloat32}) {
      report.run(c10::str(name, ", ", dtype), [&, &mask = mask, &score = score](Entry& entry) {
        const double small = peak_bytes(mask, score, n, dtype, order.device),
                     large = peak_bytes(mask, score, 4 * n, dtype, order.device);
        const double tokens = static_cast<double>(n);
        entry.number("n", tokens);
        entry.number("bytes per token", small / tokens);
        entry.number("at 4 n", large / (4 * tokens));
        if (!(small > 0)) entry.fail("no memory was counted");
        if (large > 4.4 * small) entry.fail("it grows faster than n");
      });
    }
  }
}

}  // namespace bench
