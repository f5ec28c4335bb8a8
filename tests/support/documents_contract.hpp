#pragma once
/// \file
/// Packed batches: what a module makes of documents in one row is what it makes of each alone. And
/// caches, where tokens of one sequence stand behind padding or other documents.

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <attzoo/functional/result.hpp>
#include <attzoo/module/inputs.hpp>

#include <limits>
#include <string>
#include <vector>

namespace attzoo::testing {

/// Two sequences of 40 tokens: the lengths of their documents, and the input that says so.
struct PackedCase {
  std::string name;
  std::vector<std::vector<int64_t>> lengths;
  Documents documents;
};

inline std::vector<PackedCase> packed_cases() {
  const auto ids = [](const std::vector<int64_t>& numbers, const std::vector<int64_t>& lengths) {
    return torch::repeat_interleave(torch::tensor(numbers), torch::tensor(lengths));
  };
  const std::vector<int64_t> a{17, 1, 9, 13}, b{3, 37};
  const std::vector<int64_t> coprime{5, 6, 13, 16};  // a pattern that counts from the row's start
                                                     // stands elsewhere in one of them
  return {{"offsets", {a, a}, {.offsets = torch::tensor({0, 17, 18, 18, 27, 40}, torch::kInt32)}},
          {"ids", {a, a}, {.ids = ids({5, -2, int64_t{1} << 60, 0}, a)}},
          {"coprime starts", {coprime, coprime}, {.offsets = torch::tensor({0, 5, 11, 24, 40})}},
          {"ids of each sequence",
           {a, b},
           {.ids = torch::stack({ids({1, 2, 3, 4}, a), ids({7, 2}, b)})}}};
}

/// Output, weights, lse and every gradient. `inputs` may have key_padding_mask [2, 40],
/// global_attention [40] or [2, 40], mask [40, 40], causal and position_offset.
template <class Module>
void expect_documents_are_alone(Module& m, const AttentionInputs& inputs, const std::string& what) {
  m->to(torch::kFloat64);
  m->eval();
  torch::manual_seed(12);
  for (const auto& packed : packed_cases()) {
    const std::string name = what + ", " + packed.name;
    auto x = torch::randn({2, 40, m->input_dim()}, torch::kFloat64).requires_grad_();
    const auto cotangent = torch::randn({2, 40, m->d_model()}, torch::kFloat64);
    auto in = inputs;
    in.documents = packed.documents;
    const auto got = m(x, in);
    const torch::Tensor weights = got.weights;
    auto elsewhere = torch::ones_like(weights, torch::kBool);  // pairs of different documents
    auto loss = torch::zeros({}, torch::kFloat64);
    for (int64_t row = 0; row < 2; ++row) {
      int64_t begin = 0;
      for (const auto length : packed.lengths[static_cast<size_t>(row)]) {
        const int64_t end = begin + length;
        const auto cut = [&](const torch::Tensor& t) {  // [2, 40, ...] -> [1, length, ...]
          return t.slice(0, row, row + 1).slice(1, begin, end);
        };
        const auto square = [&](const torch::Tensor& t) {  // [..., 40, 40]
          return t.slice(-2, begin, end).slice(-1, begin, end);
        };
        auto alone = inputs;
        if (inputs.key_padding_mask.defined())
          alone.key_padding_mask = cut(inputs.key_padding_mask);
        if (inputs.mask.defined()) alone.mask = square(inputs.mask);
        if (inputs.global_attention.defined()) {
          alone.global_attention = cut(inputs.global_attention.expand({2, 40}));
        }
        const auto want = m(cut(x), alone);
        EXPECT_TRUE(torch::allclose(cut(got.output), want.output, 1e-9, 1e-11)) << name << begin;
        EXPECT_TRUE(torch::allclose(square(weights[row]), want.weights.tensor()[0], 1e-9, 1e-11))
            << name << begin;
        if (want.lse.defined()) {
          EXPECT_TRUE(torch::allclose(got.lse[row].slice(-1, begin, end), want.lse[0], 1e-9, 1e-11))
              << name << begin;
        }
        square(elsewhere[row]).fill_(false);
        loss = loss + (want.output * cut(cotangent)).sum();
        begin = end;
      }
    }
    EXPECT_EQ(weights.masked_select(elsewhere).abs().sum().template item<double>(), 0) << name;
    EXPECT_TRUE(torch::allclose(got.weights.rows(9, 30), weights.slice(-2, 9, 30), 1e-12, 1e-14))
        << name;
    torch::autograd::variable_list leaves{x};
    for (const auto& p : m->parameters()) leaves.push_back(p);
    const auto own = torch::autograd::grad({(got.output * cotangent).sum()}, leaves);
    const auto of_each = torch::autograd::grad({loss}, leaves);
    for (size_t i = 0; i < leaves.size(); ++i) {
      EXPECT_TRUE(torch::allclose(own[i], of_each[i], 1e-8, 1e-10)) << name << " gradient " << i;
    }
  }
}

/// A NaN in one document stays there, forward and backward.
template <class Module>
void expect_documents_are_apart(Module& m, const std::string& what) {
  m->to(torch::kFloat64);
  m->eval();
  const auto second = torch::arange(40) >= 17;
  const auto run = [&](double value) {
    torch::manual_seed(13);
    const auto x = torch::randn({1, 40, m->input_dim()}, torch::kFloat64)
                       .masked_fill(second.unsqueeze(1), value)
                       .requires_grad_();
    const auto out = m(x, {.documents = {.ids = second.to(torch::kInt64)}}).output;
    const auto grad = torch::autograd::grad({out}, {x}, {torch::randn_like(out)})[0];
    return torch::stack({out.slice(1, 0, 17).sum(-1), grad.slice(1, 0, 17).sum(-1)});
  };
  EXPECT_TRUE(torch::allclose(run(std::numeric_limits<double>::quiet_NaN()), run(0), 1e-9, 1e-11))
      << what;
}

/// The inputs that every module takes, together.
template <class Module>
void expect_packs(Module& m, const std::string& what) {
  expect_documents_are_alone(m, {}, what);
  expect_documents_are_apart(m, what);
  const auto none = torch::zeros({2, 0, m->input_dim()}, torch::kFloat64);
  const auto nobody = torch::zeros({0, 5, m->input_dim()}, torch::kFloat64);
  const auto zeros = torch::zeros({5}, torch::kInt64);
  EXPECT_EQ(m(none, {.documents = {.offsets = zeros.slice(0, 4)}}).output.numel(), 0) << what;
  EXPECT_EQ(m(none, {.documents = {.ids = zeros.slice(0, 5)}}).output.numel(), 0) << what;
  EXPECT_EQ(m(nobody, {.documents = {.ids = zeros}}).output.numel(), 0) << what;
  auto real = torch::ones({2, 40}, torch::kBool);
  real[0].slice(0, 12, 18) = false;  // a document's end, and a whole one
  real[1].slice(0, 38) = false;
  AttentionInputs all{.key_padding_mask = real, .causal = true};
  if (m->takes().positions) all.position_offset = 3;
  expect_documents_are_alone(m, all, what + ", causal, padded");
}

/// A cache whose sequences begin behind padding of their own, or behind documents of the prompt:
/// each goes on as it does alone. `beyond`: rows before the end of a whole pass that are not those
/// of a longer one.
template <class Module>
void expect_goes_on_as_alone(Module& m, const std::string& what, int64_t beyond = 0) {
  const torch::NoGradGuard no_grad;
  m->to(torch::kFloat64);
  m->eval();
  torch::manual_seed(14);
  constexpr int64_t kTokens = 130, kPrompt = 24;
  const auto x = torch::randn({2, kTokens + beyond, m->input_dim()}, torch::kFloat64);
  const auto feed = [&](AttentionInputs prompt) {
    prompt.causal = true;
    prompt.cache = m->make_cache(2, kTokens);
    std::vector<torch::Tensor> outputs{m(x.slice(1, 0, kPrompt), prompt).output};
    for (int64_t at = kPrompt, end = at; at < kTokens; at = end) {
      end = std::min(kTokens, at + 1 + at % 3);
      outputs.push_back(m(x.slice(1, at, end), {.causal = true, .cache = prompt.cache}).output);
    }
    return torch::cat(outputs, 1);
  };
  const auto expect_alone = [&](const torch::Tensor& got, int64_t row, int64_t begin, int64_t end,
                                const std::string& which) {
    const int64_t whole = end == kTokens ? end + beyond : end;
    const auto want = m(x.slice(0, row, row + 1).slice(1, begin, whole), {.causal = true}).output;
    EXPECT_TRUE(torch::allclose(got[row].slice(0, begin, end), want[0].slice(0, 0, end - begin),
                                1e-9, 1e-11))
        << what << ", " << which << ", tokens " << begin << " ... " << end;
  };
  auto real = torch::ones({2, kPrompt}, torch::kBool);
  real[0].slice(0, 0, 7) = false;
  real[1].slice(0, 0, 5) = false;
  const auto padded = feed({.key_padding_mask = real});
  expect_alone(padded, 0, 7, kTokens, "padded");
  expect_alone(padded, 1, 5, kTokens, "padded");
  const auto packed = feed({.documents = {.offsets = torch::tensor({0, 5, 11, 24})}});
  for (int64_t row = 0; row < 2; ++row) {
    expect_alone(packed, row, 0, 5, "packed");
    expect_alone(packed, row, 5, 11, "packed");
    expect_alone(packed, row, 11, kTokens, "packed");
  }
}

}  // namespace attzoo::testing
