// The source that masks and score modifiers become in CUDA kernels, compiled for the CPU, against
// what they mean on tensors.

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/core/cuda/problem.hpp>
#include <attzoo/core/cuda/source.hpp>
#include <attzoo/functional/callables.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/scores.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "support/error_rule.hpp"
#include "support/expect_error.hpp"
#include "support/random_modifiers.hpp"

namespace attzoo::testing::cuda_source_test {
namespace {

using core::AnyMask, core::AnyScore, core::ModifierSource, core::Shape;

struct Case {
  std::string name;
  AnyMask mask;
  AnyScore score;
  Shape n;
};

struct Result {
  torch::Tensor attends, modified, slope;
};

/// Sources compiled into one library by the compiler that compiled this test.
class Library {
 public:
  explicit Library(const std::vector<ModifierSource>& sources) {
    std::string folder = (std::filesystem::temp_directory_path() / "attzoo_XXXXXX").string();
    EXPECT_NE(mkdtemp(folder.data()), nullptr);
    folder_ = folder;
    std::ofstream out(folder_ / "sources.cpp");
    out << "#include <math.h>\n";
    for (size_t i = 0; i < sources.size(); ++i) {
      out << "namespace source" << i << " {\n" << sources[i].text << "}\n";
      out << "extern \"C\" void run" << i
          << "(const int* n, const float* s, bool* attends, float* modified, float* slope, const "
             "void* "
             "number, const void* table) {\n  using namespace source"
          << i
          << ";\n  auto* x = static_cast<const Number*>(number);\n"
             "  auto* t = static_cast<const Table*>(table);\n  i64 at = 0;\n"
             "  for (int b = 0; b < n[0]; ++b) for (int h = 0; h < n[1]; ++h)\n"
             "    for (int q = 0; q < n[2]; ++q) for (int kv = 0; kv < n[3]; ++kv, ++at) {\n"
             "      attends[at] = source"
          << i
          << "::attends(b, h, q, kv, x, t);\n"
             "      modified[at] = source"
          << i
          << "::modified(s[at], b, h, q, kv, x, t);\n"
             "      slope[at] = source"
          << i << "::slope(s[at], b, h, q, kv, x, t);\n    }\n}\n";
    }
    out.close();
    const auto file = [&](const char* name) { return (folder_ / name).string(); };
    const std::string command =
        std::string(ATTZOO_CXX) + " -std=c++17 -O1 -ffp-contract=off -shared -fPIC -o " +
        file("sources.so") + " " + file("sources.cpp") + " 2>" + file("log");
    if (std::system(command.c_str()) == 0) library_ = dlopen(file("sources.so").c_str(), RTLD_NOW);
    std::ifstream log(file("log"));
    EXPECT_NE(library_, nullptr)
        << std::string(std::istreambuf_iterator<char>(log), {}).substr(0, 4000);
  }
  ~Library() {
    if (library_) dlclose(library_);
    std::filesystem::remove_all(folder_);
  }

  Result run(size_t i, const ModifierSource& source, const Shape& n, const torch::Tensor& s) const {
    using Run = void(const int*, const float*, bool*, float*, float*, const void*, const void*);
    auto* f = reinterpret_cast<Run*>(dlsym(library_, ("run" + std::to_string(i)).c_str()));
    std::vector<core::cuda::Number> numbers;
    for (const auto& x : source.numbers) numbers.push_back({x.integer, x.real});
    std::vector<core::cuda::Table> tables;
    for (const auto& t : source.tables) {
      core::cuda::Table table{};
      table.data = t.data_ptr();
      for (int64_t d = 0; d < t.dim(); ++d) {
        table.size[d] = static_cast<int>(t.size(d));
        table.stride[d] = t.stride(d);
      }
      tables.push_back(table);
    }
    const int size[] = {static_cast<int>(n.B), static_cast<int>(n.H), static_cast<int>(n.L),
                        static_cast<int>(n.S)};
    const auto empty = [&](torch::ScalarType type) {
      return torch::empty({n.B, n.H, n.L, n.S}, type);
    };
    Result y{empty(torch::kBool), empty(torch::kFloat32), empty(torch::kFloat32)};
    f(size, s.const_data_ptr<float>(), y.attends.data_ptr<bool>(), y.modified.data_ptr<float>(),
      y.slope.data_ptr<float>(), numbers.data(), tables.data());
    return y;
  }

 private:
  std::filesystem::path folder_;
  void* library_ = nullptr;
};

/// What a score modifier means, and its derivative, on scores of their type.
std::pair<torch::Tensor, torch::Tensor> on_tensors(const AnyScore& score, const torch::Tensor& s,
                                                   const core::Grid& g) {
  const auto x = s.detach().clone().requires_grad_();
  const auto y = score.evaluate(x, g).expand_as(x);
  auto slope = torch::zeros_like(s);
  if (y.requires_grad()) {
    const auto found = torch::autograd::grad({y.sum()}, {x}, {}, std::nullopt, false, true)[0];
    if (found.defined()) slope = found;
  }
  return {y.detach(), slope};
}

void expect_sources(const std::vector<Case>& cases) {
  std::vector<ModifierSource> sources;
  for (const auto& c : cases) sources.push_back(core::modifier_source(c.mask, c.score, c.n));
  const Library library(sources);
  if (::testing::Test::HasFailure()) return;
  for (size_t i = 0; i < cases.size(); ++i) {
    const auto& [name, mask, score, n] = cases[i];
    const core::Grid g(n, 0, n.L, torch::kCPU);
    const auto s = 3 * torch::randn({n.B, n.H, n.L, n.S});
    const auto got = library.run(i, sources[i], n, s);
    EXPECT_TRUE(torch::equal(got.attends, mask.evaluate(g).expand_as(got.attends)))
        << name << ":\n"
        << sources[i].text.substr(sources[i].text.find("struct Number"));
    const auto gold = on_tensors(score, s.to(torch::kFloat64), g), own = on_tensors(score, s, g);
    expect_within_rule(got.modified, gold.first, own.first, 2, 4, name);
    // What 1 - tanh^2 has left in double behind the last digit of a float is no slope that is
    // missed.
    const auto slope = gold.second.masked_fill(gold.second.abs() < 1e-8, 0);
    expect_within_rule(got.slope, slope, own.second, 3, 4, name + ": slope");
  }
}

TEST(CudaSource, SaysWhatNamedModifiersMean) {
  torch::manual_seed(1);
  const Shape n{2, 3, 20, 33};
  const auto ids = torch::randint(3, {2, 33}).cumsum(1).div(20, "floor");
  const auto is_global = torch::rand({2, 33}) < 0.2;
  const auto bits = torch::rand({2, 1, 20, 33}) < 0.5;
  const auto bias = torch::randn({1, 3, 20, 33});
  expect_sources({
      {"causal", causal(), {}, n},
      {"window", window(3, 5), {}, n},
      {"window of the past", window(4, 0), {}, n},
      {"dilated", dilated(3), {}, n},
      {"blocks", blocks(5), {}, n},
      {"prefix", prefix(4), {}, n},
      {"neighborhood", neighborhood({33}, {5}, {2}), {}, n},
      {"neighborhood of a grid", neighborhood({3, 11}, {3, 5}), {}, n},
      {"neighborhood of a block", neighborhood({3, 1, 11}, {3}, {2}, {true}), {}, n},
      {"documents", documents({.ids = ids}), {}, n},
      {"global tokens", global_tokens(is_global), {}, n},
      {"tensor", mask_tensor(bits), {}, n},
      {"chosen blocks", chosen_blocks(torch::rand({2, 3, 7, 5}) < 0.4, 5, 7), {}, n},
      {"chosen keys", chosen_blocks(torch::randint(-1, 20, {1, 20, 4}), 1, 1), {}, n},
      {"block mask", block_mask(window(3, 5), 20, 33, 2, 3), {}, n},
      {"all, any, none", !(causal() && window(4, 4)) || prefix(2), {}, n},
      {"alibi", {}, alibi(torch::rand({3})), n},
      {"softcap", causal(), softcap(5), n},
      {"bias", {}, bias_tensor(bias), n},
      {"relative bias", {}, relative_bias(torch::randn({8, 3})), n},
      {"decay", {}, decay(torch::rand({n.B, n.H, n.S}).neg().cumsum(2)), n},
      {"a chain", {}, softcap(4) + alibi(torch::rand({3})) + bias_tensor(bias), n},
  });
}

TEST(CudaSource, SaysWhatCallablesMean) {
  torch::manual_seed(2);
  const Shape n{2, 3, 20, 33};
  const auto whole = table(torch::randint(-3, 4, {2, 33}));
  const auto real = table(torch::randn({3, 64}));
  const int64_t width = 7;
  const double slope = 0.25;
  using L = std::pair<const char*, AnyMask>;
  std::vector<Case> cases;
  for (const auto& [name, mask] : std::vector<L>{
           {"lambda",
            mask_mod([=](auto, auto, auto q, auto kv) { return kv <= q && q - kv < width; })},
           {"division",
            mask_mod([](auto, auto, auto q, auto kv) { return (q - kv) / 3 == q % 4 - 2; })},
           {"by zero",
            mask_mod([](auto, auto h, auto q, auto kv) { return q / (kv - 5) + q % (h - 1) > 1; })},
           {"double",
            mask_mod([=](auto, auto, auto q, auto kv) { return (q - kv) * slope > 0.1 * kv; })},
           {"wraps", mask_mod([](auto, auto, auto q, auto kv) {
              return q * 4611686018427387904 * 4 + kv * 9223372036854775807 < 3;
            })},
           {"shifts", mask_mod([](auto, auto, auto q, auto kv) {
              return ((q << kv) ^ (kv >> 1)) % 3 == 0 || ((q & 5) | ~kv) < -7;
            })},
           {"truth", mask_mod([](auto, auto, auto q, auto kv) {
              return ((q > 3) & (kv > 5)) ^ ~(q == kv);
            })},
           {"counts truth",
            mask_mod([](auto, auto, auto q, auto kv) { return (q > 3) + (kv > 5) == 1; })},
           {"functions", mask_mod([](auto, auto, auto q, auto kv) {
              return min(q, 2 * kv) > max(kv - 3, 4) || floor(q * 0.3) == clamp(kv, 2, 4);
            })},
           {"assigned", mask_mod([](auto, auto, auto q, auto kv) {
              auto d = q - kv;
              d *= 2;
              d += 1;
              return relu(d) < 9 && abs(d) != 3;
            })},
           {"table", mask_mod([=](auto b, auto, auto q, auto kv) {
              return whole(b, q) / 2 == whole(b, kv) % 3;
            })},
           {"where", mask_mod([=](auto, auto, auto q, auto kv) {
              return where(q > 4, q - kv, kv) < width;
            })},
           {"aligned", mask_mod([](auto, auto, auto q, auto kv) { return kv <= q; }, aligned)},
       }) {
    cases.push_back({name, mask, {}, n});
  }
  using S = std::pair<const char*, AnyScore>;
  for (const auto& [name, score] : std::vector<S>{
           {"softcap", score_mod([](auto s, auto, auto, auto, auto) { return 20 * tanh(s / 20); })},
           {"bias", score_mod([=](auto s, auto, auto h, auto q, auto kv) {
              return s + real(h, clamp(q - kv + 31, 0, 63)) * slope;
            })},
           {"functions", score_mod([](auto s, auto, auto, auto, auto kv) {
              return exp(-abs(s)) + sigmoid(s) * sin(s) + log(s * s + 1) - cos(s) + erf(s) +
                     sqrt(abs(s) + 1) + exp2(min(s, 2)) + log2(s * s + 2) * kv;
            })},
           {"quotient", score_mod([](auto s, auto, auto, auto q, auto kv) {
              return s / (kv - q + 0.5) + (q + 1) / (s * s + 1);
            })},
           {"powers", score_mod([](auto s, auto, auto, auto, auto) {
              return pow(abs(s), 1.5) + pow(s, 2) + pow(1.5, s);
            })},
           {"where", score_mod([](auto s, auto, auto, auto q, auto kv) {
              return where(q > kv, relu(s), clamp(s, -1, 1.5));
            })},
           {"no score",
            score_mod([](auto, auto, auto, auto q, auto kv) { return 0.5 * (q - kv); })},
           {"assigned", score_mod([](auto s, auto, auto, auto q, auto kv) {
              auto x = s;
              x *= 2;
              x -= 0.125 * abs(q - kv);
              return x;
            })},
           {"nothing of a score", score_mod([](auto s, auto, auto, auto, auto kv) {
              return 1 / (s * 0.0 + 2) - 3 / (0.0 * s + kv + 1);
            })},
           {"max of equals",
            score_mod([](auto s, auto, auto, auto, auto) { return max(s, s) + min(s, 2 * s); })},
       }) {
    cases.push_back({name, {}, score, n});
  }
  expect_sources(cases);
}

TEST(CudaSource, SaysWhatRandomCallablesMean) {
  torch::manual_seed(3);
  const Shape n{2, 2, 9, 11};
  std::vector<Case> cases;
  for (unsigned seed = 0; seed < 200; ++seed) {
    RandomTrees trees(seed);
    const auto truth = trees.truth(1 + static_cast<int>(seed % 4));
    const auto score = trees.score(1 + static_cast<int>(seed % 3));
    cases.push_back({"seed " + std::to_string(seed), RandomMask{truth}, RandomScore{score}, n});
  }
  expect_sources(cases);
}

TEST(CudaSource, IsOneForAllNumbersOfASize) {
  const Shape n{1, 1, 64, 64};
  const auto text = [&](int64_t width, double cap) {
    const auto mask =
        mask_mod([=](auto, auto, auto q, auto kv) { return q - kv < width && q % 4 != 1; });
    const auto score =
        score_mod([=](auto s, auto, auto, auto, auto) { return cap * tanh(s / cap); });
    return core::modifier_source(mask, score, n).text;
  };
  EXPECT_EQ(text(100, 30), text(17, 50));
  EXPECT_NE(text(100, 30), text(int64_t{1} << 40, 30));
}

struct Own {
  static constexpr bool is_mask = true;
  torch::Tensor evaluate(const core::Grid& g) const { return g.q >= g.kv; }
};

TEST(CudaSource, NamesWhatHasNoForm) {
  expect_error([] { core::modifier_source(Own{}, {}, {1, 1, 4, 4}); }, {"mask", "symbolic form"});
}

// A product in double for each pair is dear on a GPU, and a score is rounded to float anyway.
TEST(CudaSource, ComputesInFloatWhatScoresAloneTake) {
  const auto decays = table(torch::rand({3}));
  const auto text = core::modifier_source(
                        mask_mod([](auto, auto, auto q, auto kv) { return 0.5 * (q - kv) < 9; }),
                        score_mod([=](auto s, auto, auto h, auto q, auto kv) {
                          return s - 0.01 * abs(q - kv) + decays(h) * (q - kv) + (q - kv) / 3.0;
                        }),
                        {1, 3, 20, 33})
                        .text;
  const auto attends = text.substr(text.find("attends(")),
             modified = text.substr(text.find("modified("));
  EXPECT_NE(attends.substr(0, attends.find("}")).find("double"), std::string::npos) << attends;
  EXPECT_EQ(modified.substr(0, modified.find("}")).find("double"), std::string::npos) << modified;
}

}  // namespace
}  // namespace attzoo::testing::cuda_source_test
