// How much of the error that judge.hpp allows each mechanism makes: random problems, forward and
// backward, compared with the same module by definition in float64. In float64 1e-10 of a result's
// largest number is allowed.
//
//     error_table [PROBLEMS [SEED]]     of each mechanism and type; 100, a random one
//
// Prints CSV. Fails if an error is larger than what is allowed.

#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/debug.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "support/every_mechanism.hpp"
#include "support/judge.hpp"

namespace attzoo::testing {
namespace {

constexpr int64_t kLongest = 128;  // tokens

struct Problem {
  Size size;
  int64_t B, L;
  uint64_t seed;
  bool causal, padded;
};

Problem random_problem(std::mt19937_64& random) {
  const auto up_to = [&](int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random);
  };
  Problem p;
  p.size.heads = 2 * up_to(1, 2);
  p.size.width = p.size.heads * 4 * up_to(1, 8);
  p.size.span = 8 * up_to(1, 4);
  p.size.longest = kLongest;
  p.size.dilation = up_to(1, 5);
  p.size.hashes = up_to(1, 2);
  p.size.overlap = up_to(0, 1) == 1;
  p.B = up_to(1, 2);
  p.L = up_to(0, 1) == 1 ? up_to(1, kLongest) : up_to(1, 20);
  p.seed = random();
  p.causal = up_to(0, 1) == 1;
  p.padded = up_to(0, 1) == 1;
  return p;
}

constexpr const char* kQuantities[] = {"output", "gradient of x", "gradient of the parameters"};

/// The output, the gradient of x, and that of the parameters, as one vector.
std::array<torch::Tensor, 3> results(const AnyAttention& attend, const torch::Tensor& numbers,
                                     const AttentionInputs& inputs, const torch::Tensor& cotangent,
                                     bool by_definition) {
  std::optional<EagerReferenceGuard> guard;
  if (by_definition) guard.emplace();
  auto learn = attend->parameters();
  const auto x = numbers.detach().clone().requires_grad_();
  learn.push_back(x);
  const auto output = attend(x, inputs).output;
  auto grads = torch::autograd::grad({output}, learn, {cotangent.to(output.scalar_type())},
                                     std::nullopt, false, /*allow_unused=*/true);
  for (size_t i = 0; i < grads.size(); ++i) {
    grads[i] =
        grads[i].defined() ? grads[i].flatten() : torch::zeros({learn[i].numel()}, x.options());
  }
  const auto of_x = grads.back();
  grads.pop_back();
  return {output.detach(), of_x, torch::cat(grads)};
}

/// For each mechanism and type the errors of all problems together, each result in units of its
/// largest number: a small problem alone may be exact by luck.
class Table {
 public:
  /// A module of this name in a type, and all that it computes for a problem.
  void add(const Listed& listed, torch::ScalarType dtype, const Problem& p) {
    torch::manual_seed(p.seed);
    auto low = listed.make();
    for (auto& parameter : low->parameters()) {
      const torch::NoGradGuard no_grad;
      parameter.add_(0.1 * torch::randn_like(parameter));
    }
    low->eval();
    low->to(dtype);
    auto gold = low.clone();
    gold->to(torch::kFloat64);

    const auto takes = low.takes();
    AttentionInputs inputs;
    inputs.causal = takes.causal && (p.causal || !takes.later);
    const auto x = torch::randn({p.B, p.L, low.input_dim()}).to(dtype);
    auto cotangent = torch::randn({p.B, p.L, low.d_model()}).to(dtype);
    if (p.padded) {  // as a loss leaves such tokens alone
      const auto real = torch::arange(p.L).unsqueeze(0) < torch::randint(1, p.L + 1, {p.B, 1});
      inputs.key_padding_mask = real;
      cotangent = cotangent * real.unsqueeze(-1);
    }
    const auto got = results(low, x, inputs, cotangent, false);
    const auto plain = results(low, x, inputs, cotangent, true);
    const auto exact = results(gold, x.to(torch::kFloat64), inputs, cotangent, true);
    auto& quantities = quantities_[{listed.name, dtype}];
    for (size_t i = 0; i < got.size(); ++i) {
      const double largest = exact[i].abs().max().item<double>();
      quantities[i].add(got[i], exact[i], plain[i], largest > 0 ? largest : 1);
    }
    ++cases_;
  }

  /// Whether all are within the rule.
  bool print() const {
    bool right = cases_ > 0;
    std::printf("mechanism,dtype,quantity,error / allowed error\n");
    for (const auto& [key, quantities] : quantities_) {
      for (size_t i = 0; i < 3; ++i) {
        auto verdict = quantities[i].judge(key.second, i == 0 ? 2 : 3, kLongest);
        if (key.second == torch::kFloat64) {  // nothing more exact is there to compare with
          constexpr double kAllowed = 1e-10;
          verdict = {quantities[i].broken, quantities[i].error.largest / kAllowed};
          if (!(verdict.used <= 1)) verdict.broken += " differs";
        }
        std::printf("%s,%s,%s,%.3f\n", key.first.c_str(), c10::toString(key.second), kQuantities[i],
                    verdict.used);
        if (verdict.broken.empty()) continue;
        right = false;
        std::fprintf(stderr, "%s, %s, %s: %s\n", key.first.c_str(), c10::toString(key.second),
                     kQuantities[i], verdict.broken.c_str());
      }
    }
    std::fprintf(stderr, "%ld problems, forward and backward\n", static_cast<long>(cases_));
    return right;
  }

 private:
  std::map<std::pair<std::string, torch::ScalarType>, std::array<Errors, 3>> quantities_;
  int64_t cases_ = 0;
};

bool run(int64_t problems, uint64_t seed) {
  std::fprintf(stderr, "seed %lu\n", static_cast<unsigned long>(seed));
  std::mt19937_64 random(seed);
  Table table;
  for (int64_t i = 0; i < problems; ++i) {
    for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
      const auto p = random_problem(random);
      for (const auto& listed : every_mechanism(p.size)) table.add(listed, dtype, p);
    }
  }
  return table.print();
}

}  // namespace
}  // namespace attzoo::testing

int main(int argc, char** argv) {
  return attzoo::testing::run(
             argc > 1 ? std::atol(argv[1]) : 100,
             argc > 2 ? std::strtoull(argv[2], nullptr, 10) : std::random_device{}())
             ? 0
             : 1;
}
