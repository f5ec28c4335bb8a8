#include <gtest/gtest.h>
#include <attzoo/attzoo.hpp>

#include <filesystem>

#include "golden_recurrent_modules.hpp"
#include "support/expect_error.hpp"

namespace attzoo::testing::recurrent_name_maps_test {
namespace {

/// Reference layers by upstream names: outputs and all gradients.
TEST(RecurrentNameMaps, GivesTheReferencesNumbers) {
  int cases = 0;
  const auto folder = std::filesystem::path(ATTZOO_SOURCE_DIR) / "tests/golden-modern";
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (file.path().extension() != ".safetensors") continue;
    Report report;
    if (!check_recurrent_module(modern_case(load_safetensors(file.path())), report)) continue;
    ++cases;
    for (const auto& failure : report.failures) {
      ADD_FAILURE() << file.path().filename() << ": " << failure;
    }
  }
  EXPECT_EQ(cases, 5);
}

/// There and back: a module's tensors under upstream names are those that it was loaded from.
template <class Module>
void expect_round_trip(Module m, const NameMap& names, const std::vector<std::string>& upstream) {
  const auto own = state_dict(*m);
  std::string wrong;
  const auto there = core::upstream_tensors(own, names, wrong);
  EXPECT_EQ(wrong, "");
  for (const auto& name : upstream) EXPECT_TRUE(there.count(name)) << name;
  Module other(m->get_config());
  load_state_dict(*other, there, names);
  for (const auto& [name, t] : state_dict(*other))
    EXPECT_TRUE(torch::equal(t, own.at(name))) << name;
}

TEST(RecurrentNameMaps, ThereAndBack) {
  torch::manual_seed(1);
  const names::DeltaHeads heads{2, 6, 4, 5};
  const GatedDeltaNetOptions delta{
      .d_model = 12, .num_heads = 2, .num_value_heads = 6, .head_dim = 4, .value_head_dim = 5};
  expect_round_trip(GatedDeltaNet(delta), names::qwen3_next(3, heads),
                    {"in_proj_qkvz.weight", "in_proj_ba.weight", "conv1d.weight", "A_log",
                     "dt_bias", "norm.weight", "out_proj.weight"});
  const TransformerBlockOptions mlp{.mlp_hidden = 8};
  const auto block = transformer_block(GatedDeltaNet(delta), mlp);
  auto own = state_dict(*block);
  std::erase_if(own, [](const auto& item) { return !item.first.starts_with("attn."); });
  std::string wrong;
  const auto there = core::upstream_tensors(own, names::qwen3_next(3, heads), wrong);
  EXPECT_EQ(wrong, "");
  EXPECT_TRUE(there.count("linear_attn.in_proj_qkvz.weight"));
  expect_round_trip(KimiDeltaAttention(12, 3), names::kimi_linear(),
                    {"q_proj.weight", "conv1d.weight", "forget_gate.A_log",
                     "forget_gate.f_a_proj.weight", "g_b_proj.weight", "o_norm.weight"});
  expect_round_trip(Mamba2({.d_model = 12, .num_heads = 4, .state_size = 6, .num_groups = 2}),
                    names::mamba2(),
                    {"in_proj.weight", "conv1d.weight", "conv1d.bias", "A_log", "D", "dt_bias",
                     "norm.weight", "out_proj.weight"});
}

TEST(RecurrentNameMaps, NamesWhatDoesNotFit) {
  expect_error(
      [] {
        names::qwen3_next(2, {3, 4, 8, 8});
      },
      {"num_heads must divide", "num_heads=3", "num_value_heads=4"});
  GatedDeltaNet m({.d_model = 12, .num_heads = 2});
  const std::map<std::string, torch::Tensor> wrong{{"in_proj_qkvz.weight", torch::zeros({47, 12})}};
  expect_error(
      [&] {
        load_state_dict(*m, wrong, names::qwen3_next(2, {2, 2, 6, 6}));
      },
      {"in_proj_qkvz.weight", "2 heads of 24 rows", "[47, 12]"});
}

}  // namespace
}  // namespace attzoo::testing::recurrent_name_maps_test
