#pragma once
// The sizes of a model's weights by config.json alone, to be held against those of a checkpoint
// before anything takes memory for them.

#include <attzoo/io/model_config.hpp>

#include <map>
#include <string>
#include <vector>

namespace generate {

using Sizes = std::map<std::string, std::vector<int64_t>>;

/// Of all parameters of LanguageModel(c), by their names.
inline Sizes sizes_of(const attzoo::ModelConfig& c) {
  const auto& a = c.attention;
  const int64_t width = a.d_model, hidden = c.block.mlp_hidden.value_or(4 * width);
  const int64_t head_dim = a.head_dim.value_or(width / a.num_query_heads);
  const int64_t queries = head_dim * a.num_query_heads, keys = head_dim * a.num_kv_heads;
  Sizes sizes;
  const auto linear = [&](const std::string& name, int64_t from, int64_t to, bool bias) {
    sizes[name + ".weight"] = {to, from};
    if (bias) sizes[name + ".bias"] = {to};
  };
  const auto norm = [&](const std::string& name) {
    sizes[name + ".weight"] = {width};
    if (c.block.norm == attzoo::NormKind::kLayerNorm) sizes[name + ".bias"] = {width};
  };
  sizes["embed.weight"] = {c.vocab, width};
  if (c.positions > 0) sizes["positions.weight"] = {c.positions, width};
  for (size_t i = 0; i < c.windows.size(); ++i) {
    const auto block = "layers." + std::to_string(i) + ".", attn = block + "attn.";
    norm(block + "norm_attn");
    linear(attn + "w_q", width, queries, a.bias);
    linear(attn + "w_k", width, keys, a.bias);
    linear(attn + "w_v", width, keys, a.bias);
    linear(attn + "w_o", queries, width, a.out_bias.value_or(a.bias));
    if (a.qk_norm) sizes[attn + "norm_q.weight"] = sizes[attn + "norm_k.weight"] = {head_dim};
    if (a.sinks) sizes[attn + "sinks"] = {a.num_query_heads};
    norm(block + "norm_mlp");
    if (c.experts) {
      const auto experts = block + "mlp.experts.";
      const int64_t count = c.experts->count;
      linear(block + "mlp.router", width, count, true);
      sizes[experts + "gate_up_proj"] = {count, width, 2 * hidden};
      sizes[experts + "gate_up_proj_bias"] = {count, 2 * hidden};
      sizes[experts + "down_proj"] = {count, hidden, width};
      sizes[experts + "down_proj_bias"] = {count, width};
    } else {
      linear(block + "mlp_in", width, hidden, c.block.mlp_bias);
      if (c.block.mlp_gated) linear(block + "mlp_gate", width, hidden, c.block.mlp_bias);
      linear(block + "mlp_out", hidden, width, c.block.mlp_bias);
    }
  }
  norm("norm");
  if (!c.tied) sizes["lm_head.weight"] = {c.vocab, width};
  return sizes;
}

/// Throws c10::ValueError that lists the tensors that are missing, extra or of another size.
inline void check_sizes(const attzoo::ModelConfig& c,
                        const std::map<std::string, torch::Tensor>& tensors) {
  TORCH_CHECK_VALUE(c.windows.size() <= tensors.size(), "config.json asks for ", c.windows.size(),
                    " layers, and the checkpoint has no more than ", tensors.size(), " tensors");
  attzoo::core::check_sizes(sizes_of(c), tensors, c.names, "the tensors do not fit config.json");
}

}  // namespace generate
