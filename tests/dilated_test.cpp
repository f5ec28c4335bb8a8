#include <attzoo/dilated.hpp>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::dilated_test {
namespace {

struct DilatedTraits : PlainTraits {
  using Module = DilatedSelfAttention;
  static DilatedSelfAttentionOptions options() {
    return {.d_model = 12, .num_heads = 3, .dilation_rate = 3, .dropout = 0, .bias = true};
  }
  static torch::Tensor allowed(int64_t n) { return create_dilated_mask(n, 3); }
};
INSTANTIATE_TEST_SUITE_P(Dilated, MechanismContract, mechanism<DilatedTraits>());

struct DilatedWindowTraits : DilatedTraits {
  static DilatedSelfAttentionOptions options() {
    auto o = DilatedTraits::options();
    o.dilation_rate = 2;
    o.window_size = 9;
    return o;
  }
  static torch::Tensor allowed(int64_t n) {
    return create_dilated_mask(n, 2) & create_local_mask(n, 9);
  }
};
INSTANTIATE_TEST_SUITE_P(DilatedWindow, MechanismContract, mechanism<DilatedWindowTraits>());

TEST(Dilated, HugeRatesLeaveTheTokenItself) {
  DilatedSelfAttention m({.d_model = 12,
                          .num_heads = 3,
                          .dilation_rate = std::numeric_limits<int64_t>::max(),
                          .dropout = 0});
  const auto x = torch::randn({2, 20, 12});
  const auto r = m(x);
  EXPECT_TRUE(torch::allclose(r.output, m->w_o(m->w_v(x)), 1e-5, 1e-6));
  EXPECT_TRUE(torch::equal(r.weights.tensor(), torch::eye(20).expand({2, 3, 20, 20})));
}

TEST(Dilated, RateOneEqualsMultiHead) {
  expect_equivalent(
      DilatedSelfAttention({.d_model = 12, .num_heads = 3, .dilation_rate = 1, .dropout = 0}),
      MultiHeadSelfAttention(12, 3));
}

TEST(Dilated, ConstructorErrors) {
  expect_error([] { DilatedSelfAttention({.d_model = 16, .dilation_rate = 0}); },
               {"DilatedSelfAttention", "dilation_rate", "0"});
  expect_error([] { DilatedSelfAttention({.d_model = 16, .window_size = 0}); },
               {"DilatedSelfAttention", "window_size", "0"});
}

}  // namespace
}  // namespace attzoo::testing::dilated_test
