// Complexity is a promise: the memory of a forward and a backward pass grows with n as it says,
// counted in bytes.

#include <gtest/gtest.h>
#include <attzoo/core/attention/chunked.hpp>

#include <functional>

#include "support/mechanisms.hpp"
#include "support/peak_memory.hpp"

namespace attzoo::testing::memory_test {
namespace {

template <class Module>
double bytes_per_token(Module& module, int64_t n, const AttentionInputs& inputs) {
  const auto x = torch::randn({1, n, 32}).requires_grad_();
  PeakMemory memory;
  module(x, inputs).output.sum().backward();
  return static_cast<double>(memory.peak()) / static_cast<double>(n);
}

/// Peak bytes of a token hardly change from n = 1024 to 4096 to 16384. (A lone head is split into
/// up to eight chunks for the threads' sake, each with gradients of its own: that is the first
/// step.)
template <class Module>
void expect_linear(
    const char* name, Module module,
    std::function<AttentionInputs(int64_t)> inputs = [](int64_t) { return AttentionInputs{}; }) {
  bytes_per_token(module, 64, inputs(64));  // the parameters' gradients exist from here on
  const double at_1k = bytes_per_token(module, 1024, inputs(1024));
  const double at_4k = bytes_per_token(module, 4096, inputs(4096));
  EXPECT_LT(at_4k, 1.5 * at_1k) << name;
  EXPECT_LT(bytes_per_token(module, 16384, inputs(16384)), 1.05 * at_4k) << name;
}

TEST(Memory, IsLinearInEveryMechanism) {
  for_each_mechanism(
      [](const char* name, Cost, auto make) { expect_linear(name, make({.width = 32})); });
}

TEST(Memory, IsLinearInOtherForms) {
  expect_linear(
      "dilated in a window",
      DilatedSelfAttention(
          {.d_model = 32, .num_heads = 2, .dilation_rate = 4, .window_size = 256, .dropout = 0}));
  expect_linear(
      "overlapping blocks",
      BlockSelfAttention(
          {.d_model = 32, .num_heads = 2, .block_size = 64, .overlap = true, .dropout = 0}));
  expect_linear(
      "lsh in two rounds",
      LSHSelfAttention(
          {.d_model = 32, .num_heads = 2, .bucket_size = 32, .num_hashes = 2, .dropout = 0}));
  expect_linear("causal linear",
                LinearSelfAttention({.d_model = 32, .num_heads = 2, .dropout = 0, .causal = true}));
  expect_linear(
      "longformer with global tokens",
      LongformerSelfAttention({.d_model = 32, .num_heads = 2, .window_size = 64, .dropout = 0}),
      [](int64_t n) { return AttentionInputs{.global_attention = torch::arange(n) < 4}; });
}

/// Padding and a causal switch cost no n x n either.
TEST(Memory, IsLinearUnderPadding) {
  expect_linear("padded", LocalSelfAttention({.d_model = 32, .num_heads = 2, .dropout = 0}),
                [](int64_t n) {
                  return AttentionInputs{.key_padding_mask = torch::arange(n).unsqueeze(0) < n - 10,
                                         .causal = true};
                });
}

/// Bytes of a backward pass of lse alone, at most, over those of the inputs.
template <class Run>
double lse_gradient_bytes(int64_t n, Run&& run) {
  const auto leaf = [n] { return torch::randn({1, 2, n, 16}).requires_grad_(); };
  const auto q = leaf(), k = leaf(), v = leaf();
  PeakMemory memory;
  const torch::Tensor lse = run(q, k, v);
  torch::autograd::grad({lse.sum()}, {q, k});
  return static_cast<double>(memory.peak()) / static_cast<double>(3 * q.nbytes());
}

TEST(Memory, GradientOfLseAloneIsLinear) {
  const auto fused = [](const auto& q, const auto& k, const auto& v) {
    return attention(q, k, v, causal()).lse;
  };
  const auto chunked = [](const auto& q, const auto& k, const auto& v) {
    static const core::ChunkedBackend in_chunks(1);
    return core::run(in_chunks, {q, k, v}, {causal(), {}, 0.25}).lse;
  };
  for (const int64_t n : {1024, 4096}) {
    EXPECT_LT(lse_gradient_bytes(n, fused), 8) << n;
    EXPECT_LT(lse_gradient_bytes(n, chunked), 16) << n;
  }
}

}  // namespace
}  // namespace attzoo::testing::memory_test
