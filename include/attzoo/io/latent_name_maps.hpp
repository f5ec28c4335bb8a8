#pragma once
/// \file
/// NameMaps of models with latent attention; see io/name_maps.hpp.

#include <attzoo/io/name_maps.hpp>

#include <string>

namespace attzoo::names {

/// DeepSeek V2, V2-Lite, V3, R1 and Kimi K2, for MultiHeadLatentAttention. Experts and router keep
/// their names within the block, `mlp.*`, behind `moe_prefix` in the place of `mlp.`, where the
/// block has no dense MLP. So does what chooses tokens in V3.2, within the attention: `indexer.*`.
/// Example: `load_state_dict(*attn, tensors_under(tensors, "model.layers.0.self_attn."),
/// names::deepseek());`
ATTZOO_API NameMap deepseek(const std::string& moe_prefix = "mlp.");

}  // namespace attzoo::names

namespace attzoo::core {

/// The layers of latents, of a model that has Llama's names besides.
ATTZOO_API void add_latents(NameMap& attention);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_IO

namespace attzoo::core {

ATTZOO_API void add_latents(NameMap& attention) {
  attention.rename_layer("q_a_proj", "w_q_a")
      .rename("q_a_layernorm.weight", "norm_q_a.weight")
      .rename_layer("q_b_proj", "w_q_b")
      .rename_layer("kv_a_proj_with_mqa", "w_kv_a")
      .rename("kv_a_layernorm.weight", "norm_kv_a.weight")
      .rename_layer("kv_b_proj", "w_kv_b");
}

}  // namespace attzoo::core

namespace attzoo::names {

ATTZOO_API NameMap deepseek(const std::string& moe_prefix) {
  core::LlamaNames names;
  names.plain_queries().two_norms().gated_mlp();
  core::add_latents(names.attention);
  names.attention.rename("indexer.*", "indexer.*");
  names.block.rename("mlp.*", moe_prefix + "*");
  return names.finished();
}

}  // namespace attzoo::names

#endif
