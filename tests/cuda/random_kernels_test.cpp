// Kernels of 50 random masks and score modifiers, half of which look entries up that learn;
// ATTZOO_SEED=1, 2, ... are other fifties.

#include <cstdlib>

#include "cuda/cuda_case.hpp"
#include "support/random_modifiers.hpp"

namespace attzoo::testing {
namespace {

using RandomKernels = CudaKernels;

TEST_F(RandomKernels, SayWhatTheReferenceSays) {
  attzoo_compile_quickly(true);
  const char* named = std::getenv("ATTZOO_SEED");
  const auto first = 50 * (named ? static_cast<unsigned>(std::strtoul(named, nullptr, 10)) : 0);
  for (unsigned seed = first; seed < first + 50; ++seed) {
    RandomTrees trees(seed);
    const auto truth = trees.truth(1 + static_cast<int>(seed % 4));
    const auto score = trees.score(1 + static_cast<int>(seed % 3));
    const auto place = trees.whole(2);
    const auto entries = torch::randn({2, 19});
    const bool has_table = seed % 2 == 0;
    expect_attention({.name = "seed " + std::to_string(seed),
                      .dtype = seed % 3 == 0 ? kF32 : kBf16,
                      .L = 70,
                      .make = [=](Setting& at) {
                        if (!has_table)
                          return Modifiers{RandomMask{truth}, RandomScore{score} + softcap(9)};
                        return Modifiers{
                            RandomMask{truth},
                            RandomScore{score, at.learn_wide(entries), place} + softcap(9)};
                      }});
  }
}

}  // namespace
}  // namespace attzoo::testing
