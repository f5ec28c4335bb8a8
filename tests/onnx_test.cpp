// ONNX's cases of attention and recurrences, which belong to nobody's implementation. One has no
// meaning here: it changes weights behind the softmax.

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>

#include "golden_onnx.hpp"

namespace attzoo::testing::onnx_test {
namespace {

TEST(Onnx, GivesItsNumbers) {
  std::map<std::string, int> cases;
  const auto folder = std::filesystem::path(ATTZOO_SOURCE_DIR) / "tests/golden-onnx";
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (file.path().extension() != ".safetensors") continue;
    const auto tensors = load_safetensors(file.path());
    Report report;
    try {
      check_onnx(tensors, report);
      ++cases[tensors.metadata.at("op")];
    } catch (const Skipped& skipped) {
      ++cases["skipped: " + skipped.reason];
    }
    for (const auto& failure : report.failures) {
      ADD_FAILURE() << file.path().filename() << ": " << failure;
    }
  }
  EXPECT_EQ(cases, (std::map<std::string, int>{
                       {"Attention", 93},
                       {"CausalConvWithState", 13},
                       {"FlexAttention", 10},
                       {"LinearAttention", 14},
                       {"RotaryEmbedding", 8},
                       {"skipped: weights are not changed behind the softmax", 1}}));
}

}  // namespace
}  // namespace attzoo::testing::onnx_test
