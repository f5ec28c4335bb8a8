#include <attzoo/functional/debug.hpp>

#include <algorithm>
#include <utility>

#include "gpu/attention_case.hpp"
#include "support/judge.hpp"

namespace bench {

Results compute(const Case& c, torch::ScalarType dtype, const torch::Device& device) {
  std::string way;
  auto results = attzoo::testing::compute(c, dtype, device, [&](const auto&... problem) {
    way = way_of(attzoo::explain(problem..., c.options));
  });
  return {std::move(results), way};
}

void judge_case(Entry& entry, const Case& c, const torch::Device& device) {
  // What is large takes minutes on the CPU. The device's float64 is compared with it elsewhere.
  const bool is_large = c.B * c.H * c.L * c.S > int64_t{1} << 22;
  const auto referee = is_large ? device : torch::Device(torch::kCPU);
  Results gold, own;
  {
    const attzoo::EagerReferenceGuard eager;
    gold = compute(c, kF64, referee);
    own = compute(c, c.dtype, referee);
  }
  const auto judge_way = [&](const std::string& name) {
    const auto got = compute(c, c.dtype, device);
    entry.text(name, got.way);
    double used = 0;
    const auto compare = [&](const torch::Tensor& x, const torch::Tensor& exact,
                             const torch::Tensor& plain, double factor, int64_t terms,
                             const std::string& what) {
      const auto verdict = attzoo::testing::judge(x.to(referee), exact, plain, factor, terms);
      used = std::max(used, verdict.used);
      if (!verdict.broken.empty()) entry.fail(name + ", " + what + ": " + verdict.broken);
    };
    const int64_t length = std::max(c.L, c.S) + c.D;
    compare(got.output, gold.output, own.output, 2, length, "output");
    compare(got.lse, gold.lse, own.lse, 2, length, "lse");
    for (size_t i = 0; i < 3; ++i) {
      compare(got.grads[i], gold.grads[i], own.grads[i], 3, length * c.H,
              std::string("gradient of ") + "qkv"[i]);
    }
    // An entry of a table has the terms of many rows. Kernels find them in float32, the others in
    // the dtype of q.
    for (size_t i = 3; i < got.grads.size(); ++i) {
      const auto dtype = name == "jit" ? got.grads[i].scalar_type() : c.dtype;
      compare(got.grads[i].to(dtype), gold.grads[i], own.grads[i].to(dtype), 3, c.L * c.S,
              "gradient of table " + std::to_string(i - 3));
    }
    entry.number("of the allowed error", used);
    return got.way;
  };
  if (!device.is_cuda()) {
    judge_way("cpu");
    return;
  }
  const auto way = judge_way("jit");
  if (c.dtype != kF64 && way.find("CUDA kernels") == std::string::npos) {
    entry.fail("not by kernels");
  }
  if (!attzoo::core::cuda_jit()) entry.fail("a launch failed");
  attzoo::set_cuda_jit(false);
  judge_way("chunks");
}

void check_attention(Report& report) {
  const auto& order = report.order();
  for (const auto& c : attention_cases(order.quick)) {
    report.run(c.name + " " + c10::toString(c.dtype),
               [&](Entry& entry) { judge_case(entry, c, order.device); });
  }
}

}  // namespace bench
