#include <attzoo/alibi.hpp>

#include "support/mechanism_contract.hpp"

namespace attzoo::testing::alibi_test {
namespace {

struct ALiBiTraits : PlainTraits {
  using Module = ALiBiSelfAttention;
  static ALiBiSelfAttentionOptions options() {
    return {.d_model = 12, .num_heads = 3, .dropout = 0, .bias = true};
  }
  static torch::Tensor score_bias(Module& m, int64_t L, int64_t S) {
    const auto q = torch::arange(L) + (S - L), kv = torch::arange(S);
    const auto distance = (q.unsqueeze(1) - kv.unsqueeze(0)).abs().to(torch::kFloat64);
    return -m->slopes.to(torch::kFloat64).view({1, -1, 1, 1}) * distance;
  }
};
INSTANTIATE_TEST_SUITE_P(ALiBi, MechanismContract, mechanism<ALiBiTraits>());

TEST(ALiBi, ZeroSlopesEqualMultiHead) {
  ALiBiSelfAttention m({.d_model = 12, .num_heads = 3, .dropout = 0});
  m->slopes.zero_();
  expect_equivalent(m, MultiHeadSelfAttention(12, 3));
}

TEST(ALiBi, SlopesOfThePaper) {
  const auto is = [](int64_t heads, std::vector<double> log2, bool python = false) {
    const auto want = torch::exp2(-torch::tensor(log2, torch::kFloat64)).to(torch::kFloat32);
    EXPECT_TRUE(torch::equal(alibi_slopes(heads, python), want)) << heads;
  };
  is(1, {8});
  is(2, {4, 8});
  is(8, {1, 2, 3, 4, 5, 6, 7, 8});
  is(6, {2, 4, 6, 8, 1, 3});
  is(3, {4, 8, 2});
  is(1, {0}, true);
  is(6, {2, 4, 6, 8, 2, 4}, true);
  expect_error([] { alibi_slopes(0); }, {"alibi_slopes", "num_heads", "0"});
  expect_error([] { alibi_slopes(std::numeric_limits<int64_t>::max()); },
               {"alibi_slopes", "num_heads", "9223372036854775807"});
}

TEST(ALiBi, SlopesTravelWithTheModule) {
  ALiBiSelfAttention a({.d_model = 12, .num_heads = 6, .python_slopes = true}), b(12, 6);
  EXPECT_FALSE(torch::equal(a->slopes, b->slopes));
  auto state = state_dict(*a);
  state["alibi_bias"] = torch::zeros({6, 4, 4});  // the Python library saves it; nothing needs it
  load_state_dict(*b, state);
  EXPECT_TRUE(torch::equal(a->slopes, b->slopes));
}

}  // namespace
}  // namespace attzoo::testing::alibi_test
