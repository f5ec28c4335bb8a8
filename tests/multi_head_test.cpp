#include <ATen/autocast_mode.h>
#include <attzoo/multi_head.hpp>

#include <cmath>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::multi_head_test {
namespace {

struct MultiHeadTraits : PlainTraits {
  using Module = MultiHeadSelfAttention;
  static MultiHeadSelfAttentionOptions options() {
    return {.d_model = 12, .num_heads = 3, .dropout = 0, .bias = true};
  }
};
INSTANTIATE_TEST_SUITE_P(MultiHead, MechanismContract, mechanism<MultiHeadTraits>());

/// With all that today's models put around attention, but for the window, which is causal.
struct ModernMultiHeadTraits : MultiHeadTraits {
  static MultiHeadSelfAttentionOptions options() {
    return {.d_model = 12,
            .num_heads = 3,
            .dropout = 0,
            .bias = true,
            .rope = RopeOptions{.base = 500, .pairs = RopePairs::kHalves, .dimensions = 4},
            .head_dim = 6,
            .out_bias = false,
            .qk_norm = true,
            .qk_norm_eps = 1e-3,
            .softcap = 1.5,
            .sinks = true,
            .output_gate = true};
  }
};
INSTANTIATE_TEST_SUITE_P(ModernMultiHead, MechanismContract, mechanism<ModernMultiHeadTraits>());

TEST(MultiHead, TemperatureDividesTheScores) {
  MultiHeadSelfAttention hot({.d_model = 8, .num_heads = 2, .dropout = 0, .temperature = 4});
  MultiHeadSelfAttention plain({.d_model = 8, .num_heads = 2, .dropout = 0});
  auto state = state_dict(*hot);
  state["w_q.weight"] = state["w_q.weight"] / 4;
  load_state_dict(*plain, state);
  const auto x = torch::randn({2, 7, 8});
  EXPECT_TRUE(torch::allclose(hot(x).output, plain(x).output, 1e-5, 1e-6));
}

TEST(MultiHead, InitialisationIsXavierUniform) {
  MultiHeadSelfAttention m({.d_model = 64, .num_heads = 4, .input_dim = 128, .bias = true});
  const double bound = std::sqrt(6.0 / (64 + 128));
  const auto w = m->w_q->weight;
  EXPECT_LE(w.abs().max().item<double>(), bound);
  EXPECT_NEAR(w.var().item<double>(), bound * bound / 3, 0.05 * bound * bound);
  EXPECT_EQ(m->w_q->bias.abs().max().item<double>(), 0);
}

TEST(MultiHead, PermutingTokensPermutesOutputs) {
  MultiHeadSelfAttention m({.d_model = 12, .num_heads = 3, .dropout = 0});
  m->to(torch::kFloat64);
  const auto x = torch::randn({1, 10, 12}, torch::kFloat64);
  const auto p = torch::randperm(10);
  EXPECT_TRUE(torch::allclose(m(x.index_select(1, p)).output, m(x).output.index_select(1, p), 1e-10,
                              1e-12));
}

TEST(MultiHead, AutocastTakesFloat32Masks) {
  MultiHeadSelfAttention m({.d_model = 12, .num_heads = 3, .dropout = 0});
  const auto x = torch::randn({2, 9, 12});
  const auto mask = torch::randn({9, 9});
  const auto want = m(x, {.mask = mask}).output;
  at::autocast::set_autocast_enabled(torch::kCPU, true);
  const auto got = m(x, {.mask = mask}).output;
  at::autocast::set_autocast_enabled(torch::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(got.scalar_type(), torch::kBFloat16);
  EXPECT_TRUE(torch::allclose(got.to(torch::kFloat32), want, 0.05, 0.05));
}

}  // namespace
}  // namespace attzoo::testing::multi_head_test
