// Faults that are planted into the text of the kernels: each must be noticed, by a wrong result or
// by what the interpreter forbids.

#include <cstdio>
#include <map>

#include "cuda/cuda_case.hpp"

namespace attzoo::testing {
namespace {

using CudaMutants = CudaKernels;

/// Problems that use different parts of the kernels.
enum Kind { kLong, kSplit, kSpoiled, kSplitSpoiled };

struct Mutant {
  Kind kind;
  const char *from, *to;
};

/// A score modifier for each mutant, so that none gets kernels that were compiled before; all of
/// them change nothing.
AnyScore unlike(int mutant) {
  return score_mod([=](auto s, auto...) {
    auto x = s + 0.0;
    for (int bit = 1; bit < 64; bit *= 2) x = mutant & bit ? x + 0.0 : x - 0.0;
    return x;
  });
}

Case problem(Kind kind, int mutant) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const bool split = kind == kSplit || kind == kSplitSpoiled;
  Case c{.name = "mutant", .dtype = kF16, .H = 2, .Hkv = 1, .D = 24, .E = 48};
  c.B = kind == kLong ? 2 : 1;
  c.L = kind == kLong ? 170 : split ? 3 : 250;
  c.S = kind == kLong ? 310 : split ? 1090 : 150;
  c.options = {.dropout = kind == kLong ? 0.2 : 0.0, .seed = 9};
  c.make = [=](Setting& at) {
    const auto entries = table(at.learn_wide(torch::ones({50})));
    const auto mask = mask_mod([](auto b, auto h, auto q, auto kv) {
      return q - kv < 200 - 20 * h && kv - q < 100 + 50 * b;
    });
    const double growth = split ? 0.0 : 0.04;  // of scores, so that sums are to shrink
    const auto score = score_mod([=](auto s, auto, auto, auto q, auto kv) {
      return s * entries(abs(q - kv) % 50) + growth * kv;
    });
    const auto hole = mask_mod([](auto, auto, auto, auto kv) { return kv != 700 && kv != 149; });
    return Modifiers{split ? AnyMask(hole) : mask && hole, unlike(mutant) + score + softcap(30)};
  };
  c.spoil = [=](auto& q, auto& k, auto& v) {
    if (kind == kSplitSpoiled) v.slice(2, 700, 701).fill_(kInf);
    if (kind != kSpoiled) return;
    v.slice(2, 10, 11).fill_(kInf);
    k.slice(2, 149, 150).fill_(kInf - kInf);
    q.slice(2, 3, 4).fill_(kInf - kInf);
  };
  return c;
}

/// How far a result is from the exact one, as a part of its largest number.
double error(const torch::Tensor& got, const torch::Tensor& gold) {
  const auto finite = torch::isfinite(gold), others = finite.logical_not();
  if (!torch::equal(torch::isfinite(got), finite)) return 1e9;
  const auto most = [&](const torch::Tensor& t) {
    return t.masked_fill(others, 0).abs().max().item<double>();
  };
  return most(got.to(torch::kFloat64) - gold) / most(gold);
}

/// What the interpreter complains of, or an error that is too large: of the forward pass alone, and
/// if it has none, of both.
std::string fault(Kind kind, int mutant) {
  static std::map<Kind, Results> golds;
  if (golds.count(kind) == 0) {
    const EagerReferenceGuard eager;
    golds[kind] = run(problem(kind, 0), torch::kFloat64, torch::kCPU);
  }
  const auto& gold = golds[kind];
  attzoo_reset();
  for (const bool with_gradients : {false, true}) {
    const auto got =
        run(problem(kind, mutant), kF16, torch::Device(torch::kCUDA, 0), with_gradients);
    if (*attzoo_error()) return attzoo_error();
    for (int i = 0; i < attzoo_launches(); ++i) {
      if (attzoo_launch(i).conflicts > 1) return "rows that lie in the same banks";
    }
    double worst = std::max(error(got.output, gold.output), error(got.lse, gold.lse));
    for (size_t i = 0; i < got.grads.size(); ++i) {
      worst = std::max(worst, error(got.grads[i], gold.grads[i]));
    }
    if (worst > 0.005) return "an error of " + std::to_string(worst);
  }
  return "";
}

TEST_F(CudaMutants, AreCaught) {
  attzoo_compile_quickly(true);
  for (const auto kind : {kLong, kSplit, kSpoiled, kSplitSpoiled})
    EXPECT_EQ(fault(kind, 0), "") << kind;
  const std::vector<Mutant> mutants{
      // copies and barriers
      {kLong, "barrier();  // K is there", "// K is there"},
      {kLong, "barrier();  // V is there", "// V is there"},
      {kLong, "    wait_for_copies<0>();\n    barrier();  // K is there",
       "    barrier();  // K is there"},
      {kLong, "    wait_for_copies<0>();\n    barrier();  // V is there",
       "    barrier();  // V is there"},
      {kLong, "barrier();  // nobody reads this stage any more",
       "// nobody reads this stage any more"},
      {kLong, "wait_for_copies<1>();", "wait_for_copies<2>();"},
      {kLong, "load(1 - stage, tiles.tile);", "load(stage, tiles.tile);"},
      {kLong, "load(1 - stage, h, tiles.tile);", "load(1 - stage, head, tiles.tile);"},
      // addresses of fragments
      {kLong, "a.at(p, row + l % 16, 2 * k + l / 16)", "a.at(p, row + l % 16, 2 * k)"},
      {kLong, "n * 16 + l % 8 + l / 16 * 8, 2 * k + l / 8 % 2", "n * 16 + l % 16, 2 * k + l / 16"},
      {kLong, "b.at(j, k * 16 + l % 16, 2 * d + l / 16)",
       "b.at(j, k * 16 + l % 16, 2 * d + 1 - l / 16)"},
      {kLong, "p.of[2 * k + i / 2] + i % 2 * 2", "p.of[2 * k + i % 2] + i / 2 * 2"},
      {kLong, "return data + ((part * kRows + row) * (kFeatures / 8) + permuted(row, chunk)) * 16;",
       "return data + ((part * kRows + row) * (kFeatures / 8) + permuted(row & ~1, chunk)) * 16;"},
      // ends
      {kSplit, "tiles.asks || key_of(tile, kColumns - 1) >= p.S", "tiles.asks"},
      {kSplit, "return at.q < p.L && at.kv < p.S && attends", "return at.q < p.L && attends"},
      {kLong, "chunk * 8 < features", "chunk * 8 <= features"},
      // the softmax
      {kLong, "o.of[d][2 * r] *= shrink;", ";"},
      {kLong, "sum[r] *= shrink;", ";"},
      {kLong, "top[r] = fmaxf(top[r], shuffle_xor(top[r], 2));", ";"},
      {kLong, "sum[r] += shuffle_xor(sum[r], 2);", ";"},
      {kLong, "most[r] == -INFINITE ? 0 : most[r] * to_powers",
       "most[r] == -INFINITE ? 0 : most[r]"},
      // gradients
      {kLong, "const bool asks = tiles.asks;  // queries", "const bool asks = false;  // queries"},
      {kLong, "weight * (of_weight * kept - delta)", "weight * of_weight * kept"},
      {kLong, "return {weight * kept, weight", "return {weight, weight"},
      {kLong, "grad * slope(product * p.scale", "grad * slope(product"},
      {kLong, "while (!tiles.left() && ++h < last_head)", "while (false && ++h < last_head)"},
      {kLong, "delta[r] = sums[r] - ", "delta[r] = 0 * sums[r] - "},
      {kLong, "left &= ~ballot(same);", "left = 0;"},
      // dropout, parts, the schedule, exact rows
      {kLong, "x *= 0x46ca68b5u;", "x *= 0x46ca68b7u;"},
      {kLong, "= dropout_key(p, b, h, q);\n  };", "= dropout_key(p, b, h, q + 1);\n  };"},
      {kSplit, "for (int i = 0; i < p.parts; ++i) {", "for (int i = 1; i < p.parts; ++i) {"},
      {kSplit, "sum += share * p.part_sum[at];", "sum += p.part_sum[at];"},
      {kLong, "if (++tile < end) return;", "if (++tile <= end) return;"},
      {kLong, "(b * s.by_batch + h * s.by_head) * s.count", "(h * s.by_head) * s.count"},
      {kSpoiled, "if (kSplit || is_finite(o, factor)) return;", "return;"},
      {kSplitSpoiled, "if (any_of_warp(!finite)) return attend_exactly",
       "if (false) return attend_exactly"},
      {kSpoiled, "if (is_finite(dq, factor)) return;", "return;"},
      {kSpoiled, "if (is_finite(dk, scale) && is_finite(dv, one)) return;", "return;"},
  };
  int caught = 0;
  for (size_t i = 0; i < mutants.size(); ++i) {
    attzoo_mutate(mutants[i].from, mutants[i].to);
    const auto found = fault(mutants[i].kind, static_cast<int>(i) + 1);
    set_cuda_jit(true);
    caught += !found.empty();
    EXPECT_GT(attzoo_mutations(), 0) << "not in the text: " << mutants[i].from;
    std::printf("%s -> %s: %s\n", mutants[i].from, mutants[i].to,
                found.empty() ? "SURVIVES" : found.substr(0, 110).c_str());
    std::fflush(stdout);
  }
  attzoo_mutate("", "");
  std::printf("%d of %zu mutants are caught\n", caught, mutants.size());
  EXPECT_EQ(caught, static_cast<int>(mutants.size()));
}

}  // namespace
}  // namespace attzoo::testing
