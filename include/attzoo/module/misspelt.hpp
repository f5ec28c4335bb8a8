#pragma once
/// \file
/// Names that one writes in braces first and that nothing here has, as other libraries do. Of an
/// unknown name in braces a compiler says only that no call matches. These aggregates match, as
/// templates only where nothing else does, and are refused with a sentence (holder.hpp). A name in
/// braces must stand behind those before it, so each is beside the right one.

#include <torch/nn/pimpl.h>

namespace attzoo::core {

/// A value of any type.
struct Anything {
  Anything() = default;
  template <class T>
  Anything(const T&) {}  // NOLINT: anything is one
};

/// AttentionInputs with other names and types.
struct MisspeltInputs {
  Anything attn_mask, attention_mask, mask, masks, src_mask, bias, attn_bias, score_mod, mask_mod;
  Anything key_padding_mask, padding_mask, key_mask, padding, key_padding, src_key_padding_mask;
  Anything is_causal, causal, casual, dropout, dropout_p, need_weights, return_weights;
  Anything context, memory, key, keys, value, values, kv, encoder_hidden_states;
  Anything position_offset, offset, start_pos, start_position;
  Anything global_attention, global_attention_mask, is_global, global_tokens;
  Anything documents, document, document_ids, offsets, cu_seqlens, seqlens, lengths, segment_ids;
  Anything cache, caches, kv_cache, past_key_values, past_key_value, use_cache;
  Anything positions, position, position_ids, pos;
  Anything context_padding_mask, memory_key_padding_mask, encoder_attention_mask;
  Anything pattern, patterns, block_mask, score, scores;
};

/// The options of a mechanism with other names and types.
struct MisspeltOptions {
  Anything embed_dim, dim, hidden_size, hidden_dim, model_dim, n_embd, d_model, dmodel, width;
  Anything num_heads, heads, n_heads, nhead, nheads, num_head, n_head, head_count;
  Anything num_attention_heads, num_query_heads, num_q_heads, query_heads;
  Anything num_kv_heads, kv_heads, n_kv_heads, num_key_value_heads;
  Anything dilation_rate, dilation, rate, window_size, window, global_projections;
  Anything block_size, block, overlap, feature_dim, features, eps, max_seq_len, max_len;
  Anything bucket_size, buckets, num_hashes, hashes, num_buckets, exact_buckets, seed;
  Anything input_dim, in_dim, in_features, d_input, context_dim, kdim, vdim, dropout, dropout_p,
      attn_dropout, drop;
  Anything bias, use_bias, qkv_bias, temperature, scale, rope, rotary, use_rope;
  Anything causal, is_causal, casual, head_dim, d_head, out_bias, key_bias, qk_norm, qk_norm_eps,
      softcap;
  Anything logit_softcap, sinks, sink, output_gate, sliding_window;
  Anything python_slopes, python_blend, python_weights;
};

/// A module holder of any type.
struct AnyHolder {
  template <class M>
  AnyHolder(const torch::nn::ModuleHolder<M>&) {}  // NOLINT: any of them is one
};

/// TransformerBlockOptions with other names and types.
struct MisspeltBlockOptions {
  Anything hidden, hidden_dim, hidden_size, mlp_hidden, mlp_dim, mlp_size, mlp_ratio, ffn_dim;
  Anything intermediate_size, dim_feedforward, d_ff, dropout, dropout_p, norm, norm_type, norm_kind;
  Anything norm_eps, eps, layer_norm_eps, norm_placement, placement, norm_first, pre_norm;
  Anything activation, act, hidden_act, mlp_gated, gated, glu, mlp_bias, bias;
};

}  // namespace attzoo::core
