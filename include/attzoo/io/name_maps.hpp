#pragma once
/// \file
/// NameMaps of well-known models, to be given to load_state_dict and save_state_dict. Each serves
/// one attention module
/// (`q_proj.weight`), one block (`self_attn.q_proj.weight`), and a whole model
/// (`model.layers.3.self_attn.q_proj.weight`, with and without the leading `model.`), whose modules
/// have these names:
///
/// | here                                    | what                                             |
/// |-----------------------------------------|--------------------------------------------------|
/// | w_q, w_k, w_v, w_o                      | projections (.weight, .bias)                     |
/// | norm_q, norm_k                          | norms of queries and keys (.weight)              |
/// | w_q_a, w_q_b, norm_q_a                  | the latent of DeepSeek's queries                 |
/// | w_kv_a, w_kv_b, norm_kv_a               | and that of their keys and values                |
/// | w_g                                     | output gate                                      |
/// | sinks                                   | a logit for each head, [H]                       |
/// | attn, cross                             | a block's attention, and that to a context       |
/// | norm_attn, norm_cross, norm_mlp         | norms of its branches                            |
/// | norm_attn_out, norm_mlp_out             | and behind them, where there are four (Gemma 2)  |
/// | mlp_in, mlp_out                         | first and last layer of the MLP                  |
/// | mlp_gate                                | the gate of a gated one (SwiGLU, GeGLU)          |
/// | embed, positions, token_types           | embeddings (.weight)                             |
/// | norm_embed                              | BERT's and BART's norm of their sum              |
/// | layers.0, layers.1, ...                 | blocks                                           |
/// | norm, lm_head                           | the last norm and the output layer               |
/// | encoder, decoder                        | halves of BART and Whisper: each has positions,  |
/// |                                         | norm_embed or norm, and layers of its own        |
///
/// Biases map wherever a model may have them. An output layer that is tied to the embedding is
/// wanted if the module has an `lm_head`; else it must hold the embedding's numbers, or is the
/// embedding where a file has no other. Norms whose weight is 1 + w become plain ones. Rotary
/// frequencies, causal masks and positions that a model saved are ignored. Rotary positions in
/// halves, (i, i + D/2), need no change of the weights.

#include <attzoo/io/name_map.hpp>
#include <attzoo/io/state_dict.hpp>

#include <cstdint>
#include <string>

namespace attzoo::names {

/// The transpose of a matrix: GPT-2's layers have weights [in, out].
ATTZOO_API TensorChange transposed();
/// The i-th of n equal parts of the rows.
ATTZOO_API TensorChange part(int64_t i, int64_t n);
/// The i-th of n equal parts of the rows of each head, heads in order.
ATTZOO_API TensorChange part_of_heads(int64_t num_heads, int64_t i, int64_t n);
/// The way back of these: parts of the rows of each head, which become one tensor again.
ATTZOO_API TensorJoin join_parts(int64_t num_heads = 1);
/// 1 + w, in float64: what is given in bfloat16 is not rounded to it again.
ATTZOO_API TensorChange plus_one();
/// The way back, w - 1, in w's dtype.
ATTZOO_API TensorChange minus_one();

/// torch.nn.MultiheadAttention: in_proj_weight and in_proj_bias, packed or, with kdim and vdim,
/// q_proj_weight, k_proj_weight and v_proj_weight; out_proj. `bias_k` and `bias_v` (add_bias_kv)
/// are refused. Also torch.nn.TransformerEncoderLayer (linear1, linear2, norm1, norm2) and
/// TransformerEncoder (layers.N).
ATTZOO_API NameMap torch_multihead_attention();

/// BERT (BertSelfAttention, BertAttention, BertLayer, BertModel), and what shares its names, as
/// sentence-transformers' MiniLM. The norms of a block are those behind its branches; both
/// spellings of their parameters (weight, gamma) are known. The pooler becomes `pooler` if the
/// module has it; else it is ignored, and so are the heads of pre-training (`cls.*`).
ATTZOO_API NameMap bert();

/// GPT-2: fused c_attn and transposed layers. Ignores the causal masks (`attn.bias`).
ATTZOO_API NameMap gpt2();

/// Llama 1 to 3, and what has its names.
ATTZOO_API NameMap llama();
/// Mistral: Llama's names.
ATTZOO_API NameMap mistral();
/// Qwen2 and Qwen2.5: Llama's names, with biases of the queries, keys and values.
ATTZOO_API NameMap qwen2();
/// Qwen3: Llama's names, with norms of queries and keys.
ATTZOO_API NameMap qwen3();

/// The attention blocks of Qwen3-Next: the rows of q_proj are [query, gate] for each of `num_heads`
/// query heads, norms are 1 + w. What is no attention (`linear_attn.*`, `mlp.*`) keeps its name
/// within the block. Ignores the layers of multi-token prediction (`mtp.*`).
ATTZOO_API NameMap qwen3_next(int64_t num_heads);

/// Gemma 2: four norms in a block, all of them 1 + w.
ATTZOO_API NameMap gemma2();

/// BART: `embed` (its `shared.weight`), and in both `encoder` and `decoder` `positions`,
/// `norm_embed` and `layers`, those of the decoder DecoderBlocks. The positions begin without the
/// two rows that upstream leaves unused, so that token 0 has row 0; saved, these are zeros. The
/// output layer is the embedding, or `lm_head` if the module has one. `final_logits_bias` [1,
/// vocab] becomes the module's if it has one; else it must be zeros, which add nothing.
ATTZOO_API NameMap bart();

/// Whisper: as BART, without norm_embed, with a last `norm` in either half, `encoder.conv1` and
/// `encoder.conv2` before its layers, and `embed`, the decoder's embedding. Keys have no bias: the
/// attention modules need `.bias = true, .key_bias = false`.
ATTZOO_API NameMap whisper();

/// GPT-OSS: sinks, biases. The router and the experts keep their names within the block, `mlp.*`,
/// behind `moe_prefix` in the place of `mlp.`.
ATTZOO_API NameMap gpt_oss(const std::string& moe_prefix = "mlp.");

}  // namespace attzoo::names

#ifdef ATTZOO_DEFINE_IO

#include <c10/util/Exception.h>

#include <utility>

namespace attzoo::core {

/// The rules of a module alone, of one in a block, and of one in a model.
ATTZOO_API NameMap in_models(const NameMap& attention, const char* attn, const NameMap& block,
                             const char* layers, const NameMap& model, const char* base) {
  NameMap whole_block = block, whole_model = model;
  whole_block.add(attention, attn, "attn.");
  whole_model.add(whole_block, layers, "layers.{n}.");
  NameMap all = attention;
  return all.add(whole_block).add(whole_model, base).add(whole_model);
}

/// The rules that BART and Whisper share.
struct EncoderDecoderNames {
  NameMap half, model;

  NameMap finished(const char* output) const {
    NameMap attention, block, whole_half = half, whole = model;
    attention.rename_layer("q_proj", "w_q")
        .rename_layer("k_proj", "w_k")
        .rename_layer("v_proj", "w_v")
        .rename_layer("out_proj", "w_o");
    block.add(attention, "self_attn.", "attn.")
        .add(attention, "encoder_attn.", "cross.")
        .rename_layer("self_attn_layer_norm", "norm_attn")
        .rename_layer("encoder_attn_layer_norm", "norm_cross")
        .rename_layer("final_layer_norm", "norm_mlp")
        .rename_layer("fc1", "mlp_in")
        .rename_layer("fc2", "mlp_out");
    whole_half.add(block, "layers.{n}.", "layers.{n}.");
    for (const std::string name : {"encoder.", "decoder."}) {
      whole.add(whole_half, name, name)
          .tie(name + "embed_tokens.weight", name + "embed.weight", "embed.weight");
    }
    return attention.add(block)
        .add(whole, "model.")
        .add(whole)
        .tie(output, "lm_head.weight", "embed.weight");
  }
};

/// The rules that all have which have Llama's names.
struct LlamaNames {
  NameMap attention, block, model;
  TensorChange norm, norm_back;

  /// `norm`: what becomes of the weights of the norms, and the way back.
  explicit LlamaNames(TensorChange change = {}, TensorChange undo = {})
      : norm(std::move(change)), norm_back(std::move(undo)) {
    attention.rename_layer("k_proj", "w_k")
        .rename_layer("v_proj", "w_v")
        .rename_layer("o_proj", "w_o")
        .rename("q_norm.weight", "norm_q.weight", norm, norm_back)
        .rename("k_norm.weight", "norm_k.weight", norm, norm_back)
        .ignore("rotary_emb.inv_freq");
    block_norm("input_layernorm.weight", "norm_attn.weight");
    model.rename("embed_tokens.weight", "embed.weight")
        .rename("norm.weight", "norm.weight", norm, norm_back)
        .ignore("rotary_emb.inv_freq");
  }

  /// Queries that are nothing but queries.
  LlamaNames& plain_queries() {
    attention.rename_layer("q_proj", "w_q");
    return *this;
  }
  LlamaNames& block_norm(const char* from, const char* to) {
    block.rename(from, to, norm, norm_back);
    return *this;
  }
  /// One norm before each branch, of which the second has a misleading name.
  LlamaNames& two_norms() {
    return block_norm("post_attention_layernorm.weight", "norm_mlp.weight");
  }
  LlamaNames& gated_mlp() {
    block.rename_layer("mlp.gate_proj", "mlp_gate")
        .rename_layer("mlp.up_proj", "mlp_in")
        .rename_layer("mlp.down_proj", "mlp_out");
    return *this;
  }
  NameMap finished() const {
    return core::in_models(attention, "self_attn.", block, "layers.{n}.", model, "model.")
        .tie("lm_head.weight", "lm_head.weight", "embed.weight");
  }
};

}  // namespace attzoo::core

namespace attzoo::names {

ATTZOO_API TensorChange transposed() {
  return [](const torch::Tensor& t) {
    TORCH_CHECK_VALUE(t.dim() == 2, "expected a matrix, got ", t.sizes());
    return t.t();
  };
}

ATTZOO_API TensorChange part(int64_t i, int64_t n) { return part_of_heads(1, i, n); }

ATTZOO_API TensorChange part_of_heads(int64_t num_heads, int64_t i, int64_t n) {
  TORCH_CHECK_VALUE(num_heads > 0 && 0 <= i && i < n, "part_of_heads: no part ", i, " of ", n,
                    " for ", num_heads, " heads");
  return [=](const torch::Tensor& t) {
    TORCH_CHECK_VALUE(t.dim() > 0 && t.size(0) % (num_heads * n) == 0, "expected rows ",
                      num_heads > 1 ? c10::str("of ", num_heads, " heads ") : "", "in ", n,
                      " equal parts, got ", t.sizes());
    return t.unflatten(0, {num_heads, n, t.size(0) / (num_heads * n)}).select(1, i).flatten(0, 1);
  };
}

ATTZOO_API TensorJoin join_parts(int64_t num_heads) {
  return [=](const std::vector<torch::Tensor>& parts) {
    std::vector<torch::Tensor> by_head;
    for (const auto& t : parts) {
      TORCH_CHECK_VALUE(t.dim() > 0 && t.sizes() == parts[0].sizes() && t.size(0) % num_heads == 0,
                        "expected parts of one size, rows of ", num_heads, " heads, got ",
                        t.sizes(), " beside ", parts[0].sizes());
      by_head.push_back(t.unflatten(0, {num_heads, t.size(0) / num_heads}));
    }
    return torch::stack(by_head, 1).flatten(0, 2);
  };
}

ATTZOO_API TensorChange plus_one() {
  return [](const torch::Tensor& t) { return t.to(torch::kFloat64) + 1; };
}

ATTZOO_API TensorChange minus_one() {
  return [](const torch::Tensor& t) { return (t.to(torch::kFloat64) - 1).to(t.scalar_type()); };
}

ATTZOO_API NameMap torch_multihead_attention() {
  const char* why = "attzoo's modules have no learned key and value (add_bias_kv)";
  NameMap attention, block, model;
  for (const std::string what : {"weight", "bias"}) {
    attention.split(
        "in_proj_" + what,
        {{"w_q." + what, part(0, 3)}, {"w_k." + what, part(1, 3)}, {"w_v." + what, part(2, 3)}},
        join_parts());
  }
  attention.rename("q_proj_weight", "w_q.weight")
      .rename("k_proj_weight", "w_k.weight")
      .rename("v_proj_weight", "w_v.weight")
      .rename_layer("out_proj", "w_o")
      .refuse("bias_k", why)
      .refuse("bias_v", why);
  block.rename_layer("linear1", "mlp_in")
      .rename_layer("linear2", "mlp_out")
      .rename_layer("norm1", "norm_attn")
      .rename_layer("norm2", "norm_mlp");
  model.rename_layer("norm", "norm");
  return core::in_models(attention, "self_attn.", block, "layers.{n}.", model, "encoder.");
}

ATTZOO_API NameMap bert() {
  const auto rename_norm = [](NameMap& map, const std::string& from, const std::string& to) {
    map.rename_layer(from, to).rename(from + ".gamma", to + ".weight");
    map.rename(from + ".beta", to + ".bias");
  };
  NameMap projections, attention, block, model;
  projections.rename_layer("query", "w_q").rename_layer("key", "w_k").rename_layer("value", "w_v");
  attention.add(projections, "self.").add(projections).rename_layer("output.dense", "w_o");
  rename_norm(block, "attention.output.LayerNorm", "norm_attn");
  block.rename_layer("intermediate.dense", "mlp_in").rename_layer("output.dense", "mlp_out");
  rename_norm(block, "output.LayerNorm", "norm_mlp");
  model.rename("embeddings.word_embeddings.weight", "embed.weight")
      .rename("embeddings.position_embeddings.weight", "positions.weight")
      .rename("embeddings.token_type_embeddings.weight", "token_types.weight")
      .ignore("embeddings.position_ids")
      .rename_layer("pooler.dense", "pooler")
      .ignore("pooler.*");
  rename_norm(model, "embeddings.LayerNorm", "norm_embed");
  return core::in_models(attention, "attention.", block, "encoder.layer.{n}.", model, "bert.")
      .ignore("cls.*");
}

ATTZOO_API NameMap gpt2() {
  const auto column = [](int64_t i) {
    return [i](const torch::Tensor& t) { return part(i, 3)(transposed()(t)); };
  };
  const auto rename_transposed = [](NameMap& map, const std::string& from, const std::string& to) {
    map.rename(from + ".weight", to + ".weight", transposed(), transposed());
    map.rename(from + ".bias", to + ".bias");
  };
  NameMap attention, block, model;
  attention
      .split("c_attn.weight",
             {{"w_q.weight", column(0)}, {"w_k.weight", column(1)}, {"w_v.weight", column(2)}},
             [](const auto& parts) { return transposed()(join_parts()(parts)); })
      .split("c_attn.bias",
             {{"w_q.bias", part(0, 3)}, {"w_k.bias", part(1, 3)}, {"w_v.bias", part(2, 3)}},
             join_parts());
  rename_transposed(attention, "c_proj", "w_o");
  attention.ignore("bias").ignore("masked_bias");
  block.rename_layer("ln_1", "norm_attn").rename_layer("ln_2", "norm_mlp");
  rename_transposed(block, "mlp.c_fc", "mlp_in");
  rename_transposed(block, "mlp.c_proj", "mlp_out");
  model.rename("wte.weight", "embed.weight")
      .rename("wpe.weight", "positions.weight")
      .rename_layer("ln_f", "norm");
  return core::in_models(attention, "attn.", block, "h.{n}.", model, "transformer.")
      .tie("lm_head.weight", "lm_head.weight", "embed.weight");
}

ATTZOO_API NameMap llama() {
  return core::LlamaNames().plain_queries().two_norms().gated_mlp().finished();
}

ATTZOO_API NameMap mistral() { return llama(); }

ATTZOO_API NameMap qwen2() { return llama(); }

ATTZOO_API NameMap qwen3() { return llama(); }

ATTZOO_API NameMap qwen3_next(int64_t num_heads) {
  core::LlamaNames names(plus_one(), minus_one());
  names.two_norms();
  for (const std::string what : {".weight", ".bias"}) {
    names.attention.split("q_proj" + what,
                          {{"w_q" + what, part_of_heads(num_heads, 0, 2)},
                           {"w_g" + what, part_of_heads(num_heads, 1, 2)}},
                          join_parts(num_heads));
  }
  names.block.rename("linear_attn.*", "linear_attn.*").rename("mlp.*", "mlp.*");
  return names.finished().ignore("mtp.*");
}

ATTZOO_API NameMap gemma2() {
  return core::LlamaNames(plus_one(), minus_one())
      .plain_queries()
      .gated_mlp()
      .block_norm("post_attention_layernorm.weight", "norm_attn_out.weight")
      .block_norm("pre_feedforward_layernorm.weight", "norm_mlp.weight")
      .block_norm("post_feedforward_layernorm.weight", "norm_mlp_out.weight")
      .finished();
}

ATTZOO_API NameMap bart() {
  core::EncoderDecoderNames names;
  names.half.rename_layer("layernorm_embedding", "norm_embed")
      .rename(
          "embed_positions.weight", "positions.weight",
          [](const torch::Tensor& t) {
            TORCH_CHECK_VALUE(t.dim() == 2 && t.size(0) > 2,
                              "expected positions behind two rows, got ", t.sizes());
            return t.slice(0, 2);
          },
          [](const torch::Tensor& t) {
            return torch::constant_pad_nd(t, {0, 0, 2, 0});
          });
  names.model.rename("shared.weight", "embed.weight");
  return names.finished("lm_head.weight")
      .rename("final_logits_bias", "final_logits_bias")
      .ignore_zeros("final_logits_bias");
}

ATTZOO_API NameMap whisper() {
  core::EncoderDecoderNames names;
  names.half.rename("embed_positions.weight", "positions.weight")
      .rename_layer("layer_norm", "norm");
  names.model.rename_layer("encoder.conv1", "encoder.conv1")
      .rename_layer("encoder.conv2", "encoder.conv2")
      .rename("decoder.embed_tokens.weight", "embed.weight");
  return names.finished("proj_out.weight");
}

ATTZOO_API NameMap gpt_oss(const std::string& moe_prefix) {
  core::LlamaNames names;
  names.plain_queries().two_norms();
  names.attention.rename("sinks", "sinks");
  names.block.rename("mlp.*", moe_prefix + "*");
  return names.finished();
}

}  // namespace attzoo::names

#endif
