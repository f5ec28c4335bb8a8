#include <gtest/gtest.h>
#include <attzoo/io/checkpoint.hpp>

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <optional>

#include "support/expect_error.hpp"
#include "support/peak_memory.hpp"

namespace attzoo::testing::checkpoint_test {
namespace {

namespace fs = std::filesystem;

/// Each test has a folder of its own.
class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        fs::temp_directory_path() /
        (std::string("attzoo_") + ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder_);
    fs::create_directory(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path at(const std::string& name) const { return folder_ / name; }

  void write_text(const std::string& name, const std::string& text) const {
    std::ofstream(at(name), std::ios::binary) << text;
  }
  /// A file of this header, with data of so many bytes that are not written.
  void write_sparse(const std::string& name, const std::string& header, uint64_t bytes) const {
    const uint64_t size = header.size();
    std::ofstream out(at(name), std::ios::binary);
    out.write(reinterpret_cast<const char*>(&size), 8);
    out << header;
    out.close();
    fs::resize_file(at(name), 8 + size + bytes);
  }
  void write_index(const std::map<std::string, std::string>& shard_of) const {
    std::string map;
    for (const auto& [tensor, shard] : shard_of) {
      map += (map.empty() ? "\"" : ",\"") + tensor + "\":\"" + shard + "\"";
    }
    write_text("model.safetensors.index.json",
               R"({"metadata":{"total_size":24},"weight_map":{)" + map + "}}");
  }

  fs::path folder_;
};

std::map<std::string, torch::Tensor> all_dtypes() {
  std::map<std::string, torch::Tensor> tensors;
  for (const auto dtype :
       {torch::kFloat64, torch::kFloat32, torch::kHalf, torch::kBFloat16, torch::kInt64,
        torch::kInt32, torch::kInt16, torch::kInt8, torch::kUInt8, torch::kBool}) {
    tensors[c10::toString(dtype)] = torch::randn({3, 5}).mul(3).to(dtype);
  }
  tensors["scalar"] = torch::tensor(3.5);
  tensors["empty"] = torch::empty({0, 7});
  return tensors;
}

void expect_equal(const std::map<std::string, torch::Tensor>& got,
                  const std::map<std::string, torch::Tensor>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (const auto& [name, t] : want) {
    ASSERT_EQ(got.count(name), 1U) << name;
    EXPECT_EQ(got.at(name).scalar_type(), t.scalar_type()) << name;
    EXPECT_TRUE(torch::equal(got.at(name), t)) << name;
  }
}

TEST_F(CheckpointTest, MapsWhatIsReadOtherwise) {
  // Sizes of 15 elements leave most tensors of the file misaligned for their dtype.
  const auto tensors = all_dtypes();
  save_safetensors(at("a.safetensors"), tensors, {{"format", "pt"}});
  const auto mapped = open_checkpoint(at("a.safetensors"));
  expect_equal(mapped.tensors, tensors);
  EXPECT_EQ(mapped.metadata, (std::map<std::string, std::string>{{"format", "pt"}}));
  for (const auto& [name, t] : mapped.tensors) {
    if (t.numel() == 0) continue;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data_ptr()) % t.element_size(), 0U) << name;
  }
}

TEST_F(CheckpointTest, TensorsAreViewsThatKeepTheFile) {
  const auto want = torch::randn({1000, 100});
  save_safetensors(at("a.safetensors"), {{"x", want}, {"y", want + 1}});
  torch::Tensor x, again;
  PeakMemory memory;
  {
    auto mapped = open_checkpoint(at("a.safetensors"));
    x = mapped.tensors.at("x");
    again = open_checkpoint(at("a.safetensors")).tensors.at("x");
  }
  EXPECT_EQ(memory.total(), 0);
  fs::remove(at("a.safetensors"));
  EXPECT_TRUE(torch::equal(x, want));
  EXPECT_TRUE(torch::equal(again, want));
}

TEST_F(CheckpointTest, WhatIsWrittenStaysInMemory) {
  const auto want = torch::randn({100, 100});
  save_safetensors(at("a.safetensors"), {{"x", want}});
  auto x = open_checkpoint(at("a.safetensors")).tensors.at("x");
  const auto other = open_checkpoint(at("a.safetensors")).tensors.at("x");
  x.fill_(7);
  EXPECT_TRUE(torch::equal(x, torch::full({100, 100}, 7.0F)));
  EXPECT_TRUE(torch::equal(other, want));
  EXPECT_TRUE(torch::equal(load_safetensors(at("a.safetensors")).tensors.at("x"), want));
}

/// Resident memory of this process in bytes, where Linux says.
std::optional<int64_t> resident() {
  std::ifstream in("/proc/self/statm");
  int64_t total = 0, pages = 0;
  if (!(in >> total >> pages)) return std::nullopt;
  return pages * 4096;
}

TEST_F(CheckpointTest, ThreeGigabytesNeedNoMemory) {
  const int64_t n = int64_t{1} << 28, bytes = 4 * n;  // 1 GiB each
  std::string header = "{";
  for (int64_t i = 0; i < 3; ++i) {
    header += c10::str(i > 0 ? "," : "", "\"t", i, "\":{\"dtype\":\"F32\",\"shape\":[", n / 1024,
                       ",1024],\"data_offsets\":[", i * bytes, ",", (i + 1) * bytes, "]}");
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  write_sparse("big.safetensors", header, static_cast<uint64_t>(3 * bytes));
  {
    const float mark = 2.5F;
    std::fstream file(at("big.safetensors"), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-static_cast<std::streamoff>(sizeof mark), std::ios::end);
    file.write(reinterpret_cast<const char*>(&mark), sizeof mark);
  }
  PeakMemory memory;
  const auto before = resident();
  const auto tensors = open_checkpoint(at("big.safetensors")).tensors;
  EXPECT_EQ(tensors.at("t0")[5].sum().item<float>(), 0.0F);
  EXPECT_EQ(tensors.at("t1")[n / 1024 - 1].sum().item<float>(), 0.0F);
  EXPECT_EQ(tensors.at("t2")[n / 1024 - 1].sum().item<float>(), 2.5F);
  EXPECT_LT(memory.total(), 1 << 20);
  if (before) {
    EXPECT_LT(*resident() - *before, int64_t{1} << 26);
  }
}

TEST_F(CheckpointTest, BrokenFilesAreNamed) {
  const auto path = at("a.safetensors").string();
  const auto refused = [&](std::vector<std::string> parts) {
    parts.insert(parts.end(), {"open_checkpoint", path});
    expect_error([&] { open_checkpoint(path); }, parts);
  };
  refused({"cannot be opened"});
  write_text("a.safetensors", "");
  refused({"truncated", "8 bytes", "got 0"});
  write_text("a.safetensors", "abc");
  refused({"truncated", "8 bytes", "got 3"});
  write_text("a.safetensors", std::string("\x40\0\0\0\0\0\0\0{}", 10));
  refused({"truncated", "64 bytes"});
  write_sparse("a.safetensors", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4);
  refused({"\"a\"", "do not lie in the 4 bytes"});
  write_sparse("a.safetensors", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 12);
  refused({"end at byte 8 of 12"});
  write_sparse("a.safetensors", R"({"a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})", 2);
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    file.put('\x9');
  }
  refused({"\"a\"", "0 or 1", "9"});
  expect_error([&] { open_checkpoint("/dev/zero"); }, {"/dev/zero", "regular file"});
}

TEST_F(CheckpointTest, ShardsThroughTheirIndex) {
  const auto a = torch::randn({3, 4}), b = torch::randn({5}), c = torch::randn({2, 2});
  save_safetensors(at("model-00001-of-00002.safetensors"), {{"a", a}, {"b", b}},
                   {{"format", "pt"}, {"part", "1"}});
  save_safetensors(at("model-00002-of-00002.safetensors"), {{"c", c}}, {{"part", "2"}});
  write_index({{"a", "model-00001-of-00002.safetensors"},
               {"b", "model-00001-of-00002.safetensors"},
               {"c", "model-00002-of-00002.safetensors"}});
  for (const auto& path : {folder_, at("model.safetensors.index.json")}) {
    const auto checkpoint = open_checkpoint(path);
    expect_equal(checkpoint.tensors, {{"a", a}, {"b", b}, {"c", c}});
    EXPECT_EQ(checkpoint.metadata,
              (std::map<std::string, std::string>{{"format", "pt"}, {"part", "1"}}));
  }
}

TEST_F(CheckpointTest, AFolderHasOneCheckpoint) {
  expect_error([&] { open_checkpoint(folder_); }, {folder_.string(), "neither", "index.json"});
  const auto a = torch::randn({3});
  save_safetensors(at("model.safetensors"), {{"a", a}});
  expect_equal(open_checkpoint(folder_).tensors, {{"a", a}});
  write_index({{"a", "model.safetensors"}});
  expect_error([&] { open_checkpoint(folder_); }, {folder_.string(), "both", "index.json"});
  expect_equal(open_checkpoint(at("model.safetensors")).tensors, {{"a", a}});
  expect_equal(open_checkpoint(at("model.safetensors.index.json")).tensors, {{"a", a}});
}

TEST_F(CheckpointTest, OneErrorListsAllThatIsWrongWithShards) {
  const auto t = torch::ones({2});
  save_safetensors(at("one"), {{"a", t}, {"twice", t}, {"unnamed", t}, {"stray", t}});
  save_safetensors(at("two"), {{"b", t}, {"twice", t}});
  save_safetensors(at("cut"), {{"d", t}});
  fs::resize_file(at("cut"), fs::file_size(at("cut")) - 4);
  write_index({{"a", "one"},
               {"lacking", "one"},
               {"twice", "one"},
               {"b", "two"},
               {"stray", "two"},
               {"d", "cut"},
               {"e", "absent"},
               {"f", "gone"},
               {"g", "../one"},
               {"h", ".."},
               {"i", "two\\u0000"}});
  expect_error([&] { open_checkpoint(folder_); },
               {"open_checkpoint", at("model.safetensors.index.json").string(),
                "one: lacks \"lacking\"", "one: holds \"stray\", \"unnamed\", which the index",
                "two: lacks \"stray\"", "two: holds \"twice\", which is in one too",
                "cut: tensor \"d\"", "do not lie in the 4 bytes", "absent: cannot be opened",
                "gone: cannot be opened", "../one: is no name", "..: is no name",
                "two\\x00: cannot be opened: the path has a zero byte"});
}

TEST_F(CheckpointTest, BrokenIndicesAreNamed) {
  const auto refused = [&](const std::string& text, const std::vector<std::string>& parts) {
    write_text("model.safetensors.index.json", text);
    auto all = parts;
    all.push_back("model.safetensors.index.json");
    expect_error([&] { open_checkpoint(folder_); }, all);
  };
  refused("", {"JSON", "byte 0"});
  refused("{}", {"weight_map"});
  refused(R"({"weight_map":[]})", {"an object"});
  refused(R"({"weight_map":{"a":7}})", {"\"a\"", "a string"});
  refused(R"({"weight_map":{"a":"x","a":"y"}})", {"only once"});
  write_sparse("model.safetensors.index.json", "", 100'000'001);
  expect_error([&] { open_checkpoint(folder_); }, {"index.json", "over the limit"});
  fs::remove(at("model.safetensors.index.json"));
  ASSERT_EQ(::mkfifo(at("model.safetensors.index.json").c_str(), 0600), 0);
  expect_error([&] { open_checkpoint(folder_); }, {"index.json", "pipe", "regular file"});
}

}  // namespace
}  // namespace attzoo::testing::checkpoint_test
