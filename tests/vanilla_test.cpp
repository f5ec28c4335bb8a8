#include <attzoo/vanilla.hpp>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing {
namespace {

struct VanillaTraits : PlainTraits {
  using Module = VanillaSelfAttention;
  static constexpr const char* kName = "VanillaSelfAttention";
  static VanillaSelfAttentionOptions options() {
    return {.d_model = 12, .dropout = 0, .bias = true};
  }
  static constexpr bool kHeadAxis = false;
};
INSTANTIATE_TYPED_TEST_SUITE_P(Vanilla, MechanismContract, VanillaTraits);

TEST(Vanilla, EqualsOneHead) {
  expect_equivalent(MultiHeadSelfAttention({.d_model = 12, .num_heads = 1}),
                    MultiHeadSelfAttention(12, 1));
  VanillaSelfAttention vanilla(12);
  MultiHeadSelfAttention one(12, 1);
  vanilla->eval();
  one->eval();
  load_state_dict(*one, state_dict(*vanilla));
  const auto x = torch::randn({2, 9, 12});
  EXPECT_TRUE(torch::equal(vanilla(x).output, one(x).output));
  EXPECT_TRUE(torch::equal(vanilla(x).weights, torch::Tensor(one(x).weights).squeeze(1)));
}

TEST(Vanilla, OddWidthCannotRotate) {
  expect_error([] { VanillaSelfAttention({.d_model = 7, .rope = true}); },
               {"VanillaSelfAttention", "rope", "7"});
}

}  // namespace
}  // namespace attzoo::testing
