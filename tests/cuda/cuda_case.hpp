#pragma once
/// \file
/// A case of attention on the pretended device, whose driver runs the kernels' PTX, against the
/// eager reference.

#include <gtest/gtest.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/callables.hpp>
#include <attzoo/functional/cuda_jit.hpp>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/scores.hpp>

#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "cuda/pretended_cuda.hpp"
#include "support/attention_case.hpp"
#include "support/error_rule.hpp"

namespace attzoo::testing {
using core::AnyMask, core::AnyScore;

struct Case {
  std::string name;
  torch::ScalarType dtype = kBf16;
  int64_t B = 1, H = 2, Hkv = 2, L = 130, S = 330, D = 16, E = 16;
  Make make = [](Setting&) { return Modifiers(); };
  AttentionOptions options = {};
  std::function<torch::Tensor(const torch::Tensor&)> layout = [](const auto& t) { return t; };
  std::function<void(torch::Tensor& q, torch::Tensor& k, torch::Tensor& v)> spoil = {};
};

/// Its results on the CPU.
inline Results run(const Case& c, torch::ScalarType dtype, const torch::Device& device,
                   bool with_gradients = true) {
  auto all = compute(
      c, dtype, device, [](const auto&...) {}, with_gradients);
  for (auto* t : {&all.output, &all.lse}) *t = t->cpu();
  for (auto& t : all.grads) t = t.cpu();
  return all;
}

inline void expect_attention(const Case& c, const char* forward = "forward") {
  SCOPED_TRACE(c.name);
  const torch::Device cuda(torch::kCUDA, 0), cpu(torch::kCPU);
  attzoo_reset();
  const auto got = run(c, c.dtype, cuda);
  EXPECT_TRUE(launched(forward) && launched("backward_queries") && launched("backward_keys"))
      << "not by kernels: " << attzoo_error();
  const EagerReferenceGuard eager;
  const auto gold = run(c, torch::kFloat64, cpu), own = run(c, c.dtype, cpu);
  const int64_t length = std::max(c.L, c.S) + c.D;
  expect_within_rule(got.output, gold.output, own.output, 2, length, "output");
  expect_within_rule(got.lse, gold.lse, own.lse, 2, length, "lse");
  for (size_t i = 0; i < got.grads.size(); ++i) {
    const int64_t terms =
        i < 3 ? length * c.H : c.L * c.S;  // a table's entry has those of many rows
    expect_within_rule(got.grads[i], gold.grads[i], own.grads[i], 3, terms,
                       "gradient " + std::to_string(i));
  }
}

class CudaKernels : public PretendedCuda {
 protected:
  void SetUp() override {
    PretendedCuda::SetUp();
    set_cuda_jit(true);
  }
};

}  // namespace attzoo::testing
