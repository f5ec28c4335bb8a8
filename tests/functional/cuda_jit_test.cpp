// Whether kernels are compiled at run time is asked of CUDA tensors alone (tests/cuda has the
// kernels).

#include <gtest/gtest.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/cuda_jit.hpp>
#include <attzoo/functional/masks.hpp>

#include <string>

namespace attzoo::testing::cuda_jit_test {
namespace {

TEST(CudaJit, LeavesTheCpuAlone) {
  const bool before = core::cuda_jit();
  const auto q = torch::randn({1, 2, 40, 16});
  const auto way = [&](bool on) {
    set_cuda_jit(on);
    return explain(q, q, q, causal());
  };
  EXPECT_NE(way(true).find("the fused CPU kernels: taken"), std::string::npos);
  EXPECT_EQ(way(true), way(false));
  set_cuda_jit(before);
}

}  // namespace
}  // namespace attzoo::testing::cuda_jit_test
