// recurrence(): chunks against the definition, token by token, and reference cases.

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/core/recurrence/by_tensors.hpp>
#include <attzoo/core/recurrence/recur.hpp>
#include <attzoo/functional/debug.hpp>
#include <attzoo/functional/recurrence.hpp>

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "golden_recurrence.hpp"
#include "support/error_rule.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"
#include "support/peak_memory.hpp"

namespace attzoo::testing::recurrence_test {
namespace {

TEST(Recurrence, GivesTheReferencesNumbers) {
  int cases = 0;
  const auto folder = std::filesystem::path(ATTZOO_SOURCE_DIR) / "tests/golden-modern";
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (file.path().extension() != ".safetensors") continue;
    auto tensors = load_safetensors(file.path());
    if (!recurrent_ops().count(tensors.metadata.at("op"))) continue;
    ++cases;
    Report report;
    check_recurrence(modern_case(std::move(tensors)), report);
    for (const auto& failure : report.failures) {
      ADD_FAILURE() << file.path().filename() << ": " << failure;
    }
  }
  EXPECT_EQ(cases, 43);
}

struct Sizes {
  int64_t B = 2, H = 2, HV = 2, n = 80, F = 5, E = 3;
};

/// Inputs of every kind that recurrence() takes.
struct Problem {
  std::string name;
  torch::Tensor q, k, v;
  RecurrenceOptions options;

  std::vector<torch::Tensor> tensors() const {
    std::vector<torch::Tensor> all{q, k, v};
    for (const auto& t : {options.decay, options.beta, options.erase, options.a, options.b,
                          options.initial_state}) {
      if (t.defined()) all.push_back(t);
    }
    return all;
  }
  RecurrenceResult run() const { return recurrence(q, k, v, options); }
  RecurrenceResult by_definition() const {
    const EagerReferenceGuard guard;
    return run();
  }
  void apply(const std::function<torch::Tensor(const torch::Tensor&)>& f) {
    for (auto* t : {&q, &k, &v, &options.decay, &options.beta, &options.erase, &options.a,
                    &options.b, &options.initial_state}) {
      if (t->defined()) *t = f(*t);
    }
  }
};

std::vector<Problem> problems(const Sizes& s) {
  const auto random = [](std::vector<int64_t> sizes) {
    return torch::randn(sizes, torch::kFloat64);
  };
  const auto logs = [&](std::vector<int64_t> sizes) {
    return torch::log_sigmoid(2 * random(std::move(sizes)));
  };
  const std::vector<std::pair<std::string, torch::Tensor>> decays{
      {"no decay", {}},
      {"decay of heads", logs({s.HV})},
      {"decay of tokens", logs({s.B, s.HV, s.n})},
      {"decay of channels", logs({s.B, s.HV, s.n, s.F})}};
  std::vector<Problem> all;
  for (const auto& [name, decay] : decays) {
    const auto unit = [&](const torch::Tensor& t) { return t / t.norm(2, -1, true); };
    const auto k = unit(random({s.B, s.H, s.n, s.F}));
    const Problem plain{
        name, random({s.B, s.H, s.n, s.F}), k, random({s.B, s.HV, s.n, s.E}), {.decay = decay}};
    all.push_back(plain);
    auto delta = plain;
    delta.name += ", delta rule";
    delta.options.beta = torch::rand({s.B, s.HV, s.n}, torch::kFloat64);
    delta.options.initial_state = random({s.B, s.HV, s.F, s.E});
    all.push_back(delta);
    delta.name += " with erase";
    delta.options.erase = unit(random({s.B, s.HV, s.n, s.F}));
    all.push_back(delta);
    auto low_rank = plain;
    low_rank.name += ", a and b";
    low_rank.options.a = -k;
    low_rank.options.b = k * torch::rand({s.B, s.H, s.n, 1}, torch::kFloat64);
    low_rank.options.scale = 1.0;
    all.push_back(low_rank);
  }
  return all;
}

TEST(Recurrence, IsItsDefinition) {
  torch::manual_seed(1);
  for (const int64_t n : {1, 4, 5, 63, 64, 65, 150}) {
    for (const auto& p : problems({.HV = 4, .n = n})) {
      for (const bool packed : {false, true}) {
        auto x = p;
        if (packed && n > 2) {
          x.options.documents.ids = torch::randint(3, {2, n}).cumsum(1).div(2 * n / 5 + 1, "floor");
        }
        const auto got = x.run(), gold = x.by_definition();
        const auto what = c10::str(p.name, ", n=", n, packed ? ", packed" : "");
        expect_within_rule(got.output, gold.output, gold.output, 2, 512, what);
        expect_within_rule(got.state, gold.state, gold.state, 2, 512, what + ": state");
      }
    }
  }
}

TEST(Recurrence, HasItsDefinitionsGradients) {
  torch::manual_seed(2);
  for (auto& p : problems({.HV = 4, .n = 70})) {
    for (const bool packed : {false, true}) {
      if (packed) p.options.documents.ids = torch::arange(70).div(29, "floor");
      p.apply([](const torch::Tensor& t) { return t.detach().clone().requires_grad_(); });
      const auto of_output = torch::randn({2, 4, 70, 3}, torch::kFloat64);
      const auto of_state = torch::randn({2, 4, 5, 3}, torch::kFloat64);
      const auto gradients = [&](const RecurrenceResult& y) {
        return torch::autograd::grad({y.output, y.state}, p.tensors(), {of_output, of_state},
                                     std::nullopt, false, /*allow_unused=*/true);
      };
      const auto got = gradients(p.run()), gold = gradients(p.by_definition());
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_TRUE(got[i].defined() && gold[i].defined()) << p.name << i;
        expect_within_rule(got[i], gold[i], gold[i], 3, 2048, c10::str(p.name, ", gradient ", i));
      }
    }
  }
}

TEST(Recurrence, HasRightDerivatives) {
  torch::manual_seed(3);
  for (auto& p : problems({.B = 1, .H = 1, .HV = 2, .n = 6, .F = 2, .E = 2})) {
    p.apply([](const torch::Tensor& t) { return t.detach().clone().requires_grad_(); });
    const auto w = torch::randn({1, 2, 6, 2}, torch::kFloat64);
    const auto u = torch::randn({1, 2, 2, 2}, torch::kFloat64);
    const auto f = [&] {
      const auto y = p.run();
      return (y.output * w).sum() + (y.state * u).sum();
    };
    gradcheck(f, p.tensors(), p.name);
    gradgradcheck(f, p.tensors(), p.name);
  }
}

TEST(Recurrence, FollowsTheErrorRuleInOtherTypes) {
  torch::manual_seed(4);
  const auto learning = [](const Problem& p, torch::ScalarType dtype) {
    auto x = p;
    x.apply([&](const torch::Tensor& t) {
      const bool is_state = t.sizes() == p.options.initial_state.sizes();
      return t.to(is_state && dtype != torch::kFloat64 ? torch::kFloat32 : dtype).requires_grad_();
    });
    return x;
  };
  for (const Sizes& n : {Sizes{.n = 200, .F = 16, .E = 16}, Sizes{.n = 150, .F = 40, .E = 72},
                         Sizes{.B = 1, .H = 1, .HV = 1, .n = 150, .F = 40, .E = 128}}) {
    for (auto p : problems(n)) {
      if (!p.options.initial_state.defined()) {
        p.options.initial_state = torch::randn({n.B, n.HV, n.F, n.E}, torch::kFloat64);
      }
      const auto weights = torch::randn({n.B, n.HV, n.n, n.E}, torch::kFloat64);
      const auto both = [&](const Problem& x, const RecurrenceResult& y) {
        return torch::autograd::grad({(y.output * weights.to(y.output.scalar_type())).sum()},
                                     x.tensors());
      };
      for (const auto dtype : {torch::kFloat32, torch::kBFloat16, torch::kHalf}) {
        const auto rounded = learning(p, dtype);
        // Inputs are drawn in the type that is tested, then widened.
        const auto gold = learning(
            [&] {
              auto x = rounded;
              x.apply([](const torch::Tensor& t) { return t.detach(); });
              return x;
            }(),
            torch::kFloat64);
        const auto want = gold.by_definition(), own = rounded.by_definition(), got = rounded.run();
        EXPECT_EQ(got.output.scalar_type(), dtype);
        EXPECT_EQ(got.state.scalar_type(), torch::kFloat32);
        const auto what = c10::str(p.name, " ", dtype);
        expect_within_rule(got.output, want.output, own.output, 2, n.n, what);
        const auto d_want = both(gold, want), d_own = both(rounded, own),
                   d_got = both(rounded, got);
        for (size_t i = 0; i < d_got.size(); ++i) {
          // That of a head's decay sums up what tokens' have, which are tested, and may cancel.
          if (d_got[i].dim() == 1 && dtype != torch::kFloat32) continue;
          expect_within_rule(d_got[i], d_want[i], d_own[i], 3, 2 * n.n,
                             c10::str(what, ", gradient ", i));
        }
      }
    }
  }
}

/// Neither overflows nor loses what small decays leave behind large ones.
TEST(Recurrence, KeepsItsDigitsUnderStrongDecays) {
  torch::manual_seed(5);
  torch::NoGradGuard no_grad;
  const int64_t n = 65536;
  for (const int64_t channels : {1, 4}) {
    auto decay = -torch::rand({1, 1, n, channels}, torch::kFloat64) * 0.01;
    decay =
        torch::where(torch::rand({1, 1, n, channels}) < 0.05, -50 * torch::rand_like(decay), decay);
    const auto k = torch::randn({1, 1, n, 4}, torch::kFloat64),
               v = torch::randn({1, 1, n, 2}, torch::kFloat64),
               q = torch::randn({1, 1, n, 4}, torch::kFloat64);
    const auto logs = channels == 1 ? decay.squeeze(-1) : decay;
    const auto gold = recurrence(q, k, v, {.decay = logs}).output;
    const auto narrow = [](const torch::Tensor& t) { return t.to(torch::kFloat32); };
    const auto got = recurrence(narrow(q), narrow(k), narrow(v), {.decay = narrow(logs)}).output;
    const double error = (got - gold).abs().max().item<double>();
    EXPECT_LT(error, 1e-5 * gold.abs().max().item<double>()) << channels;
    // What came before a token that forgets everything has no effect.
    auto forgets = logs.clone();
    forgets.select(2, 300).fill_(-std::numeric_limits<double>::infinity());
    const auto whole = recurrence(q, k, v, {.decay = forgets}).output;
    const auto rest = recurrence(q.slice(2, 300), k.slice(2, 300), v.slice(2, 300),
                                 {.decay = forgets.slice(2, 300)})
                          .output;
    expect_within_rule(whole.slice(2, 300), rest, rest, 2, 64, "behind a decay of -inf");
  }
}

TEST(Recurrence, NeverLooksAhead) {
  torch::manual_seed(6);
  for (const auto& p : problems({.n = 130})) {
    auto later = p;
    later.apply([](const torch::Tensor& t) {
      if (t.dim() < 3 || t.size(2) != 130) return t;
      return torch::cat({t.slice(2, 0, 97), torch::randn_like(t.slice(2, 97)) - 3}, 2);
    });
    EXPECT_TRUE(torch::equal(later.run().output.slice(2, 0, 97), p.run().output.slice(2, 0, 97)))
        << p.name;
  }
}

/// What is no number in a token changes nothing before it and nothing in other documents, by chunks
/// of tensors as by the kernel.
TEST(Recurrence, NoNumberGoesBackInTime) {
  torch::manual_seed(12);
  constexpr int64_t n = 150, t = 100;
  const auto draw = [](int64_t features) {
    return torch::rand({1, 2, n, features}, torch::kFloat64) / 4;
  };
  for (const int64_t decays : {0, 1, 5}) {
    for (const bool delta : {false, true}) {
      for (const bool rewrites : {false, true}) {
        if (delta && rewrites) continue;
        core::Recurrence x{.q = draw(5), .k = draw(5), .v = draw(3)};
        if (decays > 0) x.decay = -draw(decays);
        x.delta = delta;
        if (rewrites) x.a = draw(5), x.b = draw(5);
        x.state = torch::rand({1, 2, 5, 3}, torch::kFloat64);
        const auto both = [&] {
          return std::pair{core::by_tensors::Chunks(x).run().out, core::recur(x).out};
        };
        const auto [by_tensors, fused] = both();
        for (auto* input : {&x.q, &x.k, &x.v, &x.a, &x.b}) {
          if (input->defined()) input->select(2, t).fill_(std::nan(""));
        }
        const auto [spoilt_tensors, spoilt] = both();
        const auto before = [&](const torch::Tensor& all) { return all.slice(2, 0, t); };
        EXPECT_TRUE(torch::equal(before(spoilt), before(fused)));
        EXPECT_TRUE(torch::allclose(before(spoilt_tensors), before(by_tensors), 1e-12, 1e-14));
        x.run = (torch::arange(n) > t).to(torch::kInt64).unsqueeze(0);
        const auto [tensors_behind, behind] = both();
        EXPECT_TRUE(torch::isfinite(behind.slice(2, t + 1)).all().item<bool>());
        EXPECT_TRUE(
            torch::allclose(tensors_behind.slice(2, t + 1), behind.slice(2, t + 1), 1e-10, 1e-12));
      }
    }
  }
}

TEST(Recurrence, TakesAnyStrides) {
  torch::manual_seed(7);
  for (const auto& p : problems({})) {
    auto strided = p;
    strided.apply([](const torch::Tensor& t) {
      if (t.dim() < 3) return torch::stack({t, t}, -1).select(-1, 1);
      return t.transpose(1, 2).contiguous().transpose(1, 2);
    });
    EXPECT_TRUE(torch::allclose(strided.run().output, p.run().output, 1e-13, 1e-13)) << p.name;
  }
}

TEST(Recurrence, TakesMemoryForItsTokensAlone) {
  const auto bytes = [](int64_t n, int64_t length) {
    const auto of = [&](int64_t features) {
      return torch::randn({1, 2, n, features}).requires_grad_();
    };
    const auto q = of(16), k = of(16), v = of(16), g = of(16);
    const auto decay = -g.abs();
    const Documents documents{.ids = torch::arange(n).floor_divide(length)};
    PeakMemory memory;
    recurrence(q, k, v,
               {.decay = decay, .beta = torch::full({1, 2, n}, 0.1), .documents = documents})
        .output.sum()
        .backward();
    return static_cast<double>(memory.peak()) / static_cast<double>(n);
  };
  bytes(256, 256);
  const double at_2k = bytes(2048, 2048);
  EXPECT_LT(bytes(8192, 8192), 1.1 * at_2k);
  EXPECT_LT(bytes(8192, 1), 1.2 * at_2k);  // each document begins a chunk, but keeps no state
}

TEST(Recurrence, WritesOverItsStateWhereAsked) {
  torch::manual_seed(8);
  const torch::NoGradGuard no_grad;
  for (const int64_t n : {1, 3, 70}) {
    for (const bool strided : {false, true}) {
      for (auto p : problems({.n = n, .F = 20, .E = 18})) {
        auto& state = p.options.initial_state;
        if (!state.defined()) state = torch::randn({2, 2, 20, 18}, torch::kFloat64);
        const auto want = p.run();
        if (strided) state = state.transpose(2, 3).contiguous().transpose(2, 3);
        p.options.inplace = true;
        const auto version = state._version();
        const auto got = p.run();
        EXPECT_TRUE(got.state.is_same(state));
        EXPECT_GT(state._version(), version);
        EXPECT_TRUE(torch::equal(got.output, want.output)) << p.name << ", n = " << n;
        EXPECT_TRUE(torch::equal(state, want.state)) << p.name << ", n = " << n;
      }
    }
  }
}

TEST(Recurrence, TakesNothing) {
  for (const auto& p : problems({.n = 0})) {
    const auto y = p.run();
    EXPECT_EQ(y.output.sizes(), torch::IntArrayRef({2, 2, 0, 3})) << p.name;
    EXPECT_EQ(y.state.sizes(), torch::IntArrayRef({2, 2, 5, 3})) << p.name;
  }
}

TEST(Recurrence, NamesWhatDoesNotFit) {
  const auto q = torch::randn({2, 2, 6, 4}), v = torch::randn({2, 4, 6, 3});
  const auto refuse = [&](const RecurrenceOptions& o, const std::vector<std::string>& parts) {
    expect_error([&] { recurrence(q, q, v, o); }, parts);
  };
  expect_error([&] { recurrence(q, q.slice(2, 1), v); }, {"recurrence", "length of k"});
  expect_error([&] { recurrence(q.slice(2, 1), q, v); }, {"recurrence", "same shape"});
  expect_error([&] { recurrence(q, q, v.slice(1, 0, 3)); }, {"recurrence", "divide", "2 and 3"});
  expect_error([&] { recurrence(q, q, v.to(torch::kInt64)); }, {"recurrence"});
  refuse({.decay = torch::zeros({2})}, {"decay", "[B, HV, n, F]", "[2]"});
  refuse({.beta = torch::zeros({2, 2, 6})}, {"beta", "[B, HV, n]"});
  refuse({.beta = torch::zeros({2, 4, 6}, torch::kInt64)}, {"beta"});
  refuse({.erase = torch::zeros({2, 3, 6, 4})}, {"erase"});
  refuse({.a = q}, {"a and b come together"});
  refuse({.beta = torch::zeros({2, 4, 6}), .a = q, .b = q}, {"give either"});
  refuse({.scale = std::nan("")}, {"scale"});
  refuse({.initial_state = torch::zeros({2, 4, 3, 4})}, {"initial_state", "[B, HV, F, E]"});
  refuse({.initial_state = torch::zeros({2, 4, 4, 3}, torch::kFloat64)},
         {"initial_state", "Float"});
  refuse({.inplace = true}, {"inplace", "initial_state"});
  refuse({.initial_state = torch::zeros({2, 4, 4, 3}), .inplace = true},
         {"inplace", "NoGradGuard"});
  refuse({.documents = {.ids = torch::zeros({5}, torch::kInt64)}}, {"recurrence: documents"});
}

}  // namespace
}  // namespace attzoo::testing::recurrence_test
