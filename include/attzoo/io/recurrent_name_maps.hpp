#pragma once
/// \file
/// NameMaps of models with recurrent layers; see io/name_maps.hpp. Their mechanisms keep the
/// field's names: `conv`, `A_log`, `dt_bias`, `D`, `norm`.

#include <attzoo/io/latent_name_maps.hpp>
#include <attzoo/io/name_maps.hpp>

#include <cstdint>
#include <vector>

namespace attzoo::names {

/// The i-th of parts of these sizes, of the rows of each head, heads in order.
ATTZOO_API TensorChange part_of_heads(int64_t num_heads, size_t i,
                                      const std::vector<int64_t>& sizes);
/// The way back: such parts, which become one tensor again.
ATTZOO_API TensorJoin join_parts(int64_t num_heads, const std::vector<int64_t>& sizes);

/// The heads of a GatedDeltaNet, as its options say.
struct DeltaHeads {
  int64_t num_heads = 1;        ///< of queries and keys
  int64_t num_value_heads = 1;  ///< num_heads divides
  int64_t head_dim = 1;         ///< features of a query and a key
  int64_t value_head_dim = 1;   ///< features of a value
};

/// Qwen3-Next with both its kinds of blocks: attention as qwen3_next(num_heads), and Gated DeltaNet
/// (`linear_attn.*`), whose rows are grouped by heads of keys: [query, key, values, gates] of
/// in_proj_qkvz and [beta, decay] of in_proj_ba. Throws c10::ValueError unless num_heads divides
/// num_value_heads. Example:
/// `load_state_dict(*net, tensors, names::qwen3_next(16, {16, 32, 128, 128}));`
ATTZOO_API NameMap qwen3_next(int64_t num_heads, const DeltaHeads& linear);

/// The Kimi Delta Attention layers of Kimi Linear, as Hugging Face names them: one convolution over
/// queries, keys and values, `forget_gate.*`, A_log [1, 1, H, 1]; and its latent attention, as
/// deepseek(). Norms and the MLP of a block are Llama's.
ATTZOO_API NameMap kimi_linear();

/// Mamba-2: `backbone.layers.N.mixer.*` behind one norm, `embeddings`, `norm_f`.
ATTZOO_API NameMap mamba2();

}  // namespace attzoo::names

#ifdef ATTZOO_DEFINE_IO

#include <c10/util/Exception.h>

#include <numeric>
#include <utility>

namespace attzoo::names {

ATTZOO_API TensorChange part_of_heads(int64_t num_heads, size_t i,
                                      const std::vector<int64_t>& sizes) {
  const auto rows = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  const auto first =
      std::accumulate(sizes.begin(), sizes.begin() + static_cast<int64_t>(i), int64_t{0});
  return [=, count = sizes.at(i)](const torch::Tensor& t) {
    TORCH_CHECK_VALUE(t.dim() > 0 && t.size(0) == num_heads * rows, "expected ", num_heads,
                      " heads of ", rows, " rows, got ", t.sizes());
    return t.unflatten(0, {num_heads, rows}).narrow(1, first, count).flatten(0, 1);
  };
}

ATTZOO_API TensorJoin join_parts(int64_t num_heads, const std::vector<int64_t>& sizes) {
  return [=](const std::vector<torch::Tensor>& parts) {
    std::vector<torch::Tensor> by_head;
    for (size_t i = 0; i < parts.size(); ++i) {
      TORCH_CHECK_VALUE(parts[i].dim() > 0 && parts[i].size(0) == num_heads * sizes.at(i),
                        "expected ", num_heads, " heads of ", sizes.at(i), " rows, got ",
                        parts[i].sizes());
      by_head.push_back(parts[i].unflatten(0, {num_heads, sizes[i]}));
    }
    return torch::cat(by_head, 1).flatten(0, 1);
  };
}

ATTZOO_API NameMap qwen3_next(int64_t num_heads, const DeltaHeads& linear) {
  const auto& [H, HV, dk, dv] = linear;
  TORCH_CHECK_VALUE(H > 0 && HV > 0 && HV % H == 0,
                    "qwen3_next: num_heads must divide "
                    "num_value_heads, got num_heads=",
                    H, " num_value_heads=", HV);
  const int64_t G = HV / H;
  const std::vector<int64_t> qkvz{dk, dk, G * dv, G * dv}, ba{G, G};
  NameMap delta;
  for (const std::string what : {".weight", ".bias"}) {
    delta
        .split("in_proj_qkvz" + what,
               {{"w_q" + what, part_of_heads(H, 0, qkvz)},
                {"w_k" + what, part_of_heads(H, 1, qkvz)},
                {"w_v" + what, part_of_heads(H, 2, qkvz)},
                {"w_g" + what, part_of_heads(H, 3, qkvz)}},
               join_parts(H, qkvz))
        .split("in_proj_ba" + what,
               {{"w_b" + what, part_of_heads(H, 0, ba)}, {"w_a" + what, part_of_heads(H, 1, ba)}},
               join_parts(H, ba));
  }
  delta.rename("conv1d.weight", "conv.weight")
      .rename("A_log", "A_log")
      .rename("dt_bias", "dt_bias")
      .rename("norm.weight", "norm.weight")
      .rename_layer("out_proj", "w_o");
  NameMap block, model;
  block.add(delta, "linear_attn.", "attn.");
  model.add(block, "layers.{n}.", "layers.{n}.");
  NameMap all = delta;  // first: a block keeps linear_attn.* where its attention is none of these
  return all.add(block).add(model, "model.").add(model).add(qwen3_next(num_heads));
}

ATTZOO_API NameMap kimi_linear() {
  core::LlamaNames names;
  names.plain_queries().two_norms().gated_mlp();
  core::add_latents(names.attention);
  names.attention.rename("conv1d.weight", "conv.weight")
      .rename(
          "forget_gate.A_log", "A_log", [](const torch::Tensor& t) { return t.flatten(); },
          [](const torch::Tensor& t) {
            return t.view({1, 1, -1, 1});
          })
      .rename("forget_gate.dt_bias", "dt_bias")
      .rename_layer("forget_gate.f_a_proj", "w_f1")
      .rename_layer("forget_gate.f_b_proj", "w_f2")
      .rename_layer("b_proj", "w_b")
      .rename_layer("g_a_proj", "w_g1")
      .rename_layer("g_b_proj", "w_g2")
      .rename("o_norm.weight", "norm.weight");
  return names.finished();
}

ATTZOO_API NameMap mamba2() {
  NameMap mixer, block, model;
  mixer.rename_layer("in_proj", "w_in")
      .rename_layer("conv1d", "conv")
      .rename("A_log", "A_log")
      .rename("D", "D")
      .rename("dt_bias", "dt_bias")
      .rename("norm.weight", "norm.weight")
      .rename_layer("out_proj", "w_o");
  block.rename("norm.weight", "norm_attn.weight");
  model.rename("embeddings.weight", "embed.weight").rename("norm_f.weight", "norm.weight");
  return core::in_models(mixer, "mixer.", block, "layers.{n}.", model, "backbone.")
      .tie("lm_head.weight", "lm_head.weight", "embed.weight");
}

}  // namespace attzoo::names

#endif
