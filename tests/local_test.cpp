#include <attzoo/local.hpp>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::local_test {
namespace {

struct LocalTraits : PlainTraits {
  using Module = LocalSelfAttention;
  static LocalSelfAttentionOptions options() {
    return {.d_model = 12, .num_heads = 3, .window_size = 5, .dropout = 0, .bias = true};
  }
  static torch::Tensor allowed(int64_t n) { return create_local_mask(n, 5); }
};
INSTANTIATE_TEST_SUITE_P(Local, MechanismContract, mechanism<LocalTraits>());

TEST(Local, WideWindowEqualsMultiHead) {
  for (const int64_t size : {int64_t{48}, std::numeric_limits<int64_t>::max()}) {
    expect_equivalent(
        LocalSelfAttention({.d_model = 12, .num_heads = 3, .window_size = size, .dropout = 0}),
        MultiHeadSelfAttention(12, 3));
  }
}

TEST(Local, EvenWindowSeesOneMore) {
  LocalSelfAttention m({.d_model = 12, .num_heads = 3, .window_size = 4, .dropout = 0});
  const torch::Tensor w = m(torch::randn({1, 20, 12})).weights;
  EXPECT_EQ((w[0][0][10] != 0).sum().item<int64_t>(), 5);
}

TEST(Local, ConstructorErrors) {
  expect_error([] { LocalSelfAttention({.d_model = 16, .window_size = 0}); },
               {"LocalSelfAttention", "window_size", "0"});
}

}  // namespace
}  // namespace attzoo::testing::local_test
