// Linear recurrences, against their definition in float64.

#include <gtest/gtest.h>
#include <attzoo/kernel/recurrence/recurrence.hpp>

#include <cmath>
#include <string>

#include "support.hpp"

namespace attzoo::kernel {
namespace {

enum class Rule { kNone, kDelta, kDeltaWithP, kRewrites };

struct Sizes {
  int B, H, G, n, F, E;  // G value heads share one of queries and keys
  int decays;            // features of the decay
  Rule rule;
  bool documents;
};

/// All numbers of a problem, in T, and the problem.
template <class T>
struct Case {
  explicit Case(const Sizes& s) : sizes(s) {
    const int shared = s.H / s.G;
    const auto draw = [&](Buffer<T>& x, int heads, int features, unsigned seed) {
      x = random_numbers<T>(static_cast<size_t>(s.B * heads * s.n * features), seed);
      return HeadRows{view(x, heads, s.n, features), s.H / heads};
    };
    p.q = draw(q, shared, s.F, 1), p.k = draw(k, shared, s.F, 2), p.v = draw(v, s.H, s.E, 3);
    p.out = draw(out, s.H, s.E, 4);
    for (auto& x : k) x *= T(0.3);  // a delta rule with longer keys diverges
    if (s.decays > 0) {
      p.decay = draw(decay, s.H, s.decays, 5);
      for (auto& x : decay) x = -std::abs(x);
      p.decays = s.decays;
    }
    p.delta = s.rule == Rule::kDelta || s.rule == Rule::kDeltaWithP;
    if (p.delta) p.beta = draw(beta, s.H, 1, 6);
    if (s.rule == Rule::kDeltaWithP) p.p = draw(a, shared, s.F, 7);
    if (s.rule == Rule::kRewrites) p.a = draw(a, s.H, s.F, 7), p.b = draw(b, shared, s.F, 8);
    for (auto* x : {&a, &b}) {
      for (auto& number : *x) number *= T(0.2);
    }
    p.scale = 0.7;
    const auto states = static_cast<size_t>(s.B * s.H * s.F * s.E);
    first = random_numbers<T>(states, 9), last = random_numbers<T>(states, 10);
    p.first = first.data(), p.last = last.data();
    p.B = s.B, p.H = s.H, p.n = s.n, p.F = s.F, p.E = s.E;
    row.push_back(0);
    for (int i = 0; i < s.B; ++i) {
      for (int begin = 0, length = 5 + 17 * i; begin < s.n;) {
        const int end = s.documents ? std::min(s.n, begin + length) : s.n;
        for (int at = begin; at < end; at += kChunkTokens) {
          chunks.push_back({at, std::min(kChunkTokens, end - at), begin > 0 && at == begin});
        }
        begin = end;
        length += 60;
      }
      row.push_back(static_cast<int>(chunks.size()));
    }
    p.chunks = chunks.data(), p.row = row.data();
  }

  /// What the definition says, in float64: outputs, then the last states.
  std::vector<double> by_definition() const {
    const Sizes& s = sizes;
    std::vector<double> all;
    std::vector<double> states;
    for (int ib = 0; ib < s.B; ++ib) {
      for (int h = 0; h < s.H; ++h) head(ib, h, all, states);
    }
    all.insert(all.end(), states.begin(), states.end());
    return all;
  }

  void head(int ib, int h, std::vector<double>& all, std::vector<double>& states) const {
    const Sizes& s = sizes;
    const auto at = [&](const HeadRows& rows, const Buffer<T>& x, int t, int f) -> double {
      return x[static_cast<size_t>(rows.view.head(ib, h / rows.group) + t * rows.view.n + f)];
    };
    const auto E = static_cast<size_t>(s.E);
    std::vector<double> S(static_cast<size_t>(s.F) * E);
    for (size_t i = 0; i < S.size(); ++i)
      S[i] = first[static_cast<size_t>(ib * s.H + h) * S.size() + i];
    for (int c = row[static_cast<size_t>(ib)]; c < row[static_cast<size_t>(ib) + 1]; ++c) {
      const Chunk& chunk = chunks[static_cast<size_t>(c)];
      if (chunk.fresh) std::fill(S.begin(), S.end(), 0.0);
      for (int t = chunk.begin; t < chunk.begin + chunk.count; ++t) {
        for (size_t e = 0; e < E; ++e) all.push_back(token(at, t, e, S));
      }
    }
    states.insert(states.end(), S.begin(), S.end());
  }

  /// One column of the values.
  template <class At>
  double token(const At& at, int t, size_t e, std::vector<double>& S) const {
    const Sizes& s = sizes;
    double asked = 0, out_e = 0;
    for (int f = 0; f < s.F; ++f) {
      double& state = S[static_cast<size_t>(f * s.E) + e];
      if (s.rule == Rule::kRewrites) asked += at(p.a, a, t, f) * state;
      if (s.decays > 0) state *= std::exp(at(p.decay, decay, t, s.decays > 1 ? f : 0));
      if (p.delta) asked += (p.p.defined() ? at(p.p, a, t, f) : at(p.k, k, t, f)) * state;
    }
    double u = at(p.v, v, t, static_cast<int>(e));
    if (p.delta) u = at(p.beta, beta, t, 0) * (u - asked);
    for (int f = 0; f < s.F; ++f) {
      double& state = S[static_cast<size_t>(f * s.E) + e];
      state += at(p.k, k, t, f) * u;
      if (s.rule == Rule::kRewrites) state += at(p.b, b, t, f) * asked;
      out_e += p.scale * at(p.q, q, t, f) * state;
    }
    return out_e;
  }

  Sizes sizes;
  Buffer<T> q, k, v, out, decay, beta, a, b, first, last;
  std::vector<Chunk> chunks;
  std::vector<int> row;
  RecurrenceProblem p;
};

std::vector<Sizes> all_sizes() {
  std::vector<Sizes> all;
  for (const Rule rule : {Rule::kNone, Rule::kDelta, Rule::kDeltaWithP, Rule::kRewrites}) {
    for (const bool documents : {false, true}) {
      for (const int n : {1, 3, 8, 9, 64, 65, 150}) {
        for (const int decays : {0, 1, 21}) {
          all.push_back({2, 4, 2, n, 21, 37, decays, rule, documents});
        }
        all.push_back({1, 2, 1, n, 1, 1, 1, rule, documents});
        all.push_back({1, 8, 1, n, 16, 128, 16, rule, documents});
      }
    }
  }
  return all;
}

std::string text(const Sizes& s) {
  return "rule " + std::to_string(static_cast<int>(s.rule)) + " n " + std::to_string(s.n) + " F " +
         std::to_string(s.F) + " E " + std::to_string(s.E) + " decays " + std::to_string(s.decays) +
         " documents " + std::to_string(s.documents);
}

template <class T>
void expect_definition(double tolerance) {
  for (const Sizes& s : all_sizes()) {
    Case<T> x(s);
    Threads runtime(2);
    recur<T>(x.p, runtime);
    const auto want = x.by_definition();
    double largest = 0;
    for (const double number : want) largest = std::max(largest, std::abs(number));
    // Of the definition a head's rows are together, as in the tensors.
    for (size_t i = 0; i < want.size(); ++i) {
      const double got = i < x.out.size() ? x.out[i] : x.last[i - x.out.size()];
      ASSERT_NEAR(got, want[i], tolerance * largest) << text(s) << " number " << i;
    }
  }
}

TEST(Recurrence, IsItsDefinition) {
  expect_definition<double>(1e-12);
  expect_definition<float>(1e-5);
}

/// All results, of so many threads.
template <class T>
std::vector<Buffer<T>> results(Case<T>& x, int threads) {
  Threads runtime(threads);
  recur<T>(x.p, runtime);
  const Sizes& s = x.sizes;
  RecurrenceGradients d;
  std::vector<Buffer<T>> all(9);
  const auto make = [&](size_t i, int features) {
    all[i].resize(static_cast<size_t>(s.B * s.H * s.n * features));
    return view(all[i], s.H, s.n, features);
  };
  auto cotangent = random_numbers<T>(x.out.size(), 20),
       of_last = random_numbers<T>(x.last.size(), 21);
  d.d_out = view(cotangent, s.H, s.n, s.E);
  d.d_last = of_last.data();
  d.q = make(0, s.F), d.k = make(1, s.F), d.v = make(2, s.E);
  if (s.decays > 0) d.decay = make(3, s.decays);
  if (x.p.p.defined()) d.p = make(4, s.F);
  if (x.p.a.defined()) d.a = make(5, s.F), d.b = make(6, s.F);
  if (x.p.delta) d.beta = make(7, 1);
  all[8].resize(x.first.size());
  d.first = all[8].data();
  recur_backward<T>(x.p, d, runtime);
  all.push_back(x.out);
  all.push_back(x.last);
  return all;
}

TEST(Recurrence, DoesNotDependOnThreads) {
  for (const Rule rule : {Rule::kNone, Rule::kDelta, Rule::kRewrites}) {
    for (const int decays : {0, 1, 24}) {
      for (const int n : {5, 150}) {
        const Sizes s{1, 3, 1, n, 24, 130, decays, rule, false};
        Case<float> x(s);
        const auto want = results(x, 1);
        for (const int threads : {2, 4}) {
          Case<float> other(s);  // whose outputs nobody wrote
          const auto got = results(other, threads);
          for (size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(got[i] == want[i]) << i;
        }
      }
    }
  }
}

/// The gradient of a sum of all results, by differences.
TEST(Recurrence, GradientsAreDerivatives) {
  for (const Rule rule : {Rule::kNone, Rule::kDelta, Rule::kDeltaWithP, Rule::kRewrites}) {
    for (const int decays : {0, 1, 5}) {
      for (const bool documents : {false, true}) {
        Case<double> x({1, 2, 1, 90, 5, 3, decays, rule, documents});
        for (auto& decay : x.decay) decay *= documents ? 1 : 0.02;  // or nothing outlasts a chunk
        const auto d = results(x, 2);
        const auto c = random_numbers<double>(x.out.size(), 20),
                   c_last = random_numbers<double>(x.last.size(), 21);
        const auto f = [&] {
          Threads runtime(1);
          recur<double>(x.p, runtime);
          double sum = 0;
          for (size_t i = 0; i < c.size(); ++i) sum += c[i] * x.out[i];
          for (size_t i = 0; i < c_last.size(); ++i) sum += c_last[i] * x.last[i];
          return sum;
        };
        const auto check = [&](Buffer<double>& input, const Buffer<double>& gradient,
                               const char* name) {
          const size_t stride = input.size() < 200 ? 7 : 41;  // meets all features
          for (size_t i = 0; i < input.size(); i += stride) {
            const double was = input[i], step = 1e-6;
            input[i] = was + step;
            const double more = f();
            input[i] = was - step;
            const double less = f();
            input[i] = was;
            ASSERT_NEAR(gradient[i], (more - less) / (2 * step), 1e-5 * (1 + std::abs(gradient[i])))
                << text(x.sizes) << " " << name << " " << i;
          }
        };
        check(x.q, d[0], "q"), check(x.k, d[1], "k"), check(x.v, d[2], "v");
        if (decays > 0) check(x.decay, d[3], "decay");
        if (x.p.p.defined()) check(x.a, d[4], "p");
        if (x.p.a.defined()) check(x.a, d[5], "a"), check(x.b, d[6], "b");
        if (x.p.delta) check(x.beta, d[7], "beta");
        check(x.first, d[8], "first");
      }
    }
  }
}

/// What is no number in a token changes nothing before it, and nothing in other documents.
TEST(Recurrence, NoNumberGoesBackInTime) {
  for (const Rule rule : {Rule::kNone, Rule::kDelta, Rule::kDeltaWithP, Rule::kRewrites}) {
    for (const int decays : {0, 1, 16}) {
      const Sizes s{1, 1, 1, 150, 16, 16, decays, rule, false};
      Case<float> x(s);
      Threads runtime(1);
      recur<float>(x.p, runtime);
      const auto before = x.out;
      const size_t t = 100, row = 16;
      for (auto* input : {&x.q, &x.k, &x.v, &x.a, &x.b}) {
        if (input->size() > 0) (*input)[t * row + 3] = std::numeric_limits<float>::quiet_NaN();
      }
      recur<float>(x.p, runtime);
      for (size_t i = 0; i < t * row; ++i) ASSERT_EQ(x.out[i], before[i]) << text(s) << " " << i;
    }
  }
}

/// Long sums keep their digits: of n times the same value, each output is that value n times.
TEST(Recurrence, KeepsItsDigitsOverManyTokens) {
  constexpr int n = 100'000;
  Buffer<float> ones, v, out, last;
  for (auto* x : {&ones, &v, &out}) x->resize(n, 1);
  last.resize(1);
  for (auto& x : v) x = 0.1f;
  std::vector<Chunk> chunks;
  for (int at = 0; at < n; at += kChunkTokens)
    chunks.push_back({at, std::min(kChunkTokens, n - at)});
  const int row[] = {0, static_cast<int>(chunks.size())};
  RecurrenceProblem p;
  p.q = p.k = {view(ones, 1, n, 1)};
  p.v = {view(v, 1, n, 1)};
  p.out = {view(out, 1, n, 1)};
  p.last = last.data();
  p.B = p.H = p.F = p.E = 1;
  p.n = n;
  p.chunks = chunks.data();
  p.row = row;
  Threads runtime(1);
  recur<float>(p, runtime);
  double error = 0;
  for (int i = 0; i < n; ++i) {
    const double sum = 0.1f * double(i + 1);
    error = std::max(error, std::abs(out[static_cast<size_t>(i)] - sum) / sum);
  }
  EXPECT_LE(error, 5e-6);  // as one chain it is 1e-3
}

}  // namespace
}  // namespace attzoo::kernel
