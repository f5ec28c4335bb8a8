#include <gtest/gtest.h>
#include <attzoo/gated.hpp>
#include <attzoo/grouped.hpp>
#include <attzoo/multi_head.hpp>
#include <attzoo/safetensors.hpp>

#include <filesystem>
#include <fstream>

#include "support/expect_error.hpp"

namespace attzoo::testing {
namespace {

class SafeTensorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() /
            (std::string("attzoo_") +
             ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".safetensors");
  }
  void TearDown() override { std::filesystem::remove(path_); }

  /// A file of this header and so many bytes of data.
  void write(const std::string& header, size_t data, uint64_t header_size) const {
    std::ofstream out(path_, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&header_size), 8);
    out << header << std::string(data, '\1');
  }
  void expect_refused(const std::string& header, size_t data,
                      std::vector<std::string> parts) const {
    write(header, data, header.size());
    parts.push_back(path_.string());
    expect_error([&] { load_safetensors(path_); }, parts);
  }

  std::filesystem::path path_;
};

TEST_F(SafeTensorsTest, RoundTripOfEveryDtype) {
  std::map<std::string, torch::Tensor> tensors;
  for (const auto& [name, dtype] : core::kSafeTensorsDtypes) {
    tensors[name] = torch::randn({3, 4}).mul(3).to(dtype);
  }
  tensors["scalar"] = torch::tensor(3.5);
  tensors["empty"] = torch::empty({0, 7});
  tensors["strided \"\\\u00e9"] = torch::randn({4, 6}).t().slice(0, 1, 5, 2);
  save_safetensors(path_, tensors, {{"format", "pt"}, {"note", "a\nb"}});
  const auto back = load_safetensors(path_);
  EXPECT_EQ(back.metadata,
            (std::map<std::string, std::string>{{"format", "pt"}, {"note", "a\nb"}}));
  ASSERT_EQ(back.tensors.size(), tensors.size());
  for (const auto& [name, t] : tensors) {
    EXPECT_EQ(back.tensors.at(name).scalar_type(), t.scalar_type()) << name;
    EXPECT_TRUE(torch::equal(back.tensors.at(name), t)) << name;
  }
  EXPECT_FALSE(std::filesystem::exists(path_.string() + ".partial"));
}

TEST_F(SafeTensorsTest, RefusesBrokenFiles) {
  expect_error([&] { load_safetensors(path_); }, {"cannot be opened", path_.string()});
  std::ofstream(path_) << "abc";
  expect_error([&] { load_safetensors(path_); }, {"truncated", "8 bytes"});
  write("{}", 0, 100);
  expect_error([&] { load_safetensors(path_); }, {"truncated", "100"});
  write("{}", 0, uint64_t{1} << 63);
  expect_error([&] { load_safetensors(path_); }, {"over the limit"});
  expect_refused("{", 0, {"JSON", "byte"});
  expect_refused("[]", 0, {"an object"});
  expect_refused(R"({"__metadata__":{"a":1}})", 0, {"a string"});
  const std::string a = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)";
  expect_refused(a + "[0,8]}}", 4, {"\"a\"", "do not lie in the 4 bytes"});
  expect_refused(a + "[0,8]}}", 12, {"end at byte 8 of 12"});
  expect_refused(a + "[4,12]}}", 12, {"\"a\"", "begins at byte 4", "expected 0"});
  expect_refused(a + "[0,4]}}", 4, {"\"a\"", "needs 8 bytes", "give 4"});
  expect_refused(a + "[8,0]}}", 8, {"data_offsets"});
  expect_refused(a + "[0]}}", 8, {"[begin, end]"});
  expect_refused(R"({"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})", 8, {"F33"});
  expect_refused(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8, {"negative"});
  expect_refused(R"({"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,8]}})", 8,
                 {"overflows"});
  expect_refused(R"({"a":{"dtype":"F32","shape":[2]}})", 8, {"data_offsets"});
  expect_refused(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                 R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
                 6, {"overlap"});
}

TEST_F(SafeTensorsTest, WritesWholeFilesOrNone) {
  expect_error(
      [&] {
        save_safetensors(path_, {{"a", torch::ones({2}, torch::kComplexFloat)}});
      },
      {"\"a\"", "ComplexFloat"});
  expect_error([&] { save_safetensors(path_, {{"a", torch::Tensor()}}); }, {"\"a\"", "undefined"});
  EXPECT_FALSE(std::filesystem::exists(path_));
  expect_error(
      [&] {
        save_safetensors("/no/such/folder/x", {{"a", torch::ones({2})}});
      },
      {"/no/such/folder/x", "cannot be written"});
}

TEST_F(SafeTensorsTest, ModulesLoadStrictlyByName) {
  GatedSelfAttention a(MultiHeadSelfAttention(8, 2)), b(MultiHeadSelfAttention(8, 2));
  save_state_dict(*a, path_);
  load_state_dict(*b, path_);
  a->eval();
  b->eval();
  const auto x = torch::randn({1, 5, 8});
  EXPECT_TRUE(torch::equal(a(x).output, b(x).output));

  auto state = load_safetensors(path_).tensors;
  state.erase("gate.0.bias");
  state["attn.w_q.weight"] = torch::zeros({8, 9});
  state["attn.w_k.weight"] = torch::zeros({8, 8}, torch::kFloat64);
  state["attn.w_v.weight"] = torch::zeros({8, 8});
  state["more"] = torch::zeros({1});
  state["attn.alibi_bias"] = torch::zeros({1});  // ignored
  expect_error([&] { load_state_dict(*b, state); },
               {"missing: gate.0.bias", "attn.w_q.weight: expected [8, 8] Float, got [8, 9] Float",
                "attn.w_k.weight: expected [8, 8] Float, got [8, 8] Double", "extra: more"});
  EXPECT_TRUE(torch::equal(a(x).output, b(x).output));  // nothing was changed
}

}  // namespace
}  // namespace attzoo::testing
