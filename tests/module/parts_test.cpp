#include <gtest/gtest.h>
#include <attzoo/delta_net.hpp>
#include <attzoo/multi_head.hpp>

#include "support/expect_error.hpp"

namespace attzoo::testing::parts_test {
namespace {

/// Layers that no machine holds are refused with the options that asked for them.
TEST(Parts, NamesTheOptionsOfLayersThatAreTooLarge) {
  expect_error(
      [] {
        MultiHeadSelfAttention m({.d_model = 64, .num_heads = 2, .head_dim = int64_t{1} << 34});
      },
      {"MultiHeadSelfAttention", "w_q", "d_model=64", "input_dim=64", "head_dim=17179869184"});
  expect_error([] { DeltaNet m({.d_model = 64, .num_heads = 2, .head_dim = int64_t{1} << 40}); },
               {"DeltaNet", "w_q", "d_model=64", "input_dim=64", "2^36"});
  expect_error([] { DeltaNet m({.d_model = 64, .num_heads = 2, .input_dim = int64_t{1} << 40}); },
               {"DeltaNet", "w_q", "input_dim=1099511627776"});
}

TEST(Parts, SaysWhatItIs) {
  DeltaNet m({.d_model = 8, .num_heads = 2, .input_dim = 6});
  EXPECT_EQ(m->d_model(), 8);
  EXPECT_EQ(m->input_dim(), 6);
  EXPECT_FALSE(m->takes().mask);
  EXPECT_FALSE(m->takes().context);
  EXPECT_FALSE(m->takes().later);
}

}  // namespace
}  // namespace attzoo::testing::parts_test
