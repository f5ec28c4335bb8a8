// Which parameters learn, by patterns of their names.

#include <gtest/gtest.h>
#include <attzoo/attzoo.hpp>

#include <set>
#include <string>
#include <vector>

#include "support/expect_error.hpp"

namespace attzoo::testing::freeze_test {
namespace {

using Names = std::vector<std::string>;

Stack two_blocks() {
  return Stack(transformer_block(MultiHeadSelfAttention(16, 2)),
               transformer_block(MultiHeadSelfAttention(16, 2)));
}

std::set<std::string> learning(const Stack& model) {
  std::set<std::string> names;
  for (const auto& item : model->named_parameters()) {
    if (item.value().requires_grad()) names.insert(item.key());
  }
  return names;
}

TEST(Freeze, TakesPatternsOfNames) {
  auto model = two_blocks();
  const auto all = learning(model);
  for (auto& t : model->parameters()) t.mutable_grad() = torch::ones_like(t);
  EXPECT_EQ(
      freeze(model, {"0.attn*", "*.mlp_*.bias"}),
      (Names{"0.attn.w_q.weight", "0.attn.w_k.weight", "0.attn.w_v.weight", "0.attn.w_o.weight",
             "0.mlp_in.bias", "0.mlp_out.bias", "1.mlp_in.bias", "1.mlp_out.bias"}));
  for (const auto& item : model->named_parameters()) {
    const auto& name = item.key();
    const bool frozen = name.starts_with("0.attn.") ||
                        (name.find(".mlp_") != std::string::npos && name.ends_with(".bias"));
    EXPECT_EQ(item.value().requires_grad(), !frozen) << name;
    EXPECT_EQ(item.value().grad().defined(), !frozen) << name;
  }
  EXPECT_EQ(unfreeze(model, {"*mlp_in.bias"}), (Names{"0.mlp_in.bias", "1.mlp_in.bias"}));
  EXPECT_EQ(unfreeze(model).size(), all.size());
  EXPECT_EQ(learning(model), all);
  EXPECT_EQ(freeze(model, {"1.norm_mlp.weight"}), Names{"1.norm_mlp.weight"});
  EXPECT_EQ(freeze(*model), model->named_parameters().keys());  // the module itself
  EXPECT_TRUE(learning(model).empty());
}

TEST(Freeze, RefusesPatternsThatMatchNothing) {
  auto model = two_blocks();
  const auto all = learning(model);
  expect_error(
      [&] {
        freeze(model, {"0.*", "0.attn", "embed.*"});
      },
      {"freeze", "\"0.attn\", \"embed.*\"", "0.attn.w_q.weight"});
  EXPECT_EQ(learning(model), all);
  expect_error([&] { unfreeze(model, {""}); }, {"unfreeze", "\"\""});
  expect_error([&] { freeze(Stack()); }, {"freeze", "\"*\""});
  EXPECT_TRUE(freeze(model, {}).empty());
}

TEST(Freeze, IsKeptByClones) {
  auto model = two_blocks();
  freeze(model, {"*norm*", "*w_k*"});
  const Stack copy(std::dynamic_pointer_cast<StackImpl>(model->clone()));
  EXPECT_EQ(learning(copy), learning(model));
  AnyAttention gate = gated(combined(MultiHeadSelfAttention(16, 2), LocalSelfAttention(16)));
  freeze(gate, {"*gate*"});
  const auto gate_copy = gate.clone();
  for (const auto& item : gate_copy->named_parameters()) {
    EXPECT_EQ(item.value().requires_grad(), item.key().find("gate") == std::string::npos);
  }
}

}  // namespace
}  // namespace attzoo::testing::freeze_test
