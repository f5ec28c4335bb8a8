// ONNX's cases of recurrences, which belong to nobody's implementation. None is left out: each has
// a meaning here.

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
    ++cases[tensors.metadata.at("op")];
    Report report;
    check_onnx(tensors, report);
    for (const auto& failure : report.failures) {
      ADD_FAILURE() << file.path().filename() << ": " << failure;
    }
  }
  EXPECT_EQ(cases,
            (std::map<std::string, int>{{"CausalConvWithState", 13}, {"LinearAttention", 14}}));
}

}  // namespace
}  // namespace attzoo::testing::onnx_test
