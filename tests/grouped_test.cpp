#include <attzoo/grouped.hpp>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::grouped_test {
namespace {

struct GroupedTraits : PlainTraits {
  using Module = GroupedSelfAttention;
  static GroupedSelfAttentionOptions options() {
    return {.d_model = 12, .num_query_heads = 6, .num_kv_heads = 2, .dropout = 0, .bias = true};
  }
};
INSTANTIATE_TEST_SUITE_P(Grouped, MechanismContract, mechanism<GroupedTraits>());

/// With all that today's models put around attention, but for the window, which is causal.
struct ModernGroupedTraits : GroupedTraits {
  static GroupedSelfAttentionOptions options() {
    return {.d_model = 12,
            .num_query_heads = 4,
            .num_kv_heads = 2,
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
INSTANTIATE_TEST_SUITE_P(ModernGrouped, MechanismContract, mechanism<ModernGroupedTraits>());

TEST(Grouped, AllHeadsOfTheirOwnEqualsMultiHead) {
  expect_equivalent(GroupedSelfAttention(12, 3, 3), MultiHeadSelfAttention(12, 3));
  expect_equivalent(GroupedSelfAttention(12, 3, 3), MultiHeadSelfAttention(12, 3),
                    {.causal = true});
}

TEST(Grouped, ConstructorErrors) {
  expect_error([] { GroupedSelfAttention(12, 5, 1); },
               {"GroupedSelfAttention", "num_query_heads", "d_model", "5", "12"});
  expect_error([] { GroupedSelfAttention(12, 6, 4); },
               {"GroupedSelfAttention", "num_kv_heads", "num_query_heads", "4", "6"});
  expect_error([] { GroupedSelfAttention(12, 6, 0); },
               {"GroupedSelfAttention", "num_kv_heads", "0"});
  expect_error(
      [] {
        GroupedSelfAttention(
            {.d_model = 12, .num_query_heads = 12, .num_kv_heads = 2, .rope = true});
      },
      {"GroupedSelfAttention", "rope", "1"});
}

}  // namespace
}  // namespace attzoo::testing::grouped_test
