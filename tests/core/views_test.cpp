#include <gtest/gtest.h>
#include <attzoo/core/views.hpp>

#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <string>
#include <vector>

namespace attzoo::testing::views_test {
namespace {

struct Case {
  std::string name;
  torch::Tensor t;
  std::function<torch::Tensor(const torch::Tensor&)> core, plain;
};

std::vector<Case> cases() {
  const auto split = [](const auto& t) { return core::split_heads(t, 4); };
  const auto plain_split = [](const auto& t) {
    return t.view({t.size(0), t.size(1), t.size(2) / 4, 4}).transpose(1, 2);
  };
  const auto join = [](const auto& t) { return core::join_heads(t); };
  const auto plain_join = [](const auto& t) { return t.transpose(1, 2).flatten(2); };
  const auto rows = [](const auto& t) { return core::view_rows(t, 2, 3); };
  const auto plain_rows = [](const auto& t) { return t.narrow(2, 2, 3); };
  const auto wide = torch::randn({2, 5, 24}), heads = torch::randn({2, 3, 5, 4});
  return {
      {"split", torch::randn({2, 5, 12}), split, plain_split},
      {"split a part", wide.slice(2, 8, 20), split, plain_split},
      {"split every other", wide.slice(2, 0, 24, 2), split, plain_split},
      {"split half types", torch::randn({1, 1, 8}, torch::kBFloat16), split, plain_split},
      {"split negated", at::_neg_view(torch::randn({2, 5, 12})), split, plain_split},
      {"split none", torch::randn({0, 5, 12}), split, plain_split},
      {"join", torch::randn({2, 5, 3, 4}).transpose(1, 2), join, plain_join},
      {"join heads apart", heads, join, plain_join},
      {"join one token", torch::randn({2, 3, 1, 4}), join, plain_join},
      {"join one head", torch::randn({2, 1, 5, 4}), join, plain_join},
      {"join gaps", torch::randn({2, 5, 3, 8}).slice(3, 0, 4).transpose(1, 2), join, plain_join},
      {"rows", heads, rows, plain_rows},
      {"rows of a part", torch::randn({4, 3, 9, 4}).slice(0, 1, 3).slice(2, 1), rows, plain_rows}};
}

TEST(Views, AreATens) {
  const torch::NoGradGuard no_grad;
  for (const auto& c : cases()) {
    const auto got = c.core(c.t), want = c.plain(c.t);
    EXPECT_TRUE(torch::equal(got, want)) << c.name;
    EXPECT_EQ(got.scalar_type(), want.scalar_type()) << c.name;
    if (want.is_alias_of(c.t)) {
      EXPECT_TRUE(got.is_alias_of(c.t)) << c.name;
      const auto before = c.t._version();
      got.zero_();  // whoever keeps the tensor must notice
      EXPECT_GT(c.t._version(), before) << c.name;
    }
  }
}

TEST(Views, HaveDerivatives) {
  for (const auto& c : cases()) {
    const auto x = c.t.detach().clone().requires_grad_();
    const auto weight = torch::randn_like(c.plain(c.t));
    const auto got = torch::autograd::grad({(c.core(x) * weight).sum()}, {x})[0];
    const auto want = torch::autograd::grad({(c.plain(x) * weight).sum()}, {x})[0];
    EXPECT_TRUE(torch::equal(got, want)) << c.name;
    const torch::NoGradGuard no_grad;
    const auto level = torch::autograd::forward_ad::enter_dual_level();
    const auto dual =
        torch::_make_dual(x.detach(), torch::ones_like(x), static_cast<int64_t>(level));
    const bool kept = c.core(dual)._fw_grad(level).defined();
    torch::autograd::forward_ad::exit_dual_level(level);
    EXPECT_TRUE(kept) << c.name;
  }
}

TEST(Views, UnderInferenceMode) {
  const auto before = cases();
  const c10::InferenceMode inference;
  for (const auto& all : {before, cases()}) {
    for (const auto& c : all) {
      const auto got = c.core(c.t), want = c.plain(c.t);
      EXPECT_EQ(got.is_inference(), want.is_inference()) << c.name;
      EXPECT_TRUE(torch::equal(got, want)) << c.name;
    }
  }
}

}  // namespace
}  // namespace attzoo::testing::views_test
