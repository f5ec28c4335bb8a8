#include <gtest/gtest.h>
#include <torch/types.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/mask_tensors.hpp>
#include <attzoo/functional/modifiers.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing::callables_test {
namespace {

/// What a bound mask says that queries [begin, end) reach, key by key.
template <class Bound>
std::vector<kernel::Cover> covers(const Bound& bound, const core::Shape& n, int b, int h, int begin,
                                  int end) {
  kernel::Segments segments;
  bound.reach({b, h, begin, end, static_cast<int>(n.S)}, segments);
  std::vector<kernel::Cover> keys(static_cast<size_t>(n.S), kernel::Cover::kEmpty);
  for (const auto& s : segments) {
    std::fill(keys.begin() + s.begin, keys.begin() + s.end, s.cover);
  }
  return keys;
}

/// What is not reached is forbidden, and what is full is allowed, for all ranges of few queries.
template <class Bound>
void expect_reach_holds(const Bound& bound, const core::Shape& n, const torch::Tensor& allowed,
                        const std::string& what) {
  const auto at = allowed.accessor<bool, 4>();
  int64_t wrong = 0;
  for (int b = 0; b < n.B; ++b) {
    for (int h = 0; h < n.H; ++h) {
      for (int begin = 0; begin < n.L; begin += 5) {
        for (const int count : {1, 7, 30}) {
          const int end = std::min(static_cast<int>(n.L), begin + count);
          const auto keys = covers(bound, n, b, h, begin, end);
          for (int q = begin; q < end; ++q) {
            for (int kv = 0; kv < n.S; ++kv) {
              const auto cover = keys[static_cast<size_t>(kv)];
              wrong +=
                  at[b][h][q][kv] ? cover == kernel::Cover::kEmpty : cover == kernel::Cover::kFull;
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(wrong, 0) << what;
}

/// A mask by its tensor form must be what its kernel form says, pair by pair.
template <class Mask>
void expect_forms_agree(const Mask& mask, const core::Shape& n, const std::string& what) {
  const auto want =
      mask.evaluate(core::Grid(n, 0, n.L, torch::kCPU)).expand({n.B, n.H, n.L, n.S}).contiguous();
  const auto bound = mask.bind(n);
  const bool* at = want.template const_data_ptr<bool>();
  int64_t wrong = 0, allowed = 0;
  for (int b = 0; b < n.B; ++b) {
    for (int h = 0; h < n.H; ++h) {
      for (int q = 0; q < n.L; ++q) {
        for (int kv = 0; kv < n.S; ++kv, ++at) {
          wrong += bound(b, h, q, kv) != *at;
          allowed += *at;
        }
      }
    }
  }
  EXPECT_EQ(wrong, 0) << what;
  EXPECT_GT(allowed, 0) << what << ": forbids everything, and so tests nothing";
  expect_reach_holds(bound, n, want, what);
}

#define EXPECT_MASK(...)                                                                      \
  expect_forms_agree(                                                                         \
      mask_mod([=]([[maybe_unused]] auto b, [[maybe_unused]] auto h, [[maybe_unused]] auto q, \
                   [[maybe_unused]] auto kv) { return __VA_ARGS__; }),                        \
      n, #__VA_ARGS__)

TEST(Callables, WholeNumbersAreTheSameInAllForms) {
  const core::Shape n{2, 3, 37, 53};
  const int64_t large = int64_t{1} << 40;
  const std::vector<int> none;
  // literals of 64 bits, and what wraps around
  EXPECT_MASK((q * 2654435761LL + kv) % 7 == 0);
  EXPECT_MASK((q * large * large + kv * large) % 3 == 0);
  EXPECT_MASK(q * kv * 1000003 * 1000003 * 1000003 > 0);
  EXPECT_MASK((kv + 1) * 2000000000 > q * 2000000000);
  EXPECT_MASK((q * q * q * q * q * q * q * q * q * q * q * q * q) % 5 != 1);
  EXPECT_MASK(q + 2147483647 > kv + 2147483640);
  EXPECT_MASK(-(q - kv) * std::numeric_limits<int64_t>::max() > 0);
  EXPECT_MASK(abs((q - kv) * std::numeric_limits<int64_t>::min()) >= 0);
  // unsigned numbers are taken by their value
  EXPECT_MASK(q - kv < 5u);
  EXPECT_MASK(q - kv < none.size() + 5);
  EXPECT_MASK(q - kv >= uint8_t{3});
  EXPECT_MASK(q - kv > -3 * int64_t{1});
  // division by anything
  EXPECT_MASK(kv % q == 1);
  EXPECT_MASK(kv / q == 2);
  EXPECT_MASK(kv % 0 == kv);
  EXPECT_MASK(kv / 0 == 0);
  EXPECT_MASK((q - kv) / 3 == -2);
  EXPECT_MASK((q - kv) % 4 == -1);
  EXPECT_MASK(7 / (q - kv) == -1 || 7 % (kv - q) == 1);
  EXPECT_MASK((q * 0 + std::numeric_limits<int64_t>::min()) / (kv - 2) < 0);
  EXPECT_MASK((q * 0 + std::numeric_limits<int64_t>::min()) % (kv - 2) == 0);
  EXPECT_MASK((q * 0 + std::numeric_limits<int>::min()) / (kv - 2) > 0);
  EXPECT_MASK((q * 0 + std::numeric_limits<int>::min()) / (kv - 2) < 0);
  // bits and shifts by any count
  EXPECT_MASK(((q ^ kv) & 5) == 4 || (q | kv) == 31);
  EXPECT_MASK((q - kv) >> 1 == -3);
  EXPECT_MASK((q << 62) < 0);
  EXPECT_MASK((q << (kv - 4)) == 0);
  EXPECT_MASK((q - kv) >> (kv - 4) == -1);
  EXPECT_MASK((q - kv) >> (kv + 60) == -1);
  EXPECT_MASK(~0LL << q != 0);
  // truth values are 0 and 1
  EXPECT_MASK((q < kv) + (kv < 9) == 2);
  EXPECT_MASK(3 * (q < kv) - (h == 1) == -1);
  EXPECT_MASK(!(q % 2) && (kv & 1 || b == 1));
  EXPECT_MASK((q < kv) & (kv < 9));
  EXPECT_MASK(q % 2);
  EXPECT_MASK(true);
  // with floating numbers
  EXPECT_MASK(q / 49.0 >= kv / 49.0);
  EXPECT_MASK(q * 0.1 == 0.3 || q * 0.1 > 0.1 * kv);
  EXPECT_MASK(0.1f * q + 0.2f * kv <= 3.3f);
  EXPECT_MASK((q - kv) * 1e-3 < 0.004 && exp(-0.1 * abs(q - kv)) > 0.5);
  EXPECT_MASK(floor(q / 2.5) == floor(kv / 2.5));
  EXPECT_MASK(sqrt(q * q + kv) < kv + 0.5);
  EXPECT_MASK(pow(2, q - kv) > 0.2 && log2(kv + 1) < 5);
  // functions that stay whole
  EXPECT_MASK(min(q - kv, 8) == 8 || max(4, q - kv) == 4);
  EXPECT_MASK(clamp(q - kv, -2, 3) == 1 || clamp(kv, 3, q) == 3);
  EXPECT_MASK(where(q > kv, q - kv, 2 * (kv - q)) % 3 == 0);
  EXPECT_MASK(relu(q - kv) == 0 && abs(q - kv) < 9);
  EXPECT_MASK(floor(q - kv) == -4);
}

/// Bounds decide every tile of 64 x 64 that is empty, and every one that is full.
template <class F>
void expect_all_tiles(F f, const char* what) {
  const core::Shape n{1, 1, 512, 512};
  const auto mask = mask_mod(f);
  const torch::Tensor allowed =
      mask.evaluate(core::Grid(n, 0, n.L, torch::kCPU)).expand({1, 1, 512, 512});
  const auto bound = mask.bind(n);
  for (int row = 0; row < 512; row += 64) {
    const auto keys = covers(bound, n, 0, 0, row, row + 64);
    for (int column = 0; column < 512; column += 64) {
      const torch::Tensor tile = allowed.slice(2, row, row + 64).slice(3, column, column + 64);
      const auto want = !tile.any().item<bool>()  ? kernel::Cover::kEmpty
                        : tile.all().item<bool>() ? kernel::Cover::kFull
                                                  : kernel::Cover::kPartial;
      if (want == kernel::Cover::kPartial) continue;
      for (int kv = column; kv < column + 64; ++kv) {
        ASSERT_EQ(keys[static_cast<size_t>(kv)], want) << what << " " << row << " " << kv;
      }
    }
  }
}
TEST(Callables, BoundsDecideTiles) {
#define EXPECT_ALL_TILES(...) \
  expect_all_tiles([=](auto, auto, auto q, auto kv) { return __VA_ARGS__; }, #__VA_ARGS__)
  const auto numbers = table(torch::arange(512));
  EXPECT_ALL_TILES(kv <= q);
  EXPECT_ALL_TILES(q - kv <= 100 && kv - q <= 100);
  EXPECT_ALL_TILES(abs(q - kv) < 70);
  EXPECT_ALL_TILES(kv <= q && (kv < 4 || q - kv < 100));
  EXPECT_ALL_TILES(q / 96 == kv / 96);
  EXPECT_ALL_TILES(floor(q / 128.0) == floor(kv / 128.0));
  EXPECT_ALL_TILES(kv < 130 || kv <= q);
  EXPECT_ALL_TILES((kv <= q) & ~(q - kv > 65));
  EXPECT_ALL_TILES((q - kv) % 4 == 0);
  EXPECT_ALL_TILES(where(q < 256, kv <= q, kv >= 256));
  EXPECT_ALL_TILES(kv <= q && numbers(kv) >= 0);
#undef EXPECT_ALL_TILES
}

TEST(Callables, BoundsKnowWhatIsNoNumber) {
  const core::Shape n{1, 1, 9, 40};
  const double nan = std::numeric_limits<double>::quiet_NaN();
  auto numbers = torch::arange(40, torch::kFloat64) - 20;
  numbers.slice(0, 5, 30, 3).fill_(nan);
  const auto t = table(numbers);
  EXPECT_MASK(t(kv) < 3 || kv == 1);
  EXPECT_MASK(!(abs(t(kv)) >= 0));
  EXPECT_MASK(!(max(t(kv), 3) >= 3) || kv == 1);
  EXPECT_MASK(relu(t(kv)) < 0 || q == kv);
  EXPECT_MASK(!(t(kv) <= INFINITY));
  EXPECT_MASK(t(kv) != t(kv));
  EXPECT_MASK(where(q < 4, t(kv), 7.0) > 2);
  EXPECT_MASK(!(log(q - kv) <= INFINITY));
}

/// Every kind of lane has every operator and function of the list; what is no whole number has
/// neither bits nor a remainder.
template <class Lane, bool kWhole>
constexpr bool has_all() {
#define ATTZOO_HAS_OPERATOR(op, _) \
  static_assert(                   \
      requires(Lane a) { (a op a, a op 2, 2 op a); }, #op);
#define ATTZOO_HAS_FUNCTION(name, ...) \
  static_assert(                       \
      requires(Lane a) { name(a); }, #name);
  ATTZOO_LANE_COMPARISONS(ATTZOO_HAS_OPERATOR)
  ATTZOO_LANE_LOGIC(ATTZOO_HAS_OPERATOR)
  ATTZOO_LANE_FUNCTIONS(ATTZOO_HAS_FUNCTION)
  static_assert(requires(Lane a) { (a + a, a - 2, 2 * a, a / a, -a, !a, a += 2, a -= a, a *= 2); });
  static_assert(requires(Lane a) { (min(a, 2), max(2, a), clamp(a, 1, a), where(a < 1, a, 2)); });
  static_assert(requires(Lane a) { (abs(a), relu(a), floor(a), pow(a, 2)); });
  if constexpr (kWhole) {
    ATTZOO_LANE_ASSIGNMENTS(ATTZOO_HAS_OPERATOR)
#define ATTZOO_HAS_ASSIGNMENT(op, _) \
  static_assert(                     \
      requires(Lane a) { a op## = 2; }, #op "=");
    ATTZOO_LANE_ASSIGNMENTS(ATTZOO_HAS_ASSIGNMENT)
#undef ATTZOO_HAS_ASSIGNMENT
    static_assert(requires(Lane a) { ~a; });
  }
#undef ATTZOO_HAS_OPERATOR
#undef ATTZOO_HAS_FUNCTION
  return true;
}
static_assert(has_all<core::TensorLane, true>() && has_all<core::Interval, true>());
static_assert(has_all<kernel::Index, true>() && has_all<kernel::TracedIndex, true>());
static_assert(has_all<kernel::Entry<>, false>() && has_all<kernel::Real<float>, false>());
static_assert(has_all<kernel::Dual<double>, false>());

TEST(Callables, FusedMasksAreTheEagerOnes) {
  torch::manual_seed(1);
  const auto q = torch::randn({2, 3, 70, 8}), k = torch::randn({2, 3, 90, 8});
  const auto check = [&](const auto& mask) {
    const auto got = attention(q, k, k, mask);
    EagerReferenceGuard eager;
    const auto want = attention(q, k, k, mask);
    EXPECT_TRUE(torch::equal(got.lse.isinf(), want.lse.isinf()));
    EXPECT_TRUE(torch::allclose(got.output, want.output, 1e-4, 1e-5));
  };
  check(mask_mod([](auto, auto, auto q, auto kv) { return (q * 2654435761LL + kv) % 7 == 0; }));
  check(mask_mod([](auto, auto, auto q, auto kv) { return kv % q == 1; }));
  check(mask_mod([](auto, auto, auto q, auto kv) { return q - kv < 5u; }));
  check(mask_mod([](auto, auto h, auto q, auto kv) { return (kv + 1) * 2000000000 > h * q; }));
}

/// The pairs that a fused kernel lets attend: without scores, and with the unit vectors as values.
template <class... Modifiers>
torch::Tensor attending(const core::Shape& n, const Modifiers&... modifiers) {
  const auto q = torch::zeros({n.B, n.H, n.L, 1}), k = torch::zeros({n.B, n.H, n.S, 1});
  return attention(q, k, torch::eye(n.S).expand({n.B, n.H, n.S, n.S}), modifiers...).output != 0;
}

/// By one rounding where a CPU can, x * y + z would fall otherwise in a comparison. In a mask and
/// in a score.
#define EXPECT_SAME_PAIRS(...)                                                                  \
  {                                                                                             \
    const auto pairs = [](auto, auto, auto q, auto kv) { return __VA_ARGS__; };                 \
    const auto score = [=](auto s, auto b, auto h, auto q, auto kv) {                           \
      return where(pairs(b, h, q, kv), s, -INFINITY);                                           \
    };                                                                                          \
    const auto want = create_mask(mask_mod(pairs), 1, 1, n.L, n.S).expand({1, 1, n.L, n.S});    \
    EXPECT_TRUE(torch::equal(attending(n, mask_mod(pairs)), want)) << #__VA_ARGS__;             \
    EXPECT_TRUE(torch::equal(attending(n, score_mod(score)), want)) << #__VA_ARGS__;            \
    const auto few = create_mask(mask_mod(pairs), 1, 1, 3, n.S).expand({1, 1, 3, n.S});         \
    EXPECT_TRUE(torch::equal(attending({1, 1, 3, n.S}, mask_mod(pairs)), few)) << #__VA_ARGS__; \
  }
TEST(Callables, ComparisonsFallTheSameWayInEveryForm) {
  const core::Shape n{1, 1, 128, 128};
  EXPECT_SAME_PAIRS(0.1 * q > 0.3 * kv - 2.0);
  EXPECT_SAME_PAIRS(0.1 * q - 0.3 * kv > -2.0);
  EXPECT_SAME_PAIRS(-(0.1 * kv) + 0.1 <= 0.1 * (1 - q));
  EXPECT_SAME_PAIRS(floor(0.1 * q + 0.1 * kv) == floor(0.1 * (q + kv)) &&
                    q / 49.0 > kv / 49.0 - 0.1);
}
#undef EXPECT_SAME_PAIRS

/// A score by its tensor form, and its derivative by autograd, must be what its kernel forms say.
template <class Score>
void expect_score_forms_agree(const Score& score, const std::string& what) {
  torch::manual_seed(2);
  const core::Shape n{2, 2, 7, 11};
  const auto s = torch::randn({n.B, n.H, n.L, n.S}, torch::kFloat64).requires_grad_();
  const auto want = score.evaluate(s, core::Grid(n, 0, n.L, torch::kCPU));
  ASSERT_EQ(want.sizes(), s.sizes()) << what;
  const auto slope = want.requires_grad()
                         ? torch::autograd::grad({want.sum()}, {s}, {}, false, false, true)[0]
                         : torch::Tensor();
  const auto bound = score.bind(n);
  using I = kernel::Index;
  for (int i = 0; i < s.numel(); ++i) {
    const int kv = i % 11, q = i / 11 % 7, h = i / 77 % 2, b = i / 154;
    const auto at = [&](const torch::Tensor& t) {
      return t.defined() ? t[b][h][q][kv].template item<double>() : 0.0;
    };
    const auto dual = bound(kernel::Dual<double>(at(s), 1), I{b}, I{h}, I{q}, I{kv});
    const auto single =
        bound(kernel::Real<float>(static_cast<float>(at(s))), I{b}, I{h}, I{q}, I{kv});
    ASSERT_NEAR(dual.v, at(want), 1e-12 * (1 + std::abs(at(want)))) << what << " " << q << kv;
    ASSERT_NEAR(dual.d, at(slope), 1e-12 * (1 + std::abs(at(slope)))) << what << " " << q << kv;
    ASSERT_NEAR(bound(kernel::Real<double>(at(s)), I{b}, I{h}, I{q}, I{kv}).v, dual.v, 1e-15)
        << what;
    ASSERT_NEAR(single.v, dual.v, 1e-5 * (1 + std::abs(dual.v))) << what;
  }
}

/// Output, lse and the gradients by the fused kernel and by the reference, in float64.
template <class Score>
void expect_fused_is_eager(const Score& score, const std::string& what,
                           std::vector<torch::Tensor> learn = {}) {
  torch::manual_seed(2);
  const auto leaf = [](int64_t n) {
    return torch::randn({2, 2, n, 5}, torch::kFloat64).requires_grad_();
  };
  const auto q = leaf(19), k = leaf(23), v = leaf(23);
  learn.insert(learn.begin(), {q, k, v});
  const auto run = [&] {
    const auto r = attention(q, k, v, causal(), score);
    auto results = torch::autograd::grad({r.output.sin().sum() + r.lse.cos().sum()}, learn);
    results.insert(results.begin(), {r.output.detach(), r.lse.detach()});
    return results;
  };
  const auto got = run();
  EagerReferenceGuard eager;
  const auto want = run();
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].scalar_type(), want[i].scalar_type()) << what;
    EXPECT_TRUE(torch::allclose(got[i], want[i], 1e-9, 1e-11))
        << what << ", result " << i << ": "
        << (got[i] - want[i]).abs().max().template item<double>();
  }
}

TEST(Callables, AssignmentsAreTheSameInAllForms) {
  const core::Shape n{2, 3, 37, 53};
  const auto doc = table(torch::arange(2 * 53).view({2, 53}).floor_divide(9) * (int64_t{1} << 40));
  const auto check = [&](const auto& f, const std::string& what) {
    expect_forms_agree(mask_mod(f), n, what);
  };
  check(
      [](auto, auto, auto q, auto kv) {
        auto d = q - kv;
        d *= 2;
        d += 3 * q;
        d -= 1;
        d /= 3;
        d %= 7;
        return d == 1;
      },
      "numbers");
  check(
      [](auto, auto h, auto q, auto kv) {
        auto d = q;
        d <<= 3;
        d ^= kv;
        d |= 5;
        d &= ~h;
        d >>= 1;
        d = d + 1;
        return d % 5 == 2 || ~d == -9;
      },
      "bits");
  check(
      [](auto b, auto h, auto q, auto kv) {
        auto m = q > kv;
        m &= h != 1;
        m |= b == 1;
        m ^= kv % 3 == 0;
        m = ~m;
        return m || ~(q == kv) == false || ~(min(q > kv, h == 1)) == -2;
      },
      "truth values");
  check(
      [](auto, auto, auto q, auto kv) {
        auto x = 0.1 * q;
        x += 0.3 * kv;
        x *= 2;
        x -= q;
        x /= 7;
        x = x + 1;
        return x > 0.4;
      },
      "floating numbers");
  check(
      [=](auto b, auto, auto q, auto kv) {
        auto e = doc(b, q);
        e -= doc(b, kv);
        e *= 2;
        e += 1 + q;
        e %= 1000003;
        auto x = doc(b, kv);
        x /= 2.5;
        x = x - 1;
        return e > 3 && x > 0;
      },
      "entries");
  const auto learnt = torch::randn({2, 48}, torch::kFloat64).requires_grad_();
  const auto t = table(learnt);
  expect_fused_is_eager(score_mod([=](auto s, auto, auto h, auto q, auto kv) {
                          auto d = q - kv;
                          d += 23;
                          auto e = t(h, d);
                          e *= 0.5;
                          e += tanh(t(h, kv));
                          s += e;
                          s *= 1.5;
                          s -= 0.1 * abs(q - kv);
                          s /= 2;
                          return s;
                        }),
                        "scores", {learnt});
  // What the kernel's types cannot hold is found before it runs.
  const auto q = torch::randn({1, 1, 40, 4});
  const auto grow = mask_mod([](auto, auto, auto q, auto kv) {
    auto d = q * kv;
    d *= 1000003;
    return d % 7 == 0;
  });
  expect_error([&] { attention(q, q, q, grow); }, {"mask_mod", "2^30", "auto e = d * 2"});
}

/// A pair of weight 0 has gradient 0, and what where() left out changes nothing, whatever the
/// derivative.
TEST(Callables, InfiniteScoresHaveFiniteGradients) {
  const double inf = std::numeric_limits<double>::infinity();
  torch::manual_seed(9);
  const auto hidden = torch::rand({19, 23}) < 0.3;
  const auto bias = torch::zeros({19, 23}, torch::kFloat64).masked_fill(hidden, -inf);
  const auto scale = (torch::rand({2}, torch::kFloat64) + 1).requires_grad_();
  const auto t = table(scale);
  const auto check = [&](const auto& score, const std::string& what) {
    expect_fused_is_eager(score, what, {scale});
  };
  const auto add = bias_tensor(bias);
  const auto learn = score_mod([=](auto s, auto, auto h, auto, auto) { return s * t(h); });
  check(learn + add + softcap(30), "bias, softcap");
  check(learn + add + score_mod([](auto s, auto, auto, auto, auto) { return s * 2.0; }), "times 2");
  check(learn + add + score_mod([](auto s, auto, auto, auto, auto) { return s / 3 + 1; }), "by 3");
  check(add + learn, "times an entry");
  check(learn + add + alibi(scale) + softcap(3), "alibi");
  check(add + score_mod([=](auto s, auto, auto h, auto, auto) {
          return s * exp(t(h)) / (1 + t(h)) - abs(s) * t(h);
        }),
        "an entry's functions");
  check(add + learn + score_mod([](auto s, auto, auto, auto, auto) { return -exp(-s); }), "exp");
  check(add + learn + score_mod([](auto s, auto, auto, auto, auto) { return -s * s * 0.1; }),
        "square");
  const auto within = score_mod([=](auto s, auto, auto h, auto q, auto kv) {
    return where(q >= kv - 2, s * t(h), -INFINITY);
  });
  check(within + softcap(30), "where, softcap");
  check(within + score_mod([](auto s, auto, auto, auto, auto) { return max(s * 2, -5) + exp(s); }),
        "max and exp");
  check(within + score_mod([](auto s, auto, auto, auto, auto) { return 1 / (1 + exp(-s)); }),
        "sigmoid by hand");
  check(score_mod([=](auto s, auto, auto h, auto, auto kv) {
          return sqrt(where(kv % 2 == 0, s * s * t(h), 0.0)) +
                 pow(where(kv % 3 == 0, abs(s), 0), 0.5);
        }),
        "roots of what where() left out");
  check(
      score_mod([=](auto s, auto, auto h, auto q, auto kv) { return s * t(h) * log(q - kv + 5); }),
      "what causal() hides");
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    const auto x = torch::randn({2, 2, 80, 16}).to(dtype).requires_grad_();
    const auto some = torch::zeros({80, 80}).masked_fill(torch::rand({80, 80}) < 0.3, -inf);
    const auto r = attention(
        x, x, x, causal(),
        bias_tensor(some) + learn +
            score_mod([](auto s, auto, auto, auto, auto) { return where(s > -1, s, -exp(-s)); }));
    for (const auto& g : torch::autograd::grad({r.output.sin().sum()}, {x, scale})) {
      EXPECT_TRUE(g.isfinite().all().item<bool>()) << dtype;
    }
  }
  auto q = torch::randn({1, 2, 4, 3}, torch::kFloat64).requires_grad_();
  auto slope = scale.detach().clone().requires_grad_();
  const auto second = [&] {
    const auto u = table(slope);
    const auto r = attention(q, q, q, causal(),
                             bias_tensor(bias.slice(0, 0, 4).slice(1, 0, 4)) +
                                 score_mod([=](auto s, auto, auto h, auto q, auto kv) {
                                   return -exp(-s) * u(h) + log(q - kv + 1);
                                 }));
    return r.output.square().sum();
  };
  gradcheck(second, {q, slope}, "scores of -inf");
  gradgradcheck(second, {q, slope}, "scores of -inf");
}

#define EXPECT_SCORE(...)                                                                        \
  expect_score_forms_agree(                                                                      \
      score_mod([=]([[maybe_unused]] auto s, [[maybe_unused]] auto b, [[maybe_unused]] auto h,   \
                    [[maybe_unused]] auto q, [[maybe_unused]] auto kv) { return __VA_ARGS__; }), \
      #__VA_ARGS__)

TEST(Callables, ScoresAndTheirDerivativesAreTheSameInAllForms) {
  EXPECT_SCORE(max(s, 0) + min(0.5, s) + min(q - kv, 8));
  EXPECT_SCORE(max(s, s - 1) + min(s * 2, 3 * s) + where(s > 0, 1, s));
  EXPECT_SCORE(pow(abs(s) + 1, 2) / 3 + pow(2, s) + pow(abs(s) + 0.5, 0.3 * s));
  EXPECT_SCORE(pow(s, 2) + pow(s, 0) + pow(s, 3.0f));
  EXPECT_SCORE(exp2(s) + log2(abs(s) + 1) - exp(-s) + log(s * s + 1));
  EXPECT_SCORE(sin(3 * s) + cos(s + q) * erf(s) + sin(0.1 * kv) + erf(0.1 * (q - kv)));
  EXPECT_SCORE(floor(3 * s) + 0.2 * s + clamp(s, -0.5, 0.5) + clamp(2 * s, -1, 1) + relu(s));
  EXPECT_SCORE(clamp(s, 0.1 * h, s + 1) + clamp(0.3, s, 2));
  EXPECT_SCORE(sqrt(s * s + 1) + sigmoid(s) - tanh(s) / 7 + s / (2 + q) + (1 + b) / (abs(s) + 2));
  EXPECT_SCORE(s - 0.1 * abs(q - kv) + 0.01 * (q * 1000003LL % 17) + (q > kv) - 2u);
  EXPECT_SCORE(s * (kv % 2) + (q - kv) / 3);
  EXPECT_SCORE(-s + +s * 2 - (-s));
  EXPECT_SCORE(where(q > kv, 1, 0) + where(s > 0 && kv % 2, 1.5, 2) * s);
  EXPECT_SCORE(0.5);
  EXPECT_SCORE(q - kv);
}

TEST(Callables, StandardNamesMayBeImported) {
  expect_fused_is_eager(score_mod([](auto s, auto, auto, auto q, auto kv) {
                          using std::abs;
                          using std::exp;
                          using std::max;
                          using std::min;
                          using std::pow;
                          using std::tanh;
                          return tanh(s) + max(s, 0) + min(q - kv, 8) + max(q, kv) +
                                 0.1 * abs(q - kv) + exp(-abs(s)) + min(s, s * 2) + pow(s, 2);
                        }),
                        "using std");
}

TEST(Callables, AlignedCountsFromTheBottomRight) {
  for (const auto& [L, S] : {std::pair{5, 9}, {9, 5}, {6, 6}}) {
    const core::Shape n{1, 1, L, S};
    const auto table_of = [&](const auto& mask) {
      return mask.evaluate(core::Grid(n, 0, n.L, torch::kCPU)).expand({1, 1, n.L, n.S});
    };
    const auto f = [](auto, auto, auto q, auto kv) { return kv <= q; };
    EXPECT_TRUE(torch::equal(table_of(mask_mod(f, aligned)), table_of(causal())));
    EXPECT_TRUE(torch::equal(table_of(mask_mod(f)), table_of(causal(CausalAlignment::kTopLeft))));
    expect_forms_agree(mask_mod(f, aligned), {1, 1, L, S}, "aligned");
  }
  const auto distance = [](auto s, auto, auto, auto q, auto kv) { return s - 0.3 * (q - kv); };
  expect_fused_is_eager(score_mod(distance, aligned), "aligned score");
  const auto q = torch::randn({1, 2, 4, 3}, torch::kFloat64),
             k = torch::randn({1, 2, 9, 3}, torch::kFloat64);
  const auto slopes = torch::full({2}, 0.3, torch::kFloat64);
  EXPECT_TRUE(torch::allclose(attention(q, k, k, causal(), score_mod(distance, aligned)).output,
                              attention(q, k, k, causal(), alibi(slopes)).output));
}

TEST(InDocument, WithoutDocumentsItIsAligned) {
  for (const auto& [L, S] : {std::pair{5, 9}, {9, 5}, {6, 6}, {3, 0}}) {
    const core::Shape n{2, 1, L, S};
    const auto f = [](auto, auto, auto q, auto kv) { return kv <= q || kv % 3 == 1; };
    EXPECT_TRUE(torch::equal(create_mask(mask_mod(f, in_document), 2, 1, L, S),
                             create_mask(mask_mod(f, aligned), 2, 1, L, S)));
    if (S > 0) expect_forms_agree(mask_mod(f, in_document), n, "in_document");
  }
  expect_fused_is_eager(
      score_mod([](auto s, auto, auto, auto q, auto kv) { return s * cos(0.2 * q) - 0.3 * kv; },
                in_document),
      "in_document score");
}

/// The places are those that a table of them would give.
TEST(InDocument, CountsInTheDocumentsOfTheMask) {
  torch::manual_seed(6);
  const auto numbers = [](std::vector<int64_t> lengths) {
    return torch::repeat_interleave(torch::tensor(lengths));
  };
  const auto learned = torch::randn({23}, torch::kFloat64).requires_grad_();
  const auto t = table(learned);
  const auto f = [](auto, auto, auto q, auto kv) { return q / 3 == kv / 3 || kv % 3 == 2; };
  const auto g = [=](auto s, auto, auto, auto q, auto kv) {
    return s * t(q) + t(kv) - 0.1 * (q + 2 * kv);
  };
  const auto leaf = [](int64_t n) {
    return torch::randn({2, 2, n, 5}, torch::kFloat64).requires_grad_();
  };
  const auto q = leaf(19), k = leaf(23), v = leaf(23);
  const auto run = [&](const core::AnyMask& mask, const core::AnyScore& score) {
    const auto r = attention(q, k, v, mask, score);
    auto results =
        torch::autograd::grad({r.output.sin().sum() + r.lse.cos().sum()}, {q, k, v, learned});
    results.insert(results.end(), {r.output, r.lse, r.weights.tensor(), r.weights.rows(3, 9)});
    return results;
  };
  const auto ids = torch::stack({numbers({5, 6, 12}), numbers({16, 7})});
  for (const Documents& d : {Documents{.ids = ids}, Documents{.offsets = torch::tensor({0, 7, 23})},
                             Documents{.ids = ids[1]}}) {
    const auto place = table(core::pack(d, "test").position.expand({2, 23}));
    const auto at = [=](auto b, auto i) { return place(b, i) + 0 * i; };
    const auto want_mask =
        documents(d) && causal() &&
        mask_mod([=](auto b, auto h, auto i, auto j) { return f(b, h, at(b, i), at(b, j)); },
                 aligned);
    const auto want =
        run(want_mask, score_mod([=](auto s, auto b, auto h, auto i,
                                     auto j) { return g(s, b, h, at(b, i), at(b, j)); },
                                 aligned));
    const auto mask = causal() && (mask_mod(f, in_document) && documents(d));
    EXPECT_TRUE(
        torch::equal(create_mask(mask, 2, 2, 19, 23), create_mask(want_mask, 2, 2, 19, 23)));
    const auto check = [&](const std::vector<torch::Tensor>& got) {
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_TRUE(torch::allclose(got[i], want[i], 1e-9, 1e-11)) << i;
      }
    };
    check(run(mask, score_mod(g, in_document)));
    check(run(block_mask(mask, 19, 23, 2, 2), score_mod(g, in_document)));
    const EagerReferenceGuard eager;
    check(run(mask, score_mod(g, in_document)));
  }
}

TEST(InDocument, Errors) {
  const auto f = [](auto, auto, auto q, auto kv) { return kv % 3 <= q % 3; };
  const auto q = torch::randn({1, 1, 6, 4});
  const Documents apart{.ids = torch::tensor({0, 1, 0, 1, 2, 2})},
      packed{.offsets = torch::tensor({0, 2, 6})};
  expect_error([&] { attention(q, q, q, documents(apart) && mask_mod(f, in_document)); },
               {"in_document", "lie together"});
  const auto tiles = block_mask(mask_mod(f, in_document), 6, 6);
  EXPECT_TRUE(torch::allclose(attention(q, q, q, tiles).output,
                              attention(q, q, q, mask_mod(f, in_document)).output));
  expect_error([&] { attention(q, q, q, documents(packed) && tiles); },
               {"block_mask", "in_document"});
  // A table is asked for places alone, of which the longest document has four.
  const auto four = table(torch::arange(4));
  const auto by_place =
      mask_mod([=](auto, auto, auto i, auto j) { return four(i) >= four(j); }, in_document);
  EXPECT_TRUE(torch::allclose(attention(q, q, q, documents(packed) && by_place).output,
                              attention(q, q, q, documents(packed) && causal()).output));
  expect_error([&] { attention(q, q, q, by_place); }, {"table", "[0, 4)"});
}

/// Beyond the kernel's numbers, as in a stream that does not end, it runs on tensors.
TEST(InDocument, FarPlaces) {
  const auto f = [](auto, auto, auto q, auto kv) { return q / 4 == kv / 4; };
  const auto q = torch::randn({1, 1, 12, 4});
  const auto places = torch::arange(12).unsqueeze(0) + (int64_t{1} << 40) + 1;
  const core::AnyMask far = core::AnyMask(mask_mod(f, in_document)).placed(places);
  EXPECT_FALSE(far.has_form(typeid(kernel::Mask)));
  const auto want = mask_mod([](auto, auto, auto i, auto j) { return (i + 1) / 4 == (j + 1) / 4; });
  EXPECT_TRUE(torch::allclose(attention(q, q, q, far).output, attention(q, q, q, want).output));
}

// ---- tables -------------------------------------------------------------------------------------

TEST(Table, MasksReadIntegersOfAnyType) {
  const core::Shape n{2, 3, 37, 53};
  const auto ids = torch::arange(2 * 53).view({2, 53}).floor_divide(9);
  for (const auto dtype : {torch::kInt64, torch::kInt32, torch::kInt16, torch::kUInt8}) {
    const auto doc = table(ids.to(dtype));
    EXPECT_MASK(doc(b, q) == doc(b, kv));
  }
  const auto doc = table(ids), far = table(ids.to(torch::kInt64) * 1000000007 + 5);
  const auto length = table(torch::tensor({30, 41})),
             flag = table(torch::tensor({true, false, true}));
  const auto one = table(torch::tensor({4}));
  const auto matrix = table(torch::rand({2, 3, 37, 53}) < 0.3);
  const auto next = table(torch::arange(53).flip(0).to(torch::kInt32));
  EXPECT_MASK(far(b, q) == far(b, kv));
  EXPECT_MASK(far(b, q) + 1 > far(b, kv) && far(b, kv) != 5);
  EXPECT_MASK(kv < length(b) && flag(h));
  EXPECT_MASK(matrix(b, h, q, kv));
  EXPECT_MASK(!matrix(b, h, q, kv) && doc(b, kv) % 2 == 1);
  EXPECT_MASK(doc(b, q) / 2 == doc(b, kv) / 2);
  EXPECT_MASK(doc(b, kv) % (doc(b, q) - 3) == 1);
  EXPECT_MASK(-doc(b, q) / (doc(b, kv) - 3) == -2);
  EXPECT_MASK(doc(1, q) == doc(b, kv) || one(0 * h) == kv);
  EXPECT_MASK(next(next(q)) == kv || next(min(q + 3, 52)) - 1 == kv);
  EXPECT_MASK(min(doc(b, q), 3) == max(doc(b, kv), 2) || abs(doc(b, q) - 3) == 2);
  EXPECT_MASK(where(doc(b, q) > 2, doc(b, kv), 5) == 5 && q - kv <= 4);
  EXPECT_MASK(doc(b, where(q > kv, q - kv, 0)) == 1);
}

TEST(Table, MasksReadFloatsOfAnyType) {
  const core::Shape n{2, 3, 37, 53};
  for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    const auto t = table(torch::randn({3, 90}, dtype)), u = table(torch::randn({53}, dtype));
    EXPECT_MASK(t(h, q - kv + 53) > 0.1);
    EXPECT_MASK(t(h, q - kv + 53) + u(kv) * 2 > exp(u(q)) - 1);
    EXPECT_MASK(u(q) == u(kv) || t(h, kv) / 2 < u(kv) / 3);
  }
  // Strides, views and the negative bit are the tensor's business.
  const auto t = table(torch::randn({90, 3}).t());
  const auto negative = table(torch::_neg_view(torch::randn({53})));
  EXPECT_MASK(t(h, q - kv + 53) > 0.1 && negative(kv) > 0);
}

TEST(Table, ScoresLearnTheirEntries) {
  torch::manual_seed(3);
  const auto leaf = [](std::vector<int64_t> sizes, torch::ScalarType dtype = torch::kFloat64) {
    return torch::randn(sizes, dtype).requires_grad_();
  };
  const auto bias = leaf({2, 48}), scale = leaf({2}), by_pair = leaf({2, 2, 19, 23}),
             narrow = leaf({23}, torch::kFloat32), fixed = torch::randn({2, 23}, torch::kFloat64),
             ids = torch::arange(46).view({2, 23}).floor_divide(2);
  const auto t = table(bias), m = table(scale), p = table(by_pair), w = table(narrow),
             f = table(fixed), doc = table(ids);
  const auto check = [](const auto& score, const std::string& what,
                        const std::vector<torch::Tensor>& learn) {
    expect_fused_is_eager(score, what, learn);
  };
  check(score_mod([=](auto s, auto, auto h, auto q, auto kv) { return s + t(h, q - kv + 23); }),
        "relative bias", {bias});
  check(score_mod([=](auto s, auto b, auto h, auto q, auto kv) { return s + p(b, h, q, kv); }),
        "dense bias", {by_pair});
  check(score_mod([=](auto s, auto b, auto h, auto q, auto kv) {
          return s * exp(m(h)) + t(h, q - kv + 23) * t(h, kv) + tanh(w(kv) - f(b, q)) / 2;
        }),
        "several entries", {bias, scale, narrow});
  check(score_mod([=](auto s, auto b, auto h, auto q, auto kv) {
          return where(doc(b, q) == doc(b, kv), s, s - abs(t(h, doc(b, kv)))) + min(w(kv), w(q)) +
                 max(w(kv), 0) + clamp(t(h, q), -0.5, 0.5) + pow(m(h), 2);
        }),
        "indexed by entries", {bias, scale, narrow});
  check(score_mod([=](auto s, auto, auto h, auto q, auto kv) { return s + t(h, q - kv + 23); }) +
            softcap(2.0) +
            score_mod([=](auto s, auto, auto h, auto, auto kv) { return s * m(h) + w(kv); },
                      aligned) +
            alibi(scale),
        "a chain", {bias, scale, narrow});
}

/// Whatever an index is computed of: entries alone, truth values, scores and constants chosen by
/// them.
TEST(Table, ScoresLearnAtAnyIndex) {
  torch::manual_seed(6);
  const auto learnt = torch::randn({23}, torch::kFloat64).requires_grad_(),
             others = torch::randn({5, 23}, torch::kFloat64).requires_grad_();
  const auto types = torch::randint(5, {23}), order = torch::randperm(23);
  const auto l = table(learnt), m = table(others), type = table(types), next = table(order),
             real = table(torch::randn({23}, torch::kFloat64)), flag = table(types > 2);
  const auto check = [&](const auto& score, const std::string& what) {
    expect_fused_is_eager(score, what, {learnt, others});
  };
#define EXPECT_LEARNS(...)                                                                       \
  check(score_mod([=]([[maybe_unused]] auto s, [[maybe_unused]] auto b, [[maybe_unused]] auto h, \
                      [[maybe_unused]] auto q,                                                   \
                      [[maybe_unused]] auto kv) { return s + __VA_ARGS__ + m(h, 3); }),          \
        #__VA_ARGS__)
  EXPECT_LEARNS(l(type(kv)));
  EXPECT_LEARNS(l(type(kv)) * l(next(next(q))) + m(type(q), next(kv)) * m(type(next(q)), 4));
  EXPECT_LEARNS(l(abs(type(kv) - 3)) * 2 + l(min(type(kv), 2)) + m(max(type(kv), type(q)), 0 * q));
  EXPECT_LEARNS(l(clamp(next(kv) - 2, 0, 9)) - m(1, type(kv) % 3) * l(next(kv) / 2) +
                l(-(-type(q))));
  EXPECT_LEARNS(l(where(q > kv, type(kv), 7)) * 0.5 +
                l(where(type(q) == 2, 1, 0)) * tanh(l(flag(kv))));
  EXPECT_LEARNS(l(q > kv) + l(type(q) == type(kv)) * l(real(kv) > 0.1) + m(!flag(q), h || b));
  EXPECT_LEARNS(l(0.1 * q > 0.3) + l(where(exp(real(kv)) > 1, 4, 5)) * l(s > 0) +
                l(q > 2 && s < 1));
  EXPECT_LEARNS(l(~(q > kv)) * 3 + l((q & 3) ^ 1) + l(where(real(q) > 0, 1.5, 0.5) > 1));
#undef EXPECT_LEARNS
}

TEST(Table, GradientsByFiniteDifferences) {
  torch::manual_seed(4);
  auto q = torch::randn({1, 2, 5, 4}, torch::kFloat64).requires_grad_();
  auto bias = torch::randn({2, 10}, torch::kFloat64).requires_grad_();
  const auto f = [&] {
    const auto t = table(bias);
    const auto r =
        attention(q, q, q, causal(), score_mod([=](auto s, auto, auto h, auto q, auto kv) {
                    return s * t(h, kv) + tanh(t(h, q - kv + 5));
                  }));
    return r.output.square().sum() + r.lse.sum();
  };
  gradcheck(f, {q, bias}, "table");
  gradgradcheck(f, {q, bias}, "table");
}

TEST(Table, GradientsHaveTheSameBitsEachTime) {
  torch::manual_seed(5);
  const auto q = torch::randn({2, 4, 300, 16});
  auto bias = torch::randn({4, 600}).requires_grad_();
  const auto run = [&] {
    const auto t = table(bias);
    const auto r = attention(q, q, q, score_mod([=](auto s, auto, auto h, auto q, auto kv) {
                               return s + t(h, q - kv + 300);
                             }));
    return torch::autograd::grad({r.output.sin().sum()}, {bias})[0];
  };
  const int threads = at::get_num_threads();
  const auto want = run();
  EXPECT_EQ(want.scalar_type(), torch::kFloat32);
  for (const int n : {1, 2, 5}) {
    at::set_num_threads(n);
    EXPECT_TRUE(torch::equal(run(), want)) << n << " threads";
  }
  at::set_num_threads(threads);
}

TEST(Table, HoldsWhatTheTensorHoldsAtTheCall) {
  const auto q = torch::randn({1, 1, 6, 4});
  const auto bias = torch::zeros({6});
  const auto t = table(bias);
  const auto score = score_mod([=](auto s, auto, auto, auto, auto kv) { return s + t(kv); });
  const auto before = attention(q, q, q, score).output;
  bias.copy_(torch::randn({6}));
  const auto after = attention(q, q, q, score).output;
  EXPECT_TRUE(torch::allclose(before, attention(q, q, q).output));
  EXPECT_TRUE(torch::allclose(after, attention(q, q, q, bias_tensor(bias.view({1, 6}))).output));
}

TEST(Table, NoGradientWhereNobodyAsks) {
  const auto q = torch::randn({1, 1, 6, 4});
  const auto bias = torch::randn({6}).requires_grad_();
  const auto t = table(bias);
  torch::NoGradGuard no_grad;
  const auto r =
      attention(q, q, q, score_mod([=](auto s, auto, auto, auto, auto kv) { return s + t(kv); }));
  EXPECT_FALSE(r.output.requires_grad());
}

TEST(Table, Errors) {
  const auto q = torch::randn({2, 2, 6, 4});
  const auto run = [&](const auto& mask) { return attention(q, q, q, mask); };
  const auto t = table(torch::arange(6)), wide = table(torch::zeros({2, 6}, torch::kInt64));
  // An index beyond the ends: in every form, whether evident or not.
  const auto out_of_range = [&](const auto& mask, std::vector<std::string> parts) {
    parts.push_back("table: index");
    expect_error([&] { run(mask); }, parts);
    EagerReferenceGuard eager;
    expect_error([&] { run(mask); }, parts);
  };
  out_of_range(mask_mod([=](auto, auto, auto q, auto kv) { return t(q - kv) == 0; }),
               {"[0, 6)", "-5"});
  out_of_range(mask_mod([=](auto, auto, auto q, auto) { return t(q + 1) == 0; }),
               {"[0, 6)", "6", "pairs that a mask forbids count", "clamp(i, 0, 5)"});
  out_of_range(mask_mod([=](auto b, auto, auto, auto kv) { return wide(b + 1, kv) == 0; }),
               {"index 0", "[0, 2)", "2"});
  out_of_range(mask_mod([=](auto, auto, auto q, auto kv) {
                 return t(where(q > kv, q - kv, kv - q - 1)) == 0;
               }),
               {"-1"});
  out_of_range(mask_mod([=](auto, auto, auto q, auto) { return t(t(q) + 1) == 0; }), {"6"});
  expect_error([&] { run(mask_mod([=](auto, auto, auto q, auto kv) { return t(q, kv) == 0; })); },
               {"table", "1 indices", "2"});
  expect_error([&] { run(mask_mod([&](auto, auto, auto q, auto) { return t(q) == 0; })); },
               {"table", "[=]"});
  static const auto global = table(torch::arange(6));
  expect_error([&] { run(mask_mod([](auto, auto, auto q, auto) { return global(q) == 0; })); },
               {"table", "global"});
  const auto ids = torch::arange(6);
  expect_error([&] { run(mask_mod([=](auto, auto, auto q, auto) { return table(ids)(q) == 0; })); },
               {"table", "by value"});
  const auto real = table(torch::rand({6}));
  expect_error([&] { run(mask_mod([=](auto, auto, auto q, auto) { return t(real(q)) == 0; })); },
               {"table", "whole"});
  const auto huge = table(torch::full({6}, int64_t{1} << 60));
  expect_error([&] { run(mask_mod([=](auto, auto, auto q, auto) { return huge(q) == 0; })); },
               {"table", "2^53"});
  expect_error([] { table({}); }, {"table", "undefined"});
  expect_error([] { table(torch::zeros({})); }, {"table", "rank 1 to 4", "[]"});
  expect_error([] { table(torch::zeros({1, 1, 1, 1, 1})); }, {"table", "rank 1 to 4"});
  expect_error([] { table(torch::zeros({2}, torch::kComplexFloat)); }, {"table", "ComplexFloat"});
  expect_error([] { table(torch::zeros({2}, torch::kMeta)); }, {"table", "meta"});
  expect_error([] { table(torch::eye(3).to_sparse()); }, {"table", "Sparse"});
  expect_error([] { table(torch::zeros({1}).expand({int64_t{1} << 31})); }, {"table", "2^31"});
}

}  // namespace
}  // namespace attzoo::testing::callables_test
