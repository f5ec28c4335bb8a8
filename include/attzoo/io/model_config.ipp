#pragma once

#include <attzoo/io/checkpoint.hpp>
#include <attzoo/io/file.hpp>
#include <attzoo/io/model_config.hpp>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <map>
#include <set>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

namespace attzoo::core {

/// Keys of a language model's config.json that change no number while it generates.
inline constexpr std::string_view kChangesNothing =
    " _attn_implementation _name_or_path attention_dropout attn_pdrop bos_token_id "
    "chunk_size_feed_forward dtype embd_pdrop experts_per_token gradient_checkpointing id2label "
    "initial_context_length initializer_range is_decoder keys_to_ignore_at_inference label2id "
    "n_ctx output_attentions output_hidden_states output_router_logits pad_token_id "
    "pretraining_tp problem_type reorder_and_upcast_attn resid_pdrop return_dict "
    "router_aux_loss_coef summary_activation summary_first_dropout summary_proj_to_labels "
    "summary_type summary_use_proj task_specific_params torch_dtype torchscript "
    "transformers_version unk_token_id use_cache ";

/// Reads an object key by key and remembers all that is wrong and what nobody asked for. What is
/// read into keeps its value where there is none, or a wrong one.
class ConfigReader {
 public:
  ConfigReader(Json json, std::string where) : json_(std::move(json)), where_(std::move(where)) {}

  /// Whether the key is there, null or not.
  bool has(const std::string& key) {
    seen_.insert(key);
    return json_.contains(key);
  }
  /// The value; null where there is none.
  Json get(const std::string& key) { return has(key) ? json_[key] : Json(); }

  /// Into `to`, numbers within bounds; says whether there is a value. A double may be written as an
  /// integer. The usual bounds are such that no product of two sizes overflows.
  template <class T>
  bool read(const std::string& key, T& to, double least = -1e9, double most = 1e9) {
    const auto value = get(key);
    if (value.is_null()) return false;
    try {
      const bool integer = std::is_same_v<T, double> && value.is<int64_t>();
      const T given = integer ? Json(value.number()).as<T>() : value.as<T>();
      const double number = value.is_number() ? value.number() : least;
      TORCH_CHECK_VALUE(least <= number && number <= most, "must be within ", least, " ... ", most,
                        ", got ", value.dump());
      to = given;
    } catch (const c10::Error& e) {
      wrong(key + ": " + e.what_without_backtrace());
    }
    return true;
  }
  /// The same, and it is wrong if there is none.
  template <class T>
  void need(const std::string& key, T& to, double least = -1e9, double most = 1e9) {
    if (!read(key, to, least, most)) wrong(key + " is missing");
  }
  /// Sizes of tensors; those that are 0 so far must be given.
  void sizes(std::initializer_list<std::pair<const char*, int64_t*>> keys) {
    for (const auto& [key, to] : keys) {
      if (!read(key, *to, 1) && *to == 0) wrong(std::string(key) + " is missing");
    }
  }
  /// Only this value, or none, is known here.
  void only(const std::string& key, const Json& value) {
    const auto given = get(key);
    if (!given.is_null() && given.dump() != value.dump()) {
      wrong(key + " = " + given.dump() + " is not supported, only " + value.dump());
    }
  }
  /// What is wrong with an object within this one.
  void wrong_too(const std::string& problems) { problems_ += problems; }
  void wrong(const std::string& what) { problems_ += "\n  " + where_ + what; }
  /// All that is wrong, with the keys that nobody asked for and that may change something.
  std::string problems() {
    for (const auto& [key, value] : json_.object()) {
      const bool unused = kChangesNothing.find(" " + key + " ") != kChangesNothing.npos;
      if (!unused && !seen_.count(key) && !value.is_null()) {
        wrong(key + " = " + printable(value.dump()) + " is not known");
      }
    }
    return problems_;
  }

 private:
  Json json_;
  std::string where_, problems_;
  std::set<std::string> seen_;
};

ATTZOO_API RopeScaling read_scaling(ConfigReader& rope, int64_t context) {
  std::string type = "default";
  rope.read("type", type);
  rope.read("rope_type", type);
  if (type == "default") return {};
  double factor = 1;
  rope.need("factor", factor, 1);
  if (type == "linear") return LinearRopeScaling{.factor = factor};
  if (type == "llama3") {
    Llama3RopeScaling llama{.factor = factor, .original_max_position = context};
    rope.need("low_freq_factor", llama.low_freq_factor);
    rope.need("high_freq_factor", llama.high_freq_factor);
    rope.read("original_max_position_embeddings", llama.original_max_position);
    return llama;
  }
  if (type == "yarn") {
    YarnRopeScaling yarn{.factor = factor, .original_max_position = context};
    rope.read("original_max_position_embeddings", yarn.original_max_position);
    rope.read("beta_fast", yarn.beta_fast);
    rope.read("beta_slow", yarn.beta_slow);
    rope.read("truncate", yarn.truncate);
    double mscale = 0, mscale_all = 0, attention = 0;
    rope.read("mscale", mscale);
    rope.read("mscale_all_dim", mscale_all);
    if (rope.read("attention_factor", attention)) {
      yarn.attention_factor = attention;
    } else if (mscale != 0 && mscale_all != 0) {
      yarn.attention_factor = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all);
    }
    return yarn;
  }
  rope.wrong("rope_type = \"" + type + "\" is not supported");
  return {};
}

/// rope_theta and rope_scaling, or rope_parameters, which holds both.
ATTZOO_API RopeOptions read_rope(ConfigReader& in, const ModelConfig& c) {
  const char* key = in.has("rope_scaling") && in.get("rope_parameters").is_null()
                        ? "rope_scaling"
                        : "rope_parameters";
  auto given = in.get(key);
  if (given.is_null()) {
    if (c.family == "gpt_oss") in.wrong("rope_parameters is missing");
    given = Json::Object();
  }
  RopeOptions o{.pairs = RopePairs::kHalves};
  if (!given.is<Json::Object>()) {
    in.wrong(std::string(key) + " must be an object");
    return o;
  }
  ConfigReader rope(given, std::string(key) + ": ");
  double part = 1;
  for (auto* reader : {&in, &rope}) {
    reader->read("rope_theta", o.base, 1e-100, 1e100);
    reader->read("partial_rotary_factor", part, 0, 1);
  }
  if (part != 1) {
    o.dimensions = static_cast<int64_t>(part * static_cast<double>(*c.attention.head_dim));
  }
  o.scaling = read_scaling(rope, c.context);
  in.wrong_too(rope.problems());
  return o;
}

/// Without the key it stays as it is.
ATTZOO_API void read_activation(ConfigReader& in, const char* key, Activation& activation) {
  static const std::map<std::string, Activation> kKnown = {
      {"silu", Activation::kSilu},         {"swish", Activation::kSilu},
      {"gelu", Activation::kGelu},         {"relu", Activation::kRelu},
      {"gelu_new", Activation::kGeluTanh}, {"gelu_pytorch_tanh", Activation::kGeluTanh}};
  std::string name;
  if (!in.read(key, name)) return;
  if (kKnown.count(name)) {
    activation = kKnown.at(name);
  } else {
    in.wrong(std::string(key) + " = \"" + name + "\" is not supported");
  }
}

/// As many windows as layers, none so far.
ATTZOO_API void read_layers(ConfigReader& in, const char* key, ModelConfig& c) {
  int64_t layers = 0;
  in.need(key, layers, 0, 10000);
  c.windows.resize(static_cast<size_t>(layers));
}

/// Which layers have a window: by layer_types, or else by the family's rule.
ATTZOO_API void read_windows(ConfigReader& in, ModelConfig& c) {
  const bool qwen = c.family == "qwen2" || c.family == "qwen3", oss = c.family == "gpt_oss";
  // Without the key, what transformers takes then; null is none.
  int64_t size = in.has("sliding_window") ? 0 : oss ? 128 : 4096, first = qwen ? 28 : 0;
  bool used = !qwen;
  in.read("sliding_window", size, 0);
  if (qwen) {
    in.read("use_sliding_window", used);
    in.read("max_window_layers", first);
  }
  const auto window = used && size > 0 ? std::optional(size) : std::nullopt;
  const auto types = in.get("layer_types");
  if (!types.is_null() && (!types.is<Json::Array>() || types.array().size() != c.windows.size())) {
    return in.wrong("layer_types must be a list of num_hidden_layers names");
  }
  for (size_t i = 0; i < c.windows.size(); ++i) {
    if (types.is_null()) {
      if (static_cast<int64_t>(i) >= first && !(oss && i % 2)) c.windows[i] = window;
      continue;
    }
    const auto type = types.array()[i].dump();
    if (type == "\"sliding_attention\"") {
      if (!window) in.wrong("layer_types asks for a window, and there is none");
      c.windows[i] = window;
    } else if (type != "\"full_attention\"") {
      in.wrong("layer_types: " + type + " is not supported");
    }
  }
}

ATTZOO_API void read_gpt2(ConfigReader& in, ModelConfig& c) {
  auto& a = c.attention;
  in.sizes({{"n_embd", &a.d_model},
            {"n_head", &a.num_query_heads},
            {"vocab_size", &c.vocab},
            {"n_positions", &c.positions}});
  a.num_kv_heads = a.num_query_heads;
  a.bias = true;
  if (a.num_query_heads > 0 && a.d_model % a.num_query_heads != 0) {
    in.wrong("n_head must divide n_embd");
  }
  int64_t hidden = 4 * a.d_model;
  in.read("n_inner", hidden, 1);
  c.block.mlp_hidden = hidden;
  c.block.activation = Activation::kGeluTanh;
  read_activation(in, "activation_function", c.block.activation);
  in.read("layer_norm_epsilon", c.block.norm_eps, 0, 1);
  c.context = c.positions;
  c.tied = true;
  read_layers(in, "n_layer", c);
  c.names = names::gpt2();
  in.only("scale_attn_weights", true);
  in.only("scale_attn_by_inverse_layer_idx", false);
  in.only("add_cross_attention", false);
}

ATTZOO_API void read_experts(ConfigReader& in, ModelConfig& c) {
  ExpertsOptions o;
  in.sizes({{"num_local_experts", &o.count}, {"num_experts_per_tok", &o.per_token}});
  in.read("swiglu_alpha", o.alpha);
  in.read("swiglu_limit", o.limit, 0);
  if (o.per_token > o.count) in.wrong("num_experts_per_tok must be at most num_local_experts");
  c.experts = o;
}

ATTZOO_API void read_llama_like(ConfigReader& in, ModelConfig& c) {
  const bool oss = c.family == "gpt_oss", qwen2 = c.family == "qwen2", qwen3 = c.family == "qwen3";
  auto& a = c.attention;
  auto& block = c.block;
  int64_t hidden = 0;
  in.sizes({{"hidden_size", &a.d_model},
            {"num_attention_heads", &a.num_query_heads},
            {"vocab_size", &c.vocab},
            {"max_position_embeddings", &c.context},
            {"intermediate_size", &hidden}});
  a.num_kv_heads = a.num_query_heads;
  int64_t head_dim = qwen3 ? 128 : oss ? 64 : a.d_model / std::max<int64_t>(a.num_query_heads, 1);
  in.read("num_key_value_heads", a.num_kv_heads, 1);
  in.read("head_dim", head_dim, 1);
  a.head_dim = head_dim;
  block.norm_eps = oss ? 1e-5 : 1e-6;
  in.read("rms_norm_eps", block.norm_eps, 0, 1);
  bool bias = oss;
  if (c.family != "mistral" && !qwen2) in.read("attention_bias", bias);
  a.bias = bias || qwen2;
  a.out_bias = bias;
  a.qk_norm = qwen3;
  a.qk_norm_eps = block.norm_eps;
  a.sinks = oss;
  a.rope = read_rope(in, c);
  block.mlp_hidden = hidden;
  block.mlp_gated = true;
  block.mlp_bias = false;
  if (c.family == "llama") in.read("mlp_bias", block.mlp_bias);
  block.norm = NormKind::kRMSNorm;
  block.activation = Activation::kSilu;
  read_layers(in, "num_hidden_layers", c);
  if (c.family != "llama") read_windows(in, c);
  if (oss) {
    in.only("hidden_act", "silu");
    read_experts(in, c);
  } else {
    read_activation(in, "hidden_act", block.activation);
  }
  c.names = oss ? names::gpt_oss() : names::llama();
}

/// Which tokens end a text: one, or a list.
ATTZOO_API void read_stop(ConfigReader& in, ModelConfig& c) {
  const auto stop = in.get("eos_token_id");
  for (const auto& id : stop.is<Json::Array>() ? stop.array() : Json::Array{stop}) {
    if (id.is<int64_t>()) {
      c.stop.push_back(id.integer());
    } else if (!stop.is_null()) {
      in.wrong("eos_token_id: " + id.dump() + " is no token");
    }
  }
}

ATTZOO_API ModelConfig parse_config(const Json& json, const std::string& file) {
  static const std::set<std::string> kFamilies = {"gpt2",    "gpt_oss", "llama",
                                                  "mistral", "qwen2",   "qwen3"};
  return naming(file, [&] {
    ModelConfig c;
    ConfigReader in(json, "");
    in.read("model_type", c.family);
    TORCH_CHECK_VALUE(kFamilies.count(c.family), file, ": model_type \"", printable(c.family),
                      "\" is not one of gpt2, gpt_oss, llama, mistral, qwen2, qwen3");
    const auto kind = in.get("architectures").dump();
    if (kind != "null" && kind.find("ForCausalLM") == kind.npos &&
        kind.find("LMHeadModel") == kind.npos) {
      in.wrong("architectures = " + kind + " is no language model");
    }
    c.attention.dropout = 0;
    c.attention.causal = true;
    if (c.family == "gpt2") {
      read_gpt2(in, c);
    } else {
      read_llama_like(in, c);
    }
    in.read("tie_word_embeddings", c.tied);
    in.only("is_encoder_decoder", false);
    read_stop(in, c);
    const auto problems = in.problems();
    TORCH_CHECK_VALUE(problems.empty(), file, ":", problems);
    return c;
  });
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API GroupedSelfAttentionOptions ModelConfig::attention_of(size_t layer) const {
  TORCH_CHECK_INDEX(layer < windows.size(), "ModelConfig: no layer ", layer, " of ",
                    windows.size());
  auto options = attention;
  options.sliding_window = windows[layer];
  return options;
}

ATTZOO_API Stack ModelConfig::layers() const {
  TORCH_CHECK_VALUE(!experts, "ModelConfig::layers: ", family,
                    " has experts in the place of MLPs, ",
                    "and attzoo has none: make blocks of your own around attention_of(layer)");
  Stack stack;
  for (size_t i = 0; i < windows.size(); ++i) {
    stack->push_back(transformer_block(GroupedSelfAttention(attention_of(i)), block));
  }
  return stack;
}

ATTZOO_API ModelConfig read_config(const std::filesystem::path& path) {
  std::error_code ignored;
  const auto file = std::filesystem::is_directory(path, ignored) ? path / "config.json" : path;
  const auto name = core::named("read_config", file);
  return core::parse_config(core::read_json(file, name), name);
}

}  // namespace attzoo
