// What documents_contract.hpp, wrapper_contract.hpp and reset_parameters.hpp declare, compiled once
// for all modules.

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>

#include <limits>
#include <sstream>
#include <vector>

#include "support/documents_contract.hpp"
#include "support/expect_error.hpp"
#include "support/gradcheck.hpp"
#include "support/wrapper_contract.hpp"

namespace attzoo::testing {
namespace {

/// Two sequences of 40 tokens: the lengths of their documents, and the input that says so.
struct PackedCase {
  std::string name;
  std::vector<std::vector<int64_t>> lengths;
  Documents documents;
};

std::vector<PackedCase> packed_cases() {
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

}  // namespace

void expect_documents_are_alone(const AnyAttention& m, const AttentionInputs& inputs,
                                const std::string& what) {
  m->to(torch::kFloat64);
  m->eval();
  torch::manual_seed(12);
  for (const auto& packed : packed_cases()) {
    const std::string name = what + ", " + packed.name;
    auto x = torch::randn({2, 40, m.input_dim()}, torch::kFloat64).requires_grad_();
    const auto cotangent = torch::randn({2, 40, m.d_model()}, torch::kFloat64);
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
    EXPECT_EQ(weights.masked_select(elsewhere).abs().sum().item<double>(), 0) << name;
    EXPECT_TRUE(torch::allclose(got.weights.rows(9, 30), weights.slice(-2, 9, 30), 1e-12, 1e-14))
        << name;
    torch::autograd::variable_list leaves{x};
    for (const auto& p : m->parameters()) leaves.push_back(p);
    // Some parameters learn by another loss than the output's.
    const auto gradients = [&](const torch::Tensor& of) {
      return torch::autograd::grad({of}, leaves, {}, {}, false, /*allow_unused=*/true);
    };
    const auto own = gradients((got.output * cotangent).sum()), of_each = gradients(loss);
    for (size_t i = 0; i < leaves.size(); ++i) {
      EXPECT_EQ(own[i].defined(), of_each[i].defined()) << name << " gradient " << i;
      if (!own[i].defined() || !of_each[i].defined()) continue;
      EXPECT_TRUE(torch::allclose(own[i], of_each[i], 1e-8, 1e-10)) << name << " gradient " << i;
    }
  }
}

void expect_documents_are_apart(const AnyAttention& m, const std::string& what) {
  m->to(torch::kFloat64);
  m->eval();
  const auto second = torch::arange(40) >= 17;
  const auto run = [&](double value) {
    torch::manual_seed(13);
    const auto x = torch::randn({1, 40, m.input_dim()}, torch::kFloat64)
                       .masked_fill(second.unsqueeze(1), value)
                       .requires_grad_();
    const auto out = m(x, {.documents = {.ids = second.to(torch::kInt64)}}).output;
    const auto grad = torch::autograd::grad({out}, {x}, {torch::randn_like(out)})[0];
    return torch::stack({out.slice(1, 0, 17).sum(-1), grad.slice(1, 0, 17).sum(-1)});
  };
  EXPECT_TRUE(torch::allclose(run(std::numeric_limits<double>::quiet_NaN()), run(0), 1e-9, 1e-11))
      << what;
}

void expect_packs(const AnyAttention& m, const std::string& what) {
  expect_documents_are_alone(m, {}, what);
  expect_documents_are_apart(m, what);
  const auto none = torch::zeros({2, 0, m.input_dim()}, torch::kFloat64);
  const auto nobody = torch::zeros({0, 5, m.input_dim()}, torch::kFloat64);
  const auto zeros = torch::zeros({5}, torch::kInt64);
  EXPECT_EQ(m(none, {.documents = {.offsets = zeros.slice(0, 4)}}).output.numel(), 0) << what;
  EXPECT_EQ(m(none, {.documents = {.ids = zeros.slice(0, 5)}}).output.numel(), 0) << what;
  EXPECT_EQ(m(nobody, {.documents = {.ids = zeros}}).output.numel(), 0) << what;
  auto real = torch::ones({2, 40}, torch::kBool);
  real[0].slice(0, 12, 18) = false;  // a document's end, and a whole one
  real[1].slice(0, 38) = false;
  AttentionInputs all{.key_padding_mask = real, .causal = true};
  if (m.takes().positions) all.position_offset = 3;
  expect_documents_are_alone(m, all, what + ", causal, padded");
}

void expect_goes_on_as_alone(const AnyAttention& m, const std::string& what, int64_t beyond) {
  const torch::NoGradGuard no_grad;
  m->to(torch::kFloat64);
  m->eval();
  torch::manual_seed(14);
  constexpr int64_t kTokens = 130, kPrompt = 24;
  const auto x = torch::randn({2, kTokens + beyond, m.input_dim()}, torch::kFloat64);
  const auto feed = [&](AttentionInputs prompt) {
    prompt.causal = true;
    prompt.cache = m.make_cache(2, kTokens);
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

void expect_reset_parameters(const torch::nn::Module& m, const std::function<void()>& reset,
                             const std::function<std::shared_ptr<torch::nn::Module>()>& make) {
  const auto tensors = [](const torch::nn::Module& of) {
    auto all = of.named_parameters();
    all.update(of.named_buffers());
    return all;
  };
  const auto before = tensors(m);
  torch::optim::SGD optimizer(m.parameters(), 0.1);
  const torch::NoGradGuard no_grad;
  for (const auto& item : before) item.value().zero_();
  torch::manual_seed(11);
  reset();
  torch::manual_seed(11);
  const auto fresh = make();
  const auto after = tensors(m), want = tensors(*fresh);
  ASSERT_EQ(after.size(), want.size());
  for (const auto& item : after) {
    EXPECT_EQ(item.value().data_ptr(), before[item.key()].data_ptr()) << item.key();
    EXPECT_TRUE(torch::equal(item.value(), want[item.key()].to(item.value().scalar_type())))
        << item.key();
  }
  for (auto& p : m.parameters()) p.mutable_grad() = torch::ones_like(p);
  optimizer.step();
  for (const auto& p : m.named_parameters()) {
    EXPECT_TRUE(torch::allclose(p.value(), want[p.key()].to(p.value().scalar_type()) - 0.1))
        << p.key();
  }
}

void expect_lives_as_a_module(const AnyAttention& m, torch::nn::AnyModule any,
                              const std::string& name, const std::function<void()>& reset) {
  torch::manual_seed(3);
  m->to(torch::kFloat64);
  m->eval();
  const auto x = torch::randn({2, 6, m.input_dim()}, torch::kFloat64);
  const auto want = m(x).output;

  const auto copy = m.clone();
  EXPECT_TRUE(torch::equal(copy(x).output, want));
  ASSERT_EQ(copy->parameters().size(), m->parameters().size());
  for (const auto& p : copy->named_parameters()) {
    EXPECT_NE(p.value().data_ptr(), m->named_parameters()[p.key()].data_ptr()) << p.key();
  }

  const auto rebuilt = m.get_config()();
  rebuilt->to(torch::kFloat64);
  rebuilt->eval();
  EXPECT_FALSE(torch::equal(rebuilt(x).output, want));
  std::stringstream stream;
  torch::save(m.ptr(), stream);
  auto into = rebuilt.ptr();
  torch::load(into, stream);
  EXPECT_TRUE(torch::equal(rebuilt(x).output, want));

  EXPECT_TRUE(torch::equal(any.forward<AttentionResult>(x).output, want));
  const AttentionInputs causal{.causal = true};
  EXPECT_TRUE(torch::equal(any.forward<AttentionResult>(x, causal).output, m(x, causal).output));

  std::stringstream text;
  text << *m.ptr();
  EXPECT_NE(text.str().find("attzoo::" + name), std::string::npos);
  EXPECT_EQ(m(x.slice(0, 0, 0)).output.size(0), 0);
  expect_error([&] { m(x[0]); }, {"[batch, seq, input_dim"});
  expect_reset_parameters(*m.ptr(), reset, [&] { return m.get_config()().ptr(); });
}

void expect_gradients(const AnyAttention& m) {
  torch::manual_seed(4);
  m->to(torch::kFloat64);
  m->eval();
  auto x = torch::randn({2, 5, m.input_dim()}, torch::kFloat64).requires_grad_();
  Tensors leaves{x};
  for (const auto& p : m->parameters()) leaves.push_back(p);
  const auto cotangent = torch::randn({2, 5, m.d_model()}, torch::kFloat64);
  const auto f = [&] { return (m(x).output * cotangent).sum(); };
  gradcheck(f, leaves, m->name());
  gradgradcheck(f, {x}, m->name());
}

}  // namespace attzoo::testing
