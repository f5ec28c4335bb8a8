// Whole decoders against their references, through attzoo_generate's model code.

#include <gtest/gtest.h>

#include <filesystem>
#include <iostream>

#include "golden_decode.hpp"

namespace attzoo::testing::decode_test {
namespace {

class Decode : public ::testing::TestWithParam<const char*> {
 protected:
  const DecodeCase decoder{
      load_safetensors(std::filesystem::path(ATTZOO_SOURCE_DIR) / "tests/golden-modern" /
                       (std::string("decode_") + GetParam() + "__greedy.f64.safetensors"))};
};

TEST_P(Decode, GivesTheReferencesTokensAndLogits) {
  Report report;
  decoder.check(report);
  for (const auto& failure : report.failures) ADD_FAILURE() << failure;
}

/// Logits stay as near as a layer's outputs do (CacheTest.EightBits), and tokens with them:
/// docs/gpt.md has what this prints.
TEST_P(Decode, StaysNearWithCachesOf8Bits) {
  for (const auto dtype : {torch::kBFloat16, torch::kInt8, torch::kFloat8_e4m3fn}) {
    const auto got = decoder.with_caches_of(dtype);
    std::cout << GetParam() << ", caches of " << dtype << ": error of logits " << got.error << ", "
              << got.same << " of " << got.all << " tokens the same\n";
    EXPECT_LT(got.error, dtype == torch::kFloat8_e4m3fn ? 0.06 : 0.02);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Decode, ::testing::Values("llama", "gpt2", "gpt_oss"),
                         [](const auto& model) { return std::string(model.param); });

}  // namespace
}  // namespace attzoo::testing::decode_test
