// Whole decoders against their references, through attzoo_generate's model code.

#include <gtest/gtest.h>

#include <filesystem>

#include "golden_decode.hpp"

namespace attzoo::testing::decode_test {
namespace {

class Decode : public ::testing::TestWithParam<const char*> {};

TEST_P(Decode, GivesTheReferencesTokensAndLogits) {
  const auto file = std::filesystem::path(ATTZOO_SOURCE_DIR) / "tests/golden-modern" /
                    (std::string("decode_") + GetParam() + "__greedy.f64.safetensors");
  Report report;
  DecodeCase(load_safetensors(file)).check(report);
  for (const auto& failure : report.failures) ADD_FAILURE() << failure;
}

INSTANTIATE_TEST_SUITE_P(Models, Decode, ::testing::Values("llama", "gpt2", "gpt_oss"),
                         [](const auto& model) { return std::string(model.param); });

}  // namespace
}  // namespace attzoo::testing::decode_test
