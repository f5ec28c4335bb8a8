#include <gtest/gtest.h>
#include <attzoo/combined.hpp>
#include <attzoo/gated.hpp>
#include <attzoo/grouped.hpp>
#include <attzoo/io/safetensors.hpp>
#include <attzoo/io/state_dict.hpp>
#include <attzoo/multi_head.hpp>
#include <attzoo/vanilla.hpp>

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "support/expect_error.hpp"

namespace attzoo::testing::safetensors_test {
namespace {

namespace fs = std::filesystem;

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
  for (const auto dtype :
       {torch::kFloat64, torch::kFloat32, torch::kHalf, torch::kBFloat16, torch::kInt64,
        torch::kInt32, torch::kInt16, torch::kInt8, torch::kUInt8, torch::kBool}) {
    tensors[c10::toString(dtype)] = torch::randn({3, 4}).mul(3).to(dtype);
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
}

TEST_F(SafeTensorsTest, RefusesBrokenFiles) {
  expect_error([&] { load_safetensors(path_); }, {"cannot be opened", path_.string()});
  std::ofstream(path_) << "abc";
  expect_error([&] { load_safetensors(path_); }, {"truncated", "8 bytes"});
  write("{}", 0, 100);
  expect_error([&] { load_safetensors(path_); }, {"truncated", "100"});
  write("{}", 0, uint64_t{1} << 63);
  expect_error([&] { load_safetensors(path_); }, {"over the limit", "a safetensors file?"});
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

/// Tensors whose numbers nobody can write or copy, all [2, 2] float32 for those who ask.
std::vector<std::pair<torch::Tensor, std::string>> without_numbers() {
  const auto t = torch::ones({2, 2});
  const auto freed = torch::ones({2, 2});
  freed.storage().unsafeGetStorageImpl()->set_nbytes(0);
  return {{torch::Tensor(), "undefined"},
          {t.to_sparse(), "Sparse"},
          {t.to_sparse_csr(), "SparseCsr"},
          {t.to(torch::kMeta), "meta"},
          {at::_nested_tensor_from_tensor_list({t, t}), "nested"},
          {freed, "storage"}};
}

TEST_F(SafeTensorsTest, WritesNegatedAndConjugatedViewsAsTheyAre) {
  const auto z = torch::complex(torch::randn({3, 4}), torch::randn({3, 4}));
  const auto t = torch::imag(z.conj());
  ASSERT_TRUE(t.is_neg());
  const std::map<std::string, torch::Tensor> tensors{{"imag", t},
                                                     {"neg", torch::randn({5})._neg_view()},
                                                     {"zero", torch::_efficientzerotensor({3})}};
  save_safetensors(path_, tensors);
  const auto back = load_safetensors(path_).tensors;
  EXPECT_TRUE(torch::equal(back.at("imag"), -torch::imag(z)));
  EXPECT_TRUE(torch::equal(back.at("neg"), tensors.at("neg").resolve_neg()));
  EXPECT_TRUE(torch::equal(back.at("zero"), torch::zeros({3})));

  VanillaSelfAttention a(3), b(3);
  auto state = state_dict(*a);
  for (auto& [name, tensor] : state) tensor = tensor.detach()._neg_view();
  load_state_dict(*b, state);
  for (const auto& [name, tensor] : state_dict(*a)) {
    EXPECT_TRUE(torch::equal(state_dict(*b).at(name), -tensor)) << name;
  }
}

TEST_F(SafeTensorsTest, RefusesTensorsWithoutNumbers) {
  for (const auto& [t, name] : without_numbers()) {
    expect_error(
        [&, &t = t] {
          save_safetensors(path_, {{"a", torch::ones({1})}, {"b", t}});
        },
        {"save_safetensors", path_.string(), "\"b\"", name});
    EXPECT_FALSE(std::filesystem::exists(path_));
  }
}

TEST_F(SafeTensorsTest, OnlyRegularFiles) {
  const std::map<std::string, torch::Tensor> one{{"a", torch::ones({2})}};
  const auto folder = path_.string() + ".folder", pipe = path_.string() + ".pipe";
  fs::create_directory(folder);
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path :
       {folder, pipe, std::string("/dev/zero"), std::string("/dev/null")}) {
    expect_error([&] { load_safetensors(path); }, {"load_safetensors", path, "a regular file"});
    expect_error([&] { save_safetensors(path, one); },
                 {"save_safetensors", path, "a regular file"});
  }
  fs::remove(pipe);
  fs::remove(folder);
  expect_error([&] { load_safetensors(""); }, {"load_safetensors", "cannot be opened"});
  expect_error([&] { save_safetensors("", one); }, {"save_safetensors", "cannot be written"});
  expect_error([&] { save_safetensors("/proc/self/x", one); },
               {"/proc/self/x", "cannot be written"});
  expect_error([&] { load_safetensors("/proc/self/mem/x"); }, {"cannot be opened", "directory"});
  save_safetensors(path_, one);  // a path ends at a zero byte, and would be this one
  const std::string more = path_.string() + std::string("\0x", 2);
  expect_error([&] { load_safetensors(more); }, {"\\x00x", "zero byte"});
  expect_error([&] { save_safetensors(more, {}); }, {"\\x00x", "zero byte"});
  EXPECT_EQ(load_safetensors(path_).tensors.size(), 1U);
}

/// Tests of what else is in the folder.
class SafeTensorsFolderTest : public SafeTensorsTest {
 protected:
  void SetUp() override {
    SafeTensorsTest::SetUp();
    folder_ = path_.string() + ".folder";
    fs::remove_all(folder_);
    fs::create_directory(folder_);
    path_ = folder_ / "a.safetensors";
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::set<std::string> files() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      names.insert(entry.path().filename().string());
    }
    return names;
  }
  fs::perms mode() const { return fs::status(path_).permissions(); }

  fs::path folder_;
};

TEST_F(SafeTensorsFolderTest, AFailedWriteLeavesTheOldFileAlone) {
  save_safetensors(path_, {{"a", torch::ones({2})}});
  // More bytes than there is memory: the copy fails.
  expect_error(
      [&] {
        save_safetensors(path_, {{"big", torch::ones({1}).expand({1 << 30, 1 << 20})}});
      },
      {"\"big\""});
  // Files of this process must not grow beyond 1 MB: a write fails.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit low{1 << 20, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &low), 0);
  expect_error(
      [&] {
        save_safetensors(path_, {{"a", torch::zeros({1 << 20})}});
      },
      {path_.string(), "cannot be written: File too large"});
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_TRUE(torch::equal(load_safetensors(path_).tensors.at("a"), torch::ones({2})));
  EXPECT_EQ(files(), std::set<std::string>{"a.safetensors"});
}

TEST_F(SafeTensorsFolderTest, AFileHasThePermissionsOfTheOneBeforeOrOfANewOne) {
  using fs::perms;
  const std::map<std::string, torch::Tensor> one{{"a", torch::ones({2})}};
  const auto mask = ::umask(027);
  save_safetensors(path_, one);
  EXPECT_EQ(mode(), perms::owner_read | perms::owner_write | perms::group_read);
  for (const auto kept :
       {perms::owner_read | perms::owner_write, perms::owner_read | perms::others_write}) {
    fs::permissions(path_, kept);
    save_safetensors(path_, one);
    EXPECT_EQ(mode(), kept);
  }
  ::umask(mask);
}

TEST_F(SafeTensorsFolderTest, ManyWritersLeaveOneWholeFile) {
  // What the user may have there.
  const auto partial = path_.string() + ".partial";
  std::ofstream(partial) << "mine";
  std::vector<std::map<std::string, torch::Tensor>> states;
  for (int i = 0; i < 7; ++i) states.push_back({{"a", torch::full({200'000}, i)}});
  const auto write = [&](size_t number) {
    for (int round = 0; round < 20; ++round) save_safetensors(path_, states[number]);
  };
  const auto expect_whole = [&] {
    const auto a = load_safetensors(path_).tensors.at("a");
    EXPECT_EQ(a.numel(), 200'000);
    EXPECT_TRUE((a == a[0]).all().item<bool>());
  };
  write(0);
  std::vector<pid_t> processes;
  for (size_t i = 1; i <= 3; ++i) {
    processes.push_back(::fork());
    if (processes.back() != 0) continue;
    try {
      write(i);
    } catch (...) {
      ::_exit(1);
    }
    ::_exit(0);
  }
  std::atomic<int> failed = 0;
  std::vector<std::thread> threads;
  for (size_t i = 4; i <= 6; ++i) {
    threads.emplace_back([&, i] {
      try {
        write(i);
      } catch (const c10::Error&) {
        ++failed;
      }
    });
  }
  for (int round = 0; round < 20; ++round) expect_whole();
  for (auto& thread : threads) thread.join();
  for (const auto process : processes) {
    int status = 0;
    ::waitpid(process, &status, 0);
    failed += status != 0;
  }
  EXPECT_EQ(failed, 0);
  expect_whole();
  EXPECT_EQ(files(), (std::set<std::string>{"a.safetensors", "a.safetensors.partial"}));
  std::string mine;
  std::ifstream(partial) >> mine;
  EXPECT_EQ(mine, "mine");
}

TEST_F(SafeTensorsTest, TextIsUtf8) {
  const auto one = torch::ones({1});
  expect_error(
      [&] {
        save_safetensors(path_, {{"a\xff", one}});
      },
      {"name of tensor", "a\\xff", "UTF-8"});
  expect_error(
      [&] {
        save_safetensors(path_, {{"a", one}}, {{"key\xff", "v"}});
      },
      {"key\\xff", "UTF-8"});
  expect_error(
      [&] {
        save_safetensors(path_, {{"a", one}}, {{"key", "v\xff"}});
      },
      {"key", "v\\xff", "UTF-8"});
  EXPECT_FALSE(std::filesystem::exists(path_));
  expect_refused("{\"a\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
                 {"UTF-8", "byte 3"});
}

TEST_F(SafeTensorsTest, TruthValuesAreZeroOrOne) {
  const std::string header = R"({"ok":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("flag":{"dtype":"BOOL","shape":[2],"data_offsets":[1,3]}})";
  const auto write_bytes = [&](const std::string& bytes) {
    const uint64_t size = header.size();
    std::ofstream out(path_, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&size), 8);
    out << header << bytes;
  };
  write_bytes({'\x7', '\0', '\1'});
  EXPECT_TRUE(
      torch::equal(load_safetensors(path_).tensors.at("flag"), torch::tensor({false, true})));
  write_bytes({'\x7', '\1', '\x9'});
  expect_error([&] { load_safetensors(path_); }, {"\"flag\"", "0 or 1", "9"});
  uint8_t raw[] = {1, 200};
  expect_error(
      [&] {
        save_safetensors(path_, {{"raw", torch::from_blob(raw, {2}, torch::kBool)}});
      },
      {"\"raw\"", "0 or 1", "200"});
}

TEST_F(SafeTensorsTest, ErrorsInTheHeaderNameTheTensor) {
  const auto entry = [](const std::string& body) { return "{\"t\":{" + body + "}}"; };
  const std::string tail = R"(,"data_offsets":[0,0])";
  expect_refused(entry(R"("dtype":"F32","shape":[0,4611686018427387904,8])" + tail), 0,
                 {"\"t\"", "overflows"});
  expect_refused(entry(R"("dtype":"F32","shape":[4611686018427387904,8,0])" + tail), 0,
                 {"\"t\"", "overflows"});
  expect_refused(entry(R"("dtype":"F32","shape":[2.5])" + tail), 0, {"\"t\"", "an integer", "2.5"});
  expect_refused(entry(R"("dtype":"F32","shape":[9223372036854775808])" + tail), 0,
                 {"\"t\"", "an integer"});
  expect_refused(entry(R"("dtype":7,"shape":[0])" + tail), 0, {"\"t\"", "a string", "7"});
  expect_refused(entry(R"("dtype":"F32","shape":[0])"), 0, {"\"t\"", "data_offsets"});
  expect_refused(R"({"t":[1]})", 0, {"\"t\"", "an object"});
  std::string ones = "1";
  for (int i = 0; i < 64; ++i) ones += ",1";
  expect_refused(entry("\"dtype\":\"U8\",\"shape\":[" + ones + "],\"data_offsets\":[0,1]"), 1,
                 {"\"t\"", "65 dimensions"});
  expect_refused(R"({"t":1,"t":2})", 0, {"only once", "\"t\""});
}

TEST_F(SafeTensorsTest, NothingChangesOnAnyError) {
  VanillaSelfAttention attn(2);
  std::map<std::string, torch::Tensor> before;
  for (const auto& [name, t] : state_dict(*attn)) before[name] = t.detach().clone();
  const auto expect_unchanged = [&] {
    for (const auto& [name, t] : state_dict(*attn)) EXPECT_TRUE(torch::equal(t, before.at(name)));
  };
  // The last by name, so that all others would be overwritten first.
  for (const auto& [t, kind] : without_numbers()) {
    auto state = before;
    for (auto& [name, tensor] : state) tensor = torch::zeros_like(tensor);
    state.rbegin()->second = t;
    expect_error([&] { load_state_dict(*attn, state); },
                 {"load_state_dict", "VanillaSelfAttention", state.rbegin()->first, kind});
    expect_unchanged();
  }
  auto zeros = before;
  for (auto& [name, tensor] : zeros) tensor = torch::zeros_like(tensor);
  const auto replaced = [&](const torch::Tensor& own, const std::string& what) {
    const auto weight = attn->w_v->weight;
    attn->w_v->weight.set_data(own);
    expect_error([&] { load_state_dict(*attn, zeros); }, {"w_v.weight", "the module's own", what});
    attn->w_v->weight.set_data(weight.data());
  };
  const auto weight = attn->w_v->weight.detach().clone();
  replaced(torch::ones({1}).expand({2, 2}), "shares memory");
  attn->w_v->weight.set_data(weight);
  expect_unchanged();

  for (const auto& [own, kind] : without_numbers()) {
    if (!own.defined()) continue;  // no part of the state
    torch::nn::Module module;
    const auto first = module.register_buffer("first", torch::ones({2}));
    module.register_buffer("second", own);
    expect_error(
        [&] {
          load_state_dict(module, {{"first", torch::zeros({2})}, {"second", torch::zeros({2, 2})}});
        },
        {"second", "the module's own", kind});
    EXPECT_TRUE(torch::equal(first, torch::ones({2})));
  }
}

TEST_F(SafeTensorsTest, TensorsOfTheModuleItselfCanBeGiven) {
  VanillaSelfAttention attn(4);
  const auto q = attn->w_q->weight.detach().clone(), k = attn->w_k->weight.detach().clone();
  auto state = state_dict(*attn);
  std::swap(state.at("w_q.weight"), state.at("w_k.weight"));
  state.at("w_v.weight") = attn->w_v->weight.detach().t();
  const auto v = attn->w_v->weight.detach().clone();
  load_state_dict(*attn, state);
  EXPECT_TRUE(torch::equal(attn->w_q->weight, k));
  EXPECT_TRUE(torch::equal(attn->w_k->weight, q));
  EXPECT_TRUE(torch::equal(attn->w_v->weight, v.t()));
}

TEST_F(SafeTensorsTest, OneTensorUnderTwoNamesGetsOneValue) {
  VanillaSelfAttention inner(4);
  CombinedAttention both(inner, inner);
  auto state = state_dict(*both);
  for (auto& [name, tensor] : state) tensor = tensor.detach().clone();
  load_state_dict(*both, state);
  state.at("attn_b.w_q.weight").add_(1);
  const auto before = inner->w_q->weight.detach().clone();
  expect_error([&] { load_state_dict(*both, state); }, {"attn_b.w_q.weight", "attn_a.w_q.weight"});
  EXPECT_TRUE(torch::equal(inner->w_q->weight, before));
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
  expect_error(
      [&] {
        load_state_dict(*b, {{"in_proj_weight", torch::zeros({2})}});
      },
      {"missing: attn.w_q.weight", "extra: in_proj_weight",
       "no name fits: did you mean names::torch_multihead_attention()?", "NameMap"});
  expect_error([&] { load_state_dict(*b, state); },
               {"missing: gate.0.bias", "attn.w_q.weight: expected [8, 8] Float, got [8, 9] Float",
                "attn.w_k.weight: expected [8, 8] Float, got [8, 8] Double", "extra: more"});
  EXPECT_TRUE(torch::equal(a(x).output, b(x).output));  // nothing was changed
}

}  // namespace
}  // namespace attzoo::testing::safetensors_test
