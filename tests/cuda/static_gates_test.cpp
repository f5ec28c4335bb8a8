// What the assembler says of the kernels: their registers, and whether these suffice.

#include <dlfcn.h>
#include <attzoo/core/cuda/program.hpp>
#include <attzoo/functional/callables.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/scores.hpp>

#include <iostream>
#include <regex>
#include <string>
#include <vector>

#include "cuda/ptx_launch.hpp"

namespace attzoo::testing {
namespace {

/// What a kernel of a program takes.
struct Usage {
  std::string kernel;
  int registers, stack, spilled;  // bytes stored and loaded
};

/// A function of the NVRTC that ptx::Nvrtc has loaded.
template <class... A>
int nvrtc(const char* name, A... arguments) {
  static void* const library = [] {
    void* found = nullptr;
    for (const char* file : {"libnvrtc.so.13", "libnvrtc.so.12"}) {
      if (!found) found = dlopen(file, RTLD_NOW | RTLD_NOLOAD);
    }
    return found;
  }();
  return reinterpret_cast<int (*)(A...)>(dlsym(library, name))(arguments...);
}

/// The log of compiling a program for this architecture; throws if that fails.
std::string compiler_log(const std::string& text, int architecture) {
  const auto target = "--gpu-architecture=sm_" + std::to_string(architecture);
  const char* options[] = {target.c_str(), "--std=c++17", "--device-as-default-execution-space",
                           "--ptxas-options=-v"};
  const char* const* none = nullptr;
  void* program = nullptr;
  nvrtc("nvrtcCreateProgram", &program, text.c_str(), "attzoo.cu", 0, none, none);
  const int code =
      nvrtc("nvrtcCompileProgram", program, 4, static_cast<const char* const*>(options));
  size_t size = 0;
  nvrtc("nvrtcGetProgramLogSize", program, &size);
  std::string log(size, '\0');
  nvrtc("nvrtcGetProgramLog", program, log.data());
  nvrtc("nvrtcDestroyProgram", &program);
  if (code != 0) throw std::runtime_error(log);
  return log;
}

/// The number before or after some words of a part of the log.
int number_in(const std::string& part, const std::string& pattern) {
  std::smatch found;
  return std::regex_search(part, found, std::regex(pattern)) ? std::stoi(found[1]) : -1;
}

std::vector<Usage> usages(const std::string& text, int architecture) {
  const auto log = compiler_log(text, architecture);
  const std::string mark = "Compiling entry function '";
  std::vector<Usage> all;
  for (size_t at = log.find(mark); at != std::string::npos;) {
    const size_t name = at + mark.size(), next = log.find(mark, name);
    const auto part = log.substr(name, next - name);
    all.push_back({part.substr(0, part.find('\'')), number_in(part, "Used (\\d+) registers"),
                   number_in(part, "(\\d+) bytes stack frame"),
                   number_in(part, "(\\d+) bytes spill stores") +
                       number_in(part, "(\\d+) bytes spill loads")});
    at = next;
  }
  return all;
}

/// A problem's kernels: nothing but the scale, or a causal mask and a limit to scores.
struct Gate {
  torch::ScalarType scalar;
  int features;
  bool plain;

  core::KernelKind kind() const {
    return {.scalar = scalar,
            .wide = false,
            .D = features,
            .E = features,
            .aligned = true,
            .dropout = false,
            .plain = plain,
            .shared = false,
            .split = false};
  }
  core::ModifierSource source() const {
    const core::Shape n{1, 2, 300, 300};
    if (plain) return core::modifier_source({}, {}, n);
    const auto capped = score_mod([](auto s, auto...) { return 20 * tanh(s / 20); });
    return core::modifier_source(causal(), capped, n);
  }
  std::string name() const {
    const auto type = scalar == torch::kFloat32 ? "float32"
                      : scalar == torch::kHalf  ? "float16"
                                                : "bfloat16";
    return std::string(type) + " " + std::to_string(features) + (plain ? " plain" : " capped");
  }
};

core::BlockSizes blocks_of(const std::string& kernel, const core::KernelKind& kind) {
  return kernel == "forward"            ? core::forward_blocks(kind)
         : kernel == "backward_queries" ? core::query_blocks(kind)
                                        : core::key_blocks(kind);
}

/// Prints what a problem's kernels take, and allows so many bytes to be spilled.
void check(const Gate& gate, int architecture, int most_spilled) {
  constexpr int kMostRegisters = 255, kMostBytes = 99 * 1024;
  const auto kind = gate.kind();
  const auto source = gate.source();
  auto all = usages(core::forward_program(source, kind), architecture);
  for (auto& more : usages(core::backward_program(source, kind, false), architecture)) {
    all.push_back(std::move(more));
  }
  EXPECT_EQ(all.size(), core::keys_and_values_apart(kind) ? 4 : 3);
  for (const auto& usage : all) {
    const auto blocks = blocks_of(usage.kernel, kind);
    const auto line = "sm_" + std::to_string(architecture) + " " + gate.name() + " " +
                      usage.kernel + ": " + std::to_string(usage.registers) + " registers, " +
                      std::to_string(usage.spilled) + " bytes spilled, stack " +
                      std::to_string(usage.stack) + ", " + std::to_string(blocks.rows) + " x " +
                      std::to_string(blocks.columns) + " x " + std::to_string(blocks.stages) +
                      ", shared " + std::to_string(blocks.bytes);
    std::cout << line << std::endl;
    EXPECT_GT(usage.registers, 0) << line;
    EXPECT_LE(usage.registers, kMostRegisters) << line;
    EXPECT_LE(blocks.bytes, kMostBytes) << line;
    EXPECT_LE(usage.spilled, most_spilled) << line;
  }
}

constexpr auto kBf16 = torch::kBFloat16, kF16 = torch::kHalf, kF32 = torch::kFloat32;

/// With the architecture that is the parameter.
class StaticGates : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (!ptx::Nvrtc::get().found()) GTEST_SKIP() << "no libnvrtc; ATTZOO_REAL_NVRTC may name it";
    if (!ptx::Nvrtc::get().knows(GetParam()))
      GTEST_SKIP() << "NVRTC does not know sm_" << GetParam();
  }
};
INSTANTIATE_TEST_SUITE_P(Cuda, StaticGates, ::testing::Values(80, 90, 100, 120));

// Newer architectures are like the first one: there, fewer problems say enough.
TEST_P(StaticGates, RegistersSuffice) {
  for (const auto scalar : {kBf16, kF16, kF32}) {
    if (GetParam() != 80 && scalar != kBf16) continue;
    for (const int features : {64, 128}) {
      for (const bool plain : {true, false}) {
        // A few registers of a thread may not suffice for what a modifier keeps.
        check({scalar, features, plain}, GetParam(), plain && scalar != kF32 ? 0 : 160);
      }
    }
  }
}

// So many features may take more registers than there are; nothing else is asked of them.
TEST_P(StaticGates, OfManyFeaturesAreKnown) {
  if (GetParam() != 80) GTEST_SKIP() << "sm_80 says enough";
  for (const auto scalar : {kBf16, kF16, kF32}) {
    check({scalar, 256, true}, GetParam(), 512);
  }
}

}  // namespace
}  // namespace attzoo::testing
