// The fused kernel against the eager reference, value and every gradient, over random problems.

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <attzoo/core/attention/dispatch.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>

#include <random>

#include "support/error_rule.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"
#include "support/peak_memory.hpp"

namespace attzoo::testing::fused_test {
namespace {

constexpr auto kDouble = torch::kFloat64;

/// Draws problems; one seed for all, printed by every failure.
class Draw {
 public:
  explicit Draw(unsigned seed) : random_(seed) { torch::manual_seed(seed); }
  int64_t integer(int64_t from, int64_t to) {
    return std::uniform_int_distribution<int64_t>(from, to)(random_);
  }
  bool chance(double p) { return std::bernoulli_distribution(p)(random_); }

  /// [B, H, N, D] with one of the layouts that users have.
  torch::Tensor strided(int64_t B, int64_t H, int64_t N, int64_t D, torch::ScalarType dtype) {
    const auto make = [&](std::vector<int64_t> sizes) { return torch::randn(sizes).to(dtype); };
    switch (integer(0, 4)) {
      case 0:
        return make({B, N, H, D}).transpose(1, 2);  // as modules have it
      case 1:
        return make({B, N, H, 3 * D}).transpose(1, 2).slice(3, D, 2 * D);  // packed qkv
      case 2:
        return make({B, H, N, 2 * D}).slice(3, 1, 2 * D, 2);  // last stride 2
      case 3:
        return make({1, 1, N, D}).expand({B, H, N, D});  // strides 0
      default:
        return make({B, H, N, D});
    }
  }

 private:
  std::mt19937 random_;
};

struct Tensors3 {
  torch::Tensor q, k, v;
};

void check_case(Draw& draw, const std::string& what, const core::Shape& n, int64_t group,
                const core::AnyMask& mask, const core::AnyScore& score) {
  const int64_t D = draw.integer(1, 40), Dv = draw.chance(0.5) ? D : draw.integer(1, 40);
  const int64_t kind = draw.integer(0, 9);
  const auto dtype = kind < 6   ? torch::kFloat64
                     : kind < 8 ? torch::kFloat32
                     : kind < 9 ? torch::kBFloat16
                                : torch::kHalf;
  const core::Dropout dropout{draw.chance(0.25) ? 0.3 : 0.0, 77};
  const core::Rule rule{mask, score, 1 / std::sqrt(static_cast<double>(D)), dropout};
  Tensors3 t{draw.strided(n.B, n.H, n.L, D, dtype), draw.strided(n.B, n.H / group, n.S, D, dtype),
             draw.strided(n.B, n.H / group, n.S, Dv, dtype)};
  const auto leaves = [&](torch::ScalarType as) {
    const auto leaf = [&](const torch::Tensor& x) { return x.detach().to(as).requires_grad_(); };
    return std::vector<torch::Tensor>{leaf(t.q), leaf(t.k), leaf(t.v)};
  };
  // Results: output, lse, dq, dk, dv.
  torch::Tensor cotangent, lse_cotangent;
  const auto differentiate = [&](const core::OutputAndLse& r, const std::vector<torch::Tensor>& x) {
    if (!cotangent.defined()) {
      cotangent = torch::randn_like(r.output);
      lse_cotangent = torch::randn_like(r.lse);
    }
    const auto seen = r.lse.detach().isfinite();
    const auto grads = torch::autograd::grad(
        {r.output, r.lse.masked_fill(seen.logical_not(), 0.0)}, x,
        {cotangent.to(r.output.scalar_type()), lse_cotangent.to(r.lse.scalar_type())});
    return std::vector<torch::Tensor>{r.output, r.lse, grads[0], grads[1], grads[2]};
  };
  const auto mine = leaves(dtype);
  ASSERT_EQ(mine[0].strides(), t.q.strides());
  const auto got = differentiate(core::dispatch({mine[0], mine[1], mine[2]}, rule), mine);
  const auto wide = leaves(kDouble);
  const auto gold = differentiate(core::reference({wide[0], wide[1], wide[2]}, rule), wide);
  const auto same = leaves(dtype);
  const auto plain = differentiate(core::reference({same[0], same[1], same[2]}, rule), same);
  const char* names[] = {"output", "lse", "dq", "dk", "dv"};
  for (size_t i = 0; i < 5; ++i) {
    std::ostringstream label;
    label << what << " " << names[i] << " " << dtype << " B" << n.B << " H" << n.H << "/" << group
          << " L" << n.L << " S" << n.S << " D" << D << " Dv" << Dv << " p" << dropout.p;
    if (dtype == kDouble) {  // the reference rounds as often as the kernel does
      const auto infinite = gold[i].isinf();
      EXPECT_TRUE(torch::equal(got[i].isinf(), infinite)) << label.str();
      EXPECT_TRUE(torch::allclose(got[i].masked_fill(infinite, 0.0),
                                  gold[i].masked_fill(infinite, 0.0), 1e-10, 1e-12))
          << label.str();
    } else {
      expect_within_rule(got[i], gold[i], plain[i], i < 2 ? 2 : 3, std::max(n.S, D), label.str());
    }
  }
}

/// `cases` random problems for modifiers that depend on the problem's shape.
template <class MakeMask, class MakeScore>
void check_many(const char* what, int cases, MakeMask make_mask, MakeScore make_score,
                bool fewer_keys = true) {
  const unsigned seed = 20250101;
  SCOPED_TRACE(std::string(what) + ", seed " + std::to_string(seed));
  Draw draw(seed);
  for (int i = 0; i < cases && !::testing::Test::HasFailure(); ++i) {
    const int64_t group = draw.integer(1, 3);
    core::Shape n{draw.integer(1, 2), group * draw.integer(1, 2), draw.integer(1, 80), 0};
    n.S = draw.chance(0.5) ? n.L : draw.integer(fewer_keys ? 1 : n.L, fewer_keys ? 90 : n.L + 40);
    check_case(draw, what, n, group, make_mask(draw, n), make_score(draw, n));
  }
}

const auto kNoScore = [](Draw&, const core::Shape&) { return core::IdentityScore{}; };

TEST(Fused, Full) {
  check_many(
      "full", 260, [](Draw&, const auto&) { return full(); }, kNoScore);
}

TEST(Fused, CausalWindow) {
  check_many(
      "causal window, softcap and alibi", 260,
      [](Draw& d, const auto&) {
        return causal(d.chance(0.5) ? CausalAlignment::kTopLeft : CausalAlignment::kBottomRight) &&
               window(d.integer(0, 60), d.chance(0.3) ? kUnbounded : d.integer(0, 20));
      },
      [](Draw&, const auto& n) { return softcap(1.5) + alibi(torch::rand({n.H})); });
}

TEST(Fused, DilatedWindow) {
  check_many(
      "dilated window", 260,
      [](Draw& d, const auto&) {
        return dilated(d.integer(1, 9)) && window(d.integer(0, 90), d.integer(0, 90));
      },
      kNoScore);
}

TEST(Fused, BlocksOrPrefix) {
  check_many(
      "blocks or prefix, callable", 260,
      [](Draw& d, const auto&) { return blocks(d.integer(1, 70)) || prefix(d.integer(0, 20)); },
      [](Draw&, const auto&) {
        return score_mod([](auto s, auto, auto h, auto q, auto kv) {
          using std::tanh;
          return 2.0 * tanh(s / 2.0) - 0.01 * (h + 1) * (q - kv);
        });
      });
}

TEST(Fused, NotWindowOrCallable) {
  check_many(
      "not", 260,
      [](Draw& d, const auto&) {
        return !window(d.integer(0, 9), d.integer(0, 9)) &&
               mask_mod([](auto b, auto h, auto q, auto kv) { return (q + b + h - kv) % 3 != 0; });
      },
      kNoScore);
}

TEST(Fused, MaskTensorsAndBias) {
  check_many(
      "mask tensor, padding, bias", 260,
      [](Draw& d, const auto& n) {
        const auto size = [&](int64_t s) { return d.chance(0.5) ? s : 1; };
        const auto mask = torch::rand({size(n.B), size(n.H), size(n.L), size(n.S)}) < 0.7;
        return mask_tensor(mask) && mask_tensor(torch::rand({n.B, 1, 1, n.S}) < 0.8);
      },
      [](Draw& d, const auto& n) {
        const auto size = [&](int64_t s) { return d.chance(0.5) ? s : 1; };
        return bias_tensor(torch::randn({size(n.B), size(n.H), size(n.L), size(n.S)}));
      });
}

TEST(Fused, GlobalTokens) {
  check_many(
      "global tokens", 260,
      [](Draw& d, const auto& n) {
        const double share = d.chance(0.5) ? 0.05 : 0.5;
        return (window(d.integer(0, 9), d.integer(0, 9)) ||
                global_tokens(torch::rand({n.B, n.S}) < share)) &&
               causal();
      },
      kNoScore, /*fewer_keys=*/false);
}

TEST(Fused, DocumentsAndBlockMask) {
  check_many(
      "documents", 130,
      [](Draw& d, const auto& n) {
        const int64_t cut = d.integer(0, n.S);
        return documents(torch::tensor({int64_t{0}, cut, std::max(cut, n.S - 3), n.S}));
      },
      kNoScore, /*fewer_keys=*/false);
  check_many(
      "block mask", 130,
      [](Draw& d, const auto& n) {
        const int64_t width = d.integer(1, 40);
        const auto f = [width](auto, auto, auto q, auto kv) {
          return (q / width + kv / width) % 3 == 0 && kv <= q + 20;
        };
        return block_mask(mask_mod(f), n.L, n.S);
      },
      kNoScore);
}

TEST(Fused, ChosenBlocks) {
  check_many(
      "chosen blocks", 260,
      [](Draw& d, const auto& n) -> core::AnyMask {
        const int64_t query = d.integer(1, 40), key = d.integer(1, 40);
        const int64_t rows = (n.S - 1) / query + 1, columns = (n.S - 1) / key + 1,
                      heads = d.chance(0.5)                   ? n.H
                              : d.chance(0.5) && n.H % 2 == 0 ? 2
                                                              : 1,
                      batches = d.chance(0.5) ? n.B : 1;
        const int64_t first = d.chance(0.5) ? (n.S - n.L) / query : 0;
        const auto chosen =
            d.chance(0.5) ? torch::rand({batches, heads, rows, columns}) < 0.3
                          : torch::randint(-1, columns, {batches, heads, rows, d.integer(0, 4)});
        const auto mask = chosen_blocks(chosen.slice(2, first), query, key);
        return d.chance(0.3) ? mask && causal() : d.chance(0.3) ? mask || window(2, 1) : mask;
      },
      kNoScore, /*fewer_keys=*/false);
}

/// At most 16 queries against a cache of keys, in a way of their own.
TEST(Fused, FewQueries) {
  Draw draw(11);
  SCOPED_TRACE("few queries, seed 11");
  for (int i = 0; i < 200 && !::testing::Test::HasFailure(); ++i) {
    const int64_t group = draw.integer(1, 6);
    const core::Shape n{draw.integer(1, 2), group * draw.integer(1, 2), draw.integer(1, 16),
                        draw.integer(40, 600)};
    const auto near = window(draw.integer(20, 400), draw.integer(0, 9)) && causal();
    const auto padding = mask_tensor(torch::rand({n.B, 1, 1, n.S}) < 0.7);
    const core::AnyMask masks[] = {
        full(),  causal(),
        near,    dilated(draw.integer(1, 5)),
        padding, near || prefix(7),
        !near,   chosen_blocks(torch::rand({n.L, (n.S - 1) / 9 + 1}) < 0.2, 1, 9)};
    const core::AnyScore scores[] = {
        core::IdentityScore{}, softcap(1.5) + alibi(0.02 * torch::rand({n.H})),
        bias_tensor(torch::randn({1, n.H, n.L, n.S})), relative_bias(torch::randn({32, n.H}))};
    check_case(draw, "few queries", n, group, masks[draw.integer(0, 7)],
               scores[draw.integer(0, 3)]);
  }
}

TEST(Fused, NotOfNotIsTheMask) {
  const auto x = torch::randn({1, 1, 20, 4});
  EXPECT_TRUE(
      attention(x, x, x, !!window(3, 1)).output.equal(attention(x, x, x, window(3, 1)).output));
  EXPECT_FALSE(
      attention(x, x, x, !window(3, 1)).output.equal(attention(x, x, x, window(3, 1)).output));
}

// ---- gradients of what modifiers hold -----------------------------------------------------------

TEST(Fused, LearnableTensors) {
  torch::manual_seed(3);
  const auto leaf = [](std::vector<int64_t> sizes) {
    return torch::randn(sizes, kDouble).requires_grad_();
  };
  const auto q = leaf({2, 4, 7, 5}), k = leaf({2, 2, 9, 5}), v = leaf({2, 2, 9, 3});
  const auto slopes = leaf({4}), table = leaf({8, 4}), logits = leaf({4}),
             falling = leaf({2, 4, 9}), of_all = leaf({1, 4, 9});
  const auto cotangent = torch::randn({2, 4, 7, 3}, kDouble);
  const auto check = [&](const char* what, auto mask, auto make_score, Tensors tensors) {
    const auto f = [&] {
      const auto r = attention(q, k, v, mask, make_score(), {.dropout = 0.2, .seed = 4});
      return (r.output * cotangent).sum() + r.lse.nan_to_num(0, 0, 0).sin().sum();
    };
    tensors.push_back(q);
    gradcheck(f, tensors, what);
    gradgradcheck(f, {tensors[0]}, what);
  };
  check("alibi", causal(), [&] { return alibi(slopes); }, {slopes});
  check("relative bias", full(), [&] { return relative_bias(table); }, {table});
  check("one-sided relative bias", causal(),
        [&] { return relative_bias(table, {.bidirectional = false, .max_distance = 20}); },
        {table});
  check("sink", causal(), [&] { return sink(logits) + softcap(2.0); }, {logits});
  check("decay", causal(), [&] { return decay(falling); }, {falling});
  check("decay in both directions", full(), [&] { return decay(of_all) + softcap(1.5); }, {of_all});
  check("chain", window(3, 1), [&] { return alibi(slopes) + softcap(1.5) + relative_bias(table); },
        {slopes, table});
  for (const auto& sizes : std::vector<std::vector<int64_t>>{
           {7, 9}, {1, 9}, {7, 1}, {2, 7, 9}, {2, 4, 7, 9}, {1, 4, 1, 9}, {2, 1, 7, 1}, {1, 1}}) {
    const auto bias = leaf(sizes);
    check("bias", causal(), [&] { return softcap(3.0) + bias_tensor(bias); }, {bias});
  }
}

TEST(Fused, SinkIsALogitWithoutAValue) {
  const auto q = torch::randn({1, 4, 20, 8}, kDouble), logits = torch::randn({4}, kDouble);
  const auto r = attention(q, q, q, causal(), sink(logits));
  const auto s = (torch::matmul(q, q.transpose(-2, -1)) / std::sqrt(8.0))
                     .masked_fill(torch::ones({20, 20}, torch::kBool).triu(1), -INFINITY);
  const auto all = torch::cat({s, logits.view({1, 4, 1, 1}).expand({1, 4, 20, 1})}, -1);
  const auto weights = all.softmax(-1).slice(-1, 0, 20);
  EXPECT_TRUE(torch::allclose(r.weights, weights));
  EXPECT_TRUE(torch::allclose(r.output, torch::matmul(weights, q)));
  EXPECT_TRUE(torch::allclose(r.lse, all.logsumexp(-1)));
}

TEST(Fused, NoticesChangesInPlace) {
  const auto q = torch::randn({1, 1, 4, 4}).requires_grad_();
  auto bias = torch::randn({4, 4});
  const auto r = attention(q, q, q, full(), bias_tensor(bias.requires_grad_()));
  {
    torch::NoGradGuard no_grad;
    bias.add_(1);
  }
  EXPECT_THROW(r.output.sum().backward(), c10::Error);
}

// ---- edges --------------------------------------------------------------------------------------

TEST(Fused, ExtremeScores) {
  const auto q = torch::full({1, 1, 40, 4}, 133120.0).to(torch::kBFloat16);
  EXPECT_TRUE(attention(q, q, q).output.isfinite().all().item<bool>());
  const auto h = torch::full({1, 1, 40, 64}, 200.0).to(torch::kHalf);  // scores above 65504
  EXPECT_TRUE(attention(h, h, h / 200).output.isfinite().all().item<bool>());
  // The smallest finite number is a score like any other: a row of them is uniform.
  const auto lowest = torch::full({8, 8}, -std::numeric_limits<float>::max());
  const auto x = torch::zeros({1, 1, 8, 4}), v = torch::randn({1, 1, 8, 4});
  const auto r = attention(x, x, v, full(), bias_tensor(lowest));
  EXPECT_TRUE(torch::allclose(r.output, v.mean(2, true).expand({1, 1, 8, 4})));
  // NaN is not hidden.
  auto bad = torch::randn({1, 1, 20, 4});
  bad[0][0][3][0] = std::nan("");
  const auto out = attention(bad, v, v).output;
  EXPECT_TRUE(out[0][0][3].isnan().all().item<bool>());
  EXPECT_TRUE(out[0][0][4].isfinite().all().item<bool>());
}

TEST(Fused, LeadingTilesWithoutAKey) {
  const auto draw = [] { return torch::randn({1, 2, 600, 16}, kDouble); };
  const auto q = draw(), k = draw(), v = draw();
  const auto band = mask_mod([](auto, auto, auto q, auto kv) { return q - kv < 5 && kv - q < 5; });
  const auto a = attention(q, k, v, band), b = attention(q, k, v, window(4, 4));
  EXPECT_TRUE(torch::allclose(a.output, b.output, 1e-12, 1e-14));
  EXPECT_TRUE(torch::allclose(a.lse, b.lse, 1e-12, 1e-14));
}

TEST(Fused, SameBitsOnAnyNumberOfThreads) {
  const int before = at::get_num_threads();
  const auto leaf = [] { return torch::randn({1, 2, 700, 32}).requires_grad_(); };
  const auto q = leaf(), k = leaf(), v = leaf(), bias = torch::randn({700}).view({1, 700});
  const auto slopes = torch::rand({2}).requires_grad_();
  const auto run = [&](int threads) {
    at::set_num_threads(threads);
    const auto r =
        attention(q, k, v, causal() && window(100, 0), alibi(slopes), {.dropout = 0.1, .seed = 3});
    auto all = torch::autograd::grad({r.output.sum()}, {q, k, v, slopes});
    all.push_back(r.output);
    return all;
  };
  const auto want = run(1);
  for (int repeat = 0; repeat < 50; ++repeat) {
    const auto got = run(repeat % 3 == 0 ? 1 : repeat % 3 == 1 ? 2 : 8);
    for (size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(torch::equal(got[i], want[i])) << i;
  }
  at::set_num_threads(before);
}

/// Peak bytes of a forward and a backward pass, inputs not counted, per token.
template <class Mask>
double bytes_per_token(const Mask& mask, int64_t n) {
  const auto leaf = [n] { return torch::randn({1, 2, n, 16}).requires_grad_(); };
  const auto q = leaf(), k = leaf(), v = leaf();
  PeakMemory memory;
  attention(q, k, v, mask).output.sum().backward();
  return static_cast<double>(memory.peak()) / static_cast<double>(n);
}

TEST(Fused, MemoryIsLinear) {
  for (const int64_t n : {2048, 8192}) {
    EXPECT_LT(bytes_per_token(full(), n), 1.1 * bytes_per_token(full(), 1024)) << n;
    EXPECT_LT(bytes_per_token(causal(), n), 1.1 * bytes_per_token(causal(), 1024)) << n;
  }
  for (const int64_t n : {8192, 32768}) {
    EXPECT_LT(bytes_per_token(window(64, 64), n), 1.1 * bytes_per_token(window(64, 64), 1024));
    const auto sparse = dilated(16) && window(512, 512);
    EXPECT_LT(bytes_per_token(sparse, n), 1.1 * bytes_per_token(sparse, 1024)) << n;
  }
}

TEST(Fused, ModifierErrors) {
  expect_error([] { relative_bias(torch::randn({3, 4})); }, {"relative_bias", "[3, 4]"});
  expect_error(
      [] {
        relative_bias(torch::randn({32, 4}), {.max_distance = 8});
      },
      {"relative_bias", "max_distance", "8"});
  expect_error([] { sink(torch::randn({3, 4})); }, {"sink", "[3, 4]"});
  expect_error([] { block_mask(causal(), 0, 5); }, {"block_mask", "L=0"});
  const auto q = torch::randn({1, 2, 6, 4});
  expect_error([&] { attention(q, q, q, block_mask(causal(), 6, 7)); }, {"block_mask", "S=7", "6"});
  expect_error([&] { attention(q, q, q, full(), sink(torch::randn({3}))); }, {"sink", "H=2", "3"});
  expect_error(
      [&] {
        attention(q, q, q, full(), relative_bias(torch::randn({8, 3})));
      },
      {"relative_bias", "[8, 3]"});
  expect_error(
      [&] { attention(q, q, q, full(), sink(torch::randn({2})) + sink(torch::randn({2}))); },
      {"sink", "twice"});
}

}  // namespace
}  // namespace attzoo::testing::fused_test
