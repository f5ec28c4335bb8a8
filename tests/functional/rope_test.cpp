#include <gtest/gtest.h>
#include <attzoo/functional/rope.hpp>

#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <numbers>
#include <sstream>
#include <thread>

#include "support/error_rule.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"

namespace attzoo::testing::rope_test {
namespace {

TEST(Rope, TurnsPairsByTheirAngles) {
  const auto x = torch::randn({2, 3, 5, 6}, torch::kFloat64);
  const auto y = apply_rope(x, {.base = 100, .position_offset = 7});
  for (int64_t p = 0; p < 5; ++p) {
    for (int64_t i = 0; i < 3; ++i) {
      const double angle =
          static_cast<double>(p + 7) * std::pow(100.0, -2.0 * static_cast<double>(i) / 6);
      const double a = x[1][2][p][2 * i].item<double>(), b = x[1][2][p][2 * i + 1].item<double>();
      EXPECT_NEAR(y[1][2][p][2 * i].item<double>(), a * std::cos(angle) - b * std::sin(angle),
                  1e-12);
      EXPECT_NEAR(y[1][2][p][2 * i + 1].item<double>(), a * std::sin(angle) + b * std::cos(angle),
                  1e-12);
    }
  }
}

TEST(Rope, FarPositionsStayExactInHalfTypes) {
  const auto x = torch::ones({1, 1, 64}, torch::kBFloat16);
  const RopeOptions far{.position_offset = 100003};
  const auto want = apply_rope(x.to(torch::kFloat64), far);
  EXPECT_LE((apply_rope(x, far).to(torch::kFloat64) - want).abs().max().item<double>(), 0.01);
}

TEST(Rope, TakesPositions) {
  const auto x = torch::randn({2, 3, 5, 6}, torch::kFloat64);
  const auto positions = torch::tensor({{0, 1, 2, 0, 1}, {0, 0, 1, 2, 3}});
  const auto y = apply_rope(x, {.position_offset = 4, .positions = positions.unsqueeze(1)});
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t i = 0; i < 5; ++i) {
      const auto row = x[b].slice(1, i, i + 1);
      const auto want = apply_rope(row, {.position_offset = 4 + positions[b][i].item<int64_t>()});
      EXPECT_TRUE(torch::allclose(y[b].slice(1, i, i + 1), want, 1e-12, 1e-14));
    }
  }
  expect_error([&] { apply_rope(x, {.positions = torch::arange(4)}); },
               {"apply_rope", "positions", "[2, 3, 5]", "[4]"});
}

struct Form {
  std::string name;
  RopeOptions options;
};

/// Every layout and scaling, of rows of D features.
std::vector<Form> forms(int64_t D) {
  std::vector<Form> all;
  const std::vector<std::pair<std::string, RopeScaling>> scalings{
      {"none", {}},
      {"linear", LinearRopeScaling{.factor = 4}},
      {"ntk", NtkRopeScaling{.factor = 8}},
      {"yarn", YarnRopeScaling{.factor = 40, .original_max_position = 4096}},
      {"yarn_whole", YarnRopeScaling{.factor = 32,
                                     .original_max_position = 512,
                                     .beta_fast = 16,
                                     .beta_slow = 2,
                                     .truncate = false}},
      {"yarn_factor",
       YarnRopeScaling{.factor = 4, .original_max_position = 64, .attention_factor = 0.7}},
      {"llama3", Llama3RopeScaling{.factor = 8, .original_max_position = 512}},
      {"llama3_steep", Llama3RopeScaling{.factor = 3,
                                         .low_freq_factor = 2,
                                         .high_freq_factor = 2.5,
                                         .original_max_position = 64}}};
  for (const auto& [name, scaling] : scalings) {
    for (const auto pairs : {RopePairs::kInterleaved, RopePairs::kHalves}) {
      for (const std::optional<int64_t> turned : {std::optional<int64_t>(), {D / 4 * 2}}) {
        for (const double base : {1e4, 5e5}) {
          all.push_back({name + (pairs == RopePairs::kHalves ? " halves" : " interleaved") +
                             (turned ? " partial" : "") + c10::str(" ", base),
                         {.base = base, .pairs = pairs, .dimensions = turned, .scaling = scaling}});
        }
      }
    }
  }
  return all;
}

/// The frequency of pair i as its paper or source has it, each by its own route, and the factor of
/// cos and sin.
std::pair<double, double> by_definition(const RopeOptions& o, int64_t D, int64_t pair) {
  const auto i = static_cast<double>(pair), d = static_cast<double>(D);
  const double theta = 1 / std::pow(o.base, 2 * i / d), turn = 2 * std::numbers::pi;
  if (const auto* s = std::get_if<LinearRopeScaling>(&o.scaling)) return {theta / s->factor, 1};
  if (const auto* s = std::get_if<NtkRopeScaling>(&o.scaling)) {
    const double base = D > 2 ? o.base * std::pow(s->factor, d / (d - 2)) : o.base;
    return {std::pow(base, -2 * i / d), 1};
  }
  if (const auto* s = std::get_if<YarnRopeScaling>(&o.scaling)) {
    const auto index = [&](double rotations) {
      return d * std::log(static_cast<double>(s->original_max_position) / (rotations * turn)) /
             (2 * std::log(o.base));
    };
    double low = index(s->beta_fast), high = index(s->beta_slow);
    if (s->truncate) low = std::floor(low), high = std::ceil(high);
    low = std::max(low, 0.0), high = std::min(high, d - 1);
    if (low == high) high += 0.001;
    const double ramp = std::min(1.0, std::max(0.0, (i - low) / (high - low)));
    const double mscale = s->attention_factor.value_or(0.1 * std::log(s->factor) + 1);
    return {theta / s->factor * ramp + theta * (1 - ramp), mscale};
  }
  if (const auto* s = std::get_if<Llama3RopeScaling>(&o.scaling)) {
    const auto old = static_cast<double>(s->original_max_position);
    const double wavelength = turn / theta;
    if (wavelength < old / s->high_freq_factor) return {theta, 1};
    if (wavelength > old / s->low_freq_factor) return {theta / s->factor, 1};
    const double smooth =
        (old / wavelength - s->low_freq_factor) / (s->high_freq_factor - s->low_freq_factor);
    return {(1 - smooth) * theta / s->factor + smooth * theta, 1};
  }
  return {theta, 1};
}

/// Row by row and pair by pair in float64. x [B, L, D], positions [L].
torch::Tensor by_definition(const torch::Tensor& x, const RopeOptions& o,
                            const std::vector<int64_t>& positions) {
  auto y = x.to(torch::kFloat64).clone();
  const int64_t D = o.dimensions.value_or(x.size(2)), P = D / 2;
  const auto in = x.to(torch::kFloat64);
  for (size_t row = 0; row < positions.size(); ++row) {
    for (int64_t i = 0; i < P; ++i) {
      const auto [frequency, factor] = by_definition(o, D, i);
      const double angle = static_cast<double>(positions[row]) * frequency;
      const bool halves = o.pairs == RopePairs::kHalves;
      const int64_t l = static_cast<int64_t>(row), first = halves ? i : 2 * i,
                    second = halves ? i + P : 2 * i + 1;
      const auto a = in.select(1, l).select(1, first), b = in.select(1, l).select(1, second);
      y.select(1, l).select(1, first).copy_(factor * (a * std::cos(angle) - b * std::sin(angle)));
      y.select(1, l).select(1, second).copy_(factor * (b * std::cos(angle) + a * std::sin(angle)));
    }
  }
  return y;
}

TEST(Rope, EveryFormIsItsFormula) {
  torch::manual_seed(11);
  const std::vector<int64_t> positions{0, 1, 63, 4095, 100003, (1 << 20) - 1, 1 << 20};
  const auto at = torch::tensor(positions);
  for (const int64_t D : {int64_t{8}, int64_t{64}, int64_t{128}}) {
    const auto x = torch::randn({2, at.size(0), D}, torch::kFloat64);
    for (const auto& [name, options] : forms(D)) {
      auto o = options;
      o.positions = at;
      const auto want = by_definition(x, o, positions);
      // An angle of 2^20 has an error of 2^20 * 2^-53 in either.
      EXPECT_LE((apply_rope(x, o) - want).abs().max().item<double>(), 5e-9) << name << " D=" << D;
      o.positions = at.slice(0, 0, 4);
      EXPECT_LE((apply_rope(x.slice(1, 0, 4), o) - want.slice(1, 0, 4)).abs().max().item<double>(),
                2e-11)
          << name << " D=" << D;
      const auto f = rope_frequencies(options, D);
      const int64_t turned = options.dimensions.value_or(D);
      ASSERT_EQ(f.radians.size(0), turned / 2);
      for (int64_t i = 0; i < turned / 2; ++i) {
        const auto [frequency, factor] = by_definition(options, turned, i);
        EXPECT_NEAR(f.radians[i].item<double>() / frequency, 1, 1e-13) << name;
        EXPECT_DOUBLE_EQ(f.attention_factor, factor) << name;
      }
    }
  }
}

TEST(Rope, EveryFormInLowTypesAndStrides) {
  torch::manual_seed(12);
  const std::vector<int64_t> positions{1, 777, 1 << 20};
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
    // Heads split from rows, columns of a wider tensor, and features apart.
    const auto rows = torch::randn({2, 3, 32}).to(dtype);
    const auto wide = torch::randn({2, 3, 50}).to(dtype).slice(2, 7, 39);
    const auto apart = torch::randn({2, 32, 3}).to(dtype).transpose(1, 2);
    for (const auto& [name, options] : forms(32)) {
      auto o = options;
      o.positions = torch::tensor(positions);
      for (const auto& x : {rows, wide, apart}) {
        const auto got = apply_rope(x, o), want = by_definition(x, o, positions);
        EXPECT_EQ(got.scalar_type(), dtype);
        const double unit = dtype == torch::kFloat32 ? 2e-7 : dtype == torch::kHalf ? 1e-3 : 8e-3;
        const auto error = (got.to(torch::kFloat64) - want).abs();
        EXPECT_LE(error.max().item<double>(), unit * want.abs().max().item<double>()) << name;
      }
    }
  }
  // [B, H, L, D] as a view of [B, L, H D], with positions of each sequence.
  const auto x = torch::randn({2, 5, 3 * 8}, torch::kFloat64).view({2, 5, 3, 8}).transpose(1, 2);
  const auto at = torch::randint(0, 1000, {2, 5});
  const auto y = apply_rope(x, {.positions = at.unsqueeze(1), .pairs = RopePairs::kHalves});
  EXPECT_EQ(y.strides(), x.strides());
  for (int64_t b = 0; b < 2; ++b) {
    const std::vector<int64_t> mine(at[b].data_ptr<int64_t>(), at[b].data_ptr<int64_t>() + 5);
    const auto want = by_definition(x[b], {.pairs = RopePairs::kHalves}, mine);
    EXPECT_TRUE(torch::allclose(y[b], want, 1e-11, 1e-12));
  }
  // Expanded rows have no memory of their own.
  const auto one = torch::randn({1, 1, 8}, torch::kFloat64);
  EXPECT_TRUE(torch::equal(apply_rope(one.expand({3, 4, 8})),
                           apply_rope(one.expand({3, 4, 8}).contiguous())));
  const auto column = torch::randn({3, 4, 1}, torch::kFloat64).expand({3, 4, 8});
  EXPECT_TRUE(torch::equal(apply_rope(column), apply_rope(column.contiguous())));
}

TEST(Rope, EveryFormHasItsGradient) {
  torch::manual_seed(13);
  for (const auto& [name, options] : forms(8)) {
    auto x = torch::randn({2, 3, 8}, torch::kFloat64).requires_grad_();
    auto o = options;
    o.position_offset = 5;
    gradcheck([&] { return apply_rope(x, o).sin().sum(); }, {x}, name);
    gradgradcheck([&] { return apply_rope(x, o).sin().sum(); }, {x}, name);
  }
  // Nothing of x is kept: it may change between the passes.
  auto x = torch::randn({4, 8}).requires_grad_();
  const auto y = apply_rope(x);
  {
    torch::NoGradGuard no_grad;
    x.zero_();
  }
  y.square().sum().backward();
  EXPECT_TRUE(torch::allclose(x.grad().norm(), 2 * y.norm()));
  for (const auto dtype : {torch::kBFloat16, torch::kHalf}) {
    auto low = torch::randn({4, 8}).to(dtype).requires_grad_();
    apply_rope(low, {.pairs = RopePairs::kHalves}).sum().backward();
    const auto want = apply_rope(torch::ones({4, 8}, torch::kFloat64),
                                 {.positions = -torch::arange(4), .pairs = RopePairs::kHalves});
    EXPECT_LE((low.grad().to(torch::kFloat64) - want).abs().max().item<double>(), 0.01);
  }
}

TEST(Rope, OwnMemoryIsTurnedAsAnyOther) {
  for (const auto& form : forms(40)) {
    const auto frequencies = rope_frequencies(form.options, 40);
    for (const auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16, torch::kFloat16}) {
      for (const int64_t L : {1, 3, 9}) {
        const auto x = torch::randn({2, L, 3, 40}, dtype).transpose(1, 2);
        const auto by = core::rotation(frequencies, form.options.pairs, L, 5, {}, x);
        const auto want = core::rotate(x, by);
        auto y = x.clone();
        const auto* memory = y.const_data_ptr();
        core::rotate_own(y, by);
        EXPECT_TRUE(torch::equal(y, want)) << form.name << " " << dtype << " " << L;
        EXPECT_EQ(y.const_data_ptr(), memory);
        auto strided =
            torch::cat({x, x}, -1).unflatten(-1, {2, 40}).transpose(-1, -2).select(-1, 1);
        core::rotate_own(strided, by);
        EXPECT_TRUE(torch::equal(strided, want)) << form.name << " " << dtype << " " << L;
      }
    }
  }
  const auto x = torch::randn({1, 2, 1, 6}, torch::requires_grad()), kept = x.detach().clone();
  auto y = x;
  core::rotate_own(y, core::rotation(rope_frequencies({}, 6), {}, 1, 3, {}, x));
  EXPECT_TRUE(torch::equal(x, kept)) << "a gradient may need what it was";
  EXPECT_TRUE(torch::autograd::grad({y.sum()}, {x})[0].defined());
}

TEST(Rope, AnglesThatAThreadKeepsAreThoseThatAreAskedFor) {
  const auto a = rope_frequencies({}, 8), b = rope_frequencies({.base = 500}, 8),
             yarn = rope_frequencies(
                 {.scaling = YarnRopeScaling{.factor = 4, .original_max_position = 64}}, 8),
             none = rope_frequencies({}, 0), large = rope_frequencies({}, 4096);
  const auto f32 = torch::ones({1}), f64 = torch::ones({1}, torch::kFloat64);
  const auto check = [](const RopeFrequencies& f, RopePairs pairs, int64_t L, int64_t offset,
                        const torch::Tensor& like) {
    const auto got = core::rotation(f, pairs, L, offset, {}, like);
    const auto place = torch::arange(offset, offset + L, torch::kInt64);
    const auto want = core::rotation(f, pairs, L, 0, place, like);
    EXPECT_EQ(got.halves, want.halves);
    EXPECT_TRUE(torch::allclose(got.cos, want.cos, 0, 1e-6));
    EXPECT_TRUE(torch::allclose(got.sin, want.sin, 0, 1e-6));
    EXPECT_EQ(got.cos.scalar_type(), want.cos.scalar_type());
  };
  const auto check_all = [&] {
    for (int round = 0; round < 2; ++round) {
      for (const auto* f : {&none, &a, &b, &yarn, &large, &a}) {
        for (const auto pairs : {RopePairs::kHalves, RopePairs::kInterleaved}) {
          for (const int64_t L : {0, 1, 4}) {
            for (const int64_t offset : {int64_t{0}, int64_t{17}, int64_t{1} << 20}) {
              for (const auto& like : {f32, f64, f32}) check(*f, pairs, L, offset, like);
            }
          }
        }
      }
    }
  };
  std::thread other(check_all);
  check_all();
  other.join();
  {  // made for inference, asked for again with a gradient
    const c10::InferenceMode inference;
    check(a, RopePairs::kHalves, 1, 99, f32);
  }
  const auto x = torch::randn({1, 1, 1, 8}, torch::requires_grad());
  const auto y = core::rotate(x, core::rotation(a, RopePairs::kHalves, 1, 99, {}, x));
  const auto g = torch::autograd::grad({y.square().sum()}, {x}, {}, true, /*create_graph=*/true)[0];
  EXPECT_TRUE(torch::allclose(g, 2 * x));
  EXPECT_TRUE(torch::autograd::grad({g.sum()}, {x})[0].defined());
}

TEST(Rope, PrintsItsOptions) {
  const auto text = [](const RopeOptions& o) {
    std::ostringstream stream;
    stream << o;
    return stream.str();
  };
  EXPECT_EQ(text({}), "{base=10000, pairs=interleaved}");
  EXPECT_EQ(text({.base = 5e5,
                  .pairs = RopePairs::kHalves,
                  .dimensions = 16,
                  .scaling = LinearRopeScaling{.factor = 2}}),
            "{base=500000, pairs=halves, dimensions=16, scaling=linear(factor=2)}");
  EXPECT_NE(text({.scaling = YarnRopeScaling{.factor = 4, .original_max_position = 64}})
                .find("scaling=yarn(factor=4, original_max_position=64, beta_fast=32, beta_slow=1, "
                      "truncate=true)"),
            std::string::npos);
}

TEST(Rope, OptionsOutOfRange) {
  const auto x = torch::randn({3, 8});
  const auto bad = [&](const RopeOptions& o, std::vector<std::string> parts) {
    parts.push_back("apply_rope");
    expect_error([&] { apply_rope(x, o); }, parts);
    parts.back() = "rope_frequencies";
    expect_error([&] { rope_frequencies(o, 8); }, parts);
  };
  for (const int64_t n : {0, -2, 3, 10}) bad({.dimensions = n}, {"dimensions", std::to_string(n)});
  bad({.pairs = static_cast<RopePairs>(7)}, {"pairs", "7"});
  for (const double f : {0.5, 0.0, -1.0, 1e10, std::nan(""), double{INFINITY}}) {
    bad({.scaling = LinearRopeScaling{.factor = f}}, {"factor"});
    bad({.scaling = NtkRopeScaling{.factor = f}}, {"factor"});
    bad({.scaling = YarnRopeScaling{.factor = f, .original_max_position = 8}}, {"factor"});
    bad({.scaling = Llama3RopeScaling{.factor = f}}, {"factor"});
  }
  bad({.scaling = YarnRopeScaling{.factor = 2}}, {"original_max_position", "0"});
  bad({.scaling = Llama3RopeScaling{.original_max_position = -5}}, {"original_max_position", "-5"});
  const YarnRopeScaling yarn{.factor = 2, .original_max_position = 8};
  for (const double beta : {1.0, 0.5, std::nan(""), double{INFINITY}}) {
    auto s = yarn;
    s.beta_fast = beta;
    bad({.scaling = s}, {"beta_fast"});
  }
  for (const double beta : {0.0, -1.0, std::nan("")}) {
    auto s = yarn;
    s.beta_slow = beta;
    bad({.scaling = s}, {"beta_slow"});
  }
  for (const double factor : {0.0, -1.0, 1e10, 1e308, std::nan(""), double{INFINITY}}) {
    auto s = yarn;
    s.attention_factor = factor;
    bad({.scaling = s}, {"attention_factor"});
  }
  bad({.base = 1, .scaling = yarn}, {"base", "1"});
  bad({.scaling = Llama3RopeScaling{.low_freq_factor = 4}}, {"low_freq_factor", "4"});
  bad({.scaling = Llama3RopeScaling{.low_freq_factor = 0}}, {"low_freq_factor", "0"});
  bad({.scaling = Llama3RopeScaling{.high_freq_factor = double{INFINITY}}}, {"high_freq_factor"});
  for (const int64_t n : {int64_t{7}, int64_t{-2}, INT64_MAX - 1, INT64_MIN}) {
    expect_error([&] { rope_frequencies({}, n); }, {"rope_frequencies", "even", std::to_string(n)});
  }
  // An odd row may have an even number of features that turn.
  const auto odd = torch::randn({3, 7});
  EXPECT_TRUE(torch::equal(apply_rope(odd, {.dimensions = 4}).slice(1, 4), odd.slice(1, 4)));
}

TEST(Rope, KeepsLengthsAndWorksUnderInferenceMode) {
  auto x = torch::randn({4, 9, 8}, torch::kFloat64);
  {
    c10::InferenceMode guard;
    EXPECT_TRUE(torch::allclose(apply_rope(x).norm(2, -1), x.norm(2, -1)));
  }
  x.requires_grad_();
  gradcheck([&] { return apply_rope(x).sin().sum(); }, {x}, "rope");
  gradgradcheck([&] { return apply_rope(x).sin().sum(); }, {x}, "rope");
  EXPECT_EQ(apply_rope(torch::randn({2, 0, 4})).numel(), 0);
  EXPECT_EQ(apply_rope(torch::randn({2, 3, 0})).numel(), 0);
}

TEST(Rope, Errors) {
  expect_error([] { apply_rope(torch::randn({3, 5})); }, {"apply_rope", "even", "[3, 5]"});
  expect_error([] { apply_rope(torch::randn({4})); }, {"apply_rope", "[4]"});
  expect_error([] { apply_rope(torch::ones({3, 4}, torch::kInt64)); }, {"apply_rope", "Long"});
  expect_error([] { apply_rope(torch::randn({3, 4}).to_sparse()); }, {"apply_rope", "dense"});
  expect_error([] { apply_rope({}); }, {"apply_rope", "undefined"});
  for (const int64_t far :
       {std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()}) {
    expect_error(
        [&] {
          apply_rope(torch::randn({3, 4}), {.position_offset = far});
        },
        {"apply_rope", "position_offset", std::to_string(far)});
  }
  expect_error(
      [] {
        apply_rope(torch::randn({3, 4}), {.base = INFINITY});
      },
      {"apply_rope", "base"});
  expect_error([] { apply_rope(torch::randn({3, 4}), {.base = 0}); }, {"apply_rope", "base", "0"});
}

}  // namespace
}  // namespace attzoo::testing::rope_test
