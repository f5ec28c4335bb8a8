#pragma once
/// \file
/// NameMaps of well-known models, to be given to load_state_dict. Each serves one attention module
/// (`q_proj.weight`), one block (`self_attn.q_proj.weight`), and a whole model
/// (`model.layers.3.self_attn.q_proj.weight`, with and without the leading `model.`), whose modules
/// have these names:
///
/// | here                                    | what                                             |
/// |-----------------------------------------|--------------------------------------------------|
/// | w_q, w_k, w_v, w_o                      | projections (.weight, .bias)                     |
/// | norm_q, norm_k                          | norms of queries and keys (.weight)              |
/// | w_g                                     | output gate                                      |
/// | sinks                                   | a logit for each head, [H]                       |
/// | attn                                    | a block's attention                              |
/// | norm_attn, norm_mlp                     | norms of its branches                            |
/// | norm_attn_out, norm_mlp_out             | and behind them, where there are four (Gemma 2)  |
/// | mlp_in, mlp_out                         | first and last layer of the MLP                  |
/// | mlp_gate                                | the gate of a gated one (SwiGLU, GeGLU)          |
/// | embed, positions, token_types           | embeddings (.weight)                             |
/// | norm_embed                              | BERT's norm of their sum                         |
/// | layers.0, layers.1, ...                 | blocks                                           |
/// | norm, lm_head                           | the last norm and the output layer               |
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
/// 1 + w, in float64: what is given in bfloat16 is not rounded to it again.
ATTZOO_API TensorChange plus_one();

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

/// GPT-OSS: sinks, biases. The router and the experts keep their names within the block, `mlp.*`,
/// behind `moe_prefix` in the place of `mlp.`.
ATTZOO_API NameMap gpt_oss(const std::string& moe_prefix = "mlp.");

}  // namespace attzoo::names

#ifndef ATTZOO_COMPILED
#include <attzoo/io/name_maps.ipp>
#endif
