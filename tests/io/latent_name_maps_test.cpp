#include <gtest/gtest.h>
#include <attzoo/io/recurrent_name_maps.hpp>
#include <attzoo/module/transformer.hpp>

#include <filesystem>

#include "golden_mla.hpp"

namespace attzoo::testing::latent_name_maps_test {
namespace {

/// Reference layers by upstream names: outputs and all gradients.
TEST(LatentNameMaps, GivesTheReferencesNumbers) {
  int cases = 0;
  const auto folder = std::filesystem::path(ATTZOO_SOURCE_DIR) / "tests/golden-modern";
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (file.path().extension() != ".safetensors") continue;
    Report report;
    if (!check_mla(modern_case(load_safetensors(file.path())), report)) continue;
    ++cases;
    for (const auto& failure : report.failures) {
      ADD_FAILURE() << file.path().filename() << ": " << failure;
    }
  }
  EXPECT_EQ(cases, 4);
}

/// There and back, in a block, under the names of either model.
TEST(LatentNameMaps, ThereAndBack) {
  torch::manual_seed(1);
  for (const auto& q_rank : {std::optional<int64_t>(), {5}}) {
    const MultiHeadLatentAttention attn({.d_model = 12, .num_heads = 3, .q_rank = q_rank});
    const TransformerBlockOptions llama{.mlp_hidden = 8,
                                        .norm = NormKind::kRMSNorm,
                                        .activation = Activation::kSilu,
                                        .mlp_gated = true,
                                        .mlp_bias = false};
    const auto block = transformer_block(attn, llama);
    for (const auto& names : {names::deepseek(), names::kimi_linear()}) {
      std::string wrong;
      const auto own = state_dict(*block);
      const auto there = core::upstream_tensors(own, names, wrong);
      EXPECT_EQ(wrong, "");
      EXPECT_TRUE(there.count("self_attn.kv_a_proj_with_mqa.weight"));
      EXPECT_TRUE(
          there.count(q_rank ? "self_attn.q_a_layernorm.weight" : "self_attn.q_proj.weight"));
      auto other = transformer_block(MultiHeadLatentAttention(attn->get_config()), llama);
      load_state_dict(*other, there, names);
      for (const auto& [name, t] : state_dict(*other)) {
        EXPECT_TRUE(torch::equal(t, own.at(name))) << name;
      }
    }
  }
}

}  // namespace
}  // namespace attzoo::testing::latent_name_maps_test
