#pragma once
// A config.json as it is published, and what becomes of it.

#include <attzoo/io/json.hpp>

namespace attzoo::testing {

/// A config.json with changes; a value that is null takes the key away.
inline core::Json changed(const char* text, const core::Json::Object& changes = {}) {
  auto all = core::Json::parse(text).object();
  for (const auto& [key, value] : changes) {
    if (value.is_null()) {
      all.erase(key);
    } else {
      all[key] = value;
    }
  }
  return all;
}

inline constexpr const char* kLlama = R"({
  "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
  "bos_token_id": 128000, "eos_token_id": [128001, 128009], "hidden_act": "silu",
  "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 96,
  "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
  "num_attention_heads": 8, "num_hidden_layers": 3, "num_key_value_heads": 2,
  "pretraining_tp": 1, "rms_norm_eps": 1e-05,
  "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
  "transformers_version": "4.43.0", "use_cache": true, "vocab_size": 100})";

}  // namespace attzoo::testing
