#pragma once
// A checkpoint's config.json, as Hugging Face's transformers writes it, in the library's options.

#include <attzoo/io/json.hpp>
#include <attzoo/io/name_maps.hpp>
#include <attzoo/module/transformer.hpp>

#include <attzoo/grouped.hpp>
#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace generate {

/// Of GPT-OSS's mixture of experts.
struct ExpertsOptions {
  int64_t count = 0, per_token = 4;
  double alpha = 1.702, limit = 7.0;  // gate * sigmoid(alpha gate), both halves clamped
};

/// A decoder: embedding, blocks, a last norm and the output layer.
struct Config {
  std::string family;  // config.json's model_type
  int64_t vocab = 0;
  int64_t positions = 0;                               // learned ones; 0: none
  int64_t context = 0;                                 // tokens that it was trained for
  bool tied = false;                                   // the output layer is the embedding
  std::vector<int64_t> stop = {};                      // tokens that end a text
  attzoo::GroupedSelfAttentionOptions attention = {};  // of all layers, but for the window
  std::vector<std::optional<int64_t>> windows = {};    // of each layer
  attzoo::TransformerBlockOptions block = {};
  std::optional<ExpertsOptions> experts = std::nullopt;  // in the place of the MLP
  attzoo::NameMap names = {};
};

/// Reads an object key by key and remembers all that is wrong and what nobody asked for.
class Reader {
 public:
  using Json = attzoo::core::Json;

  Reader(Json json, std::string where) : json_(std::move(json)), where_(std::move(where)) {}

  /// Whether the key is there, null or not.
  bool has(const std::string& key) {
    seen_.insert(key);
    return json_.contains(key);
  }
  /// The value; null where there is none.
  Json get(const std::string& key) { return has(key) ? json_[key] : Json(); }

  int64_t integer(const std::string& key, std::optional<int64_t> otherwise = std::nullopt,
                  int64_t least = std::numeric_limits<int64_t>::min(),
                  int64_t most = std::numeric_limits<int64_t>::max()) {
    return read<int64_t>(key, otherwise,
                         [&](const Json& v) { return within(least, v.integer(), most); });
  }
  /// Of a tensor: no product of two overflows.
  int64_t size(const std::string& key, std::optional<int64_t> otherwise = std::nullopt) {
    return integer(key, otherwise, 1, int64_t{1} << 30);
  }
  double number(const std::string& key, std::optional<double> otherwise = std::nullopt,
                double least = -1e9, double most = 1e9) {
    return read<double>(key, otherwise,
                        [&](const Json& v) { return within(least, v.number(), most); });
  }
  bool boolean(const std::string& key, bool otherwise) {
    return read<bool>(key, otherwise, [](const Json& v) { return v.boolean(); });
  }
  std::string string(const std::string& key, std::optional<std::string> otherwise = std::nullopt) {
    return read<std::string>(key, otherwise, [](const Json& v) { return v.string(); });
  }

  void wrong(const std::string& what) { problems_ += "\n  " + where_ + what; }
  /// Only this value, or none, is known here.
  void only(const std::string& key, const Json& value) {
    const auto given = get(key);
    if (!given.is_null() && given.dump() != value.dump()) {
      wrong(key + " = " + given.dump() + " is not supported, only " + value.dump());
    }
  }
  void ignore(std::initializer_list<const char*> keys) { seen_.insert(keys.begin(), keys.end()); }
  /// All that is wrong, with the keys that nobody asked for.
  std::string problems() {
    for (const auto& [key, value] : json_.object()) {
      if (!seen_.count(key) && !value.is_null()) {
        wrong(key + " = " + attzoo::core::printable(value.dump()) + " is not known");
      }
    }
    return problems_;
  }
  /// Takes over what is wrong elsewhere.
  void add(const std::string& problems) { problems_ += problems; }

 private:
  template <class T>
  static T within(T least, T value, T most) {
    TORCH_CHECK_VALUE(least <= value && value <= most, "must be within ", least, " ... ", most,
                      ", got ", value);
    return value;
  }

  template <class T, class F>
  T read(const std::string& key, const std::optional<T>& otherwise, const F& convert) {
    const auto value = get(key);
    if (value.is_null()) {
      if (!otherwise) wrong(key + " is missing");
      return otherwise.value_or(T{});
    }
    try {
      return convert(value);
    } catch (const c10::Error& e) {
      wrong(key + ": " + e.what_without_backtrace());
      return otherwise.value_or(T{});
    }
  }

  Json json_;
  std::string where_, problems_;
  std::set<std::string> seen_;
};

inline attzoo::RopeScaling read_scaling(Reader& rope, const std::string& type, int64_t context) {
  if (type == "default") return {};
  const double factor = rope.number("factor", std::nullopt, 1, 1e9);
  if (type == "linear") return attzoo::LinearRopeScaling{.factor = factor};
  if (type == "llama3") {
    return attzoo::Llama3RopeScaling{
        .factor = factor,
        .low_freq_factor = rope.number("low_freq_factor"),
        .high_freq_factor = rope.number("high_freq_factor"),
        .original_max_position = rope.integer("original_max_position_embeddings", context)};
  }
  if (type == "yarn") {
    attzoo::YarnRopeScaling yarn{
        .factor = factor,
        .original_max_position = rope.integer("original_max_position_embeddings", context),
        .beta_fast = rope.number("beta_fast", 32),
        .beta_slow = rope.number("beta_slow", 1),
        .truncate = rope.boolean("truncate", true)};
    const double mscale = rope.number("mscale", 0), all = rope.number("mscale_all_dim", 0);
    const auto of = [&](double m) { return factor <= 1 ? 1.0 : 0.1 * m * std::log(factor) + 1; };
    if (!rope.get("attention_factor").is_null()) {
      yarn.attention_factor = rope.number("attention_factor");
    } else if (mscale != 0 && all != 0) {
      yarn.attention_factor = of(mscale) / of(all);
    }
    return yarn;
  }
  rope.wrong("rope_type = \"" + type + "\" is not supported");
  return {};
}

/// rope_theta and rope_scaling, or rope_parameters, which holds both.
inline attzoo::RopeOptions read_rope(Reader& in, const Config& c, int64_t head_dim) {
  const char* key = in.get("rope_parameters").is_null() ? "rope_scaling" : "rope_parameters";
  in.ignore({"rope_parameters", "rope_scaling"});
  const auto given = in.get(key);
  if (!given.is_null() && !given.is<attzoo::core::Json::Object>()) {
    in.wrong(std::string(key) + " must be an object");
    return {};
  }
  if (given.is_null() && c.family == "gpt_oss") in.wrong("rope_parameters is missing");
  Reader rope(given.is_null() ? attzoo::core::Json::Object() : given, std::string(key) + ": ");
  attzoo::RopeOptions o{.pairs = attzoo::RopePairs::kHalves};
  const auto number = [&](const char* name, double otherwise, double least, double most) {
    return rope.number(name, in.number(name, otherwise, least, most), least, most);
  };
  o.base = number("rope_theta", 10000, 1e-100, 1e100);
  const double part = number("partial_rotary_factor", 1, 0, 1);
  if (part != 1) o.dimensions = static_cast<int64_t>(part * static_cast<double>(head_dim));
  const auto type = rope.string("type", "default");
  o.scaling = read_scaling(rope, rope.string("rope_type", type), c.context);
  in.add(rope.problems());
  return o;
}

inline attzoo::Activation read_activation(Reader& in, const char* key, const char* otherwise) {
  const auto name = in.string(key, otherwise);
  if (name == "silu" || name == "swish") return attzoo::Activation::kSilu;
  if (name == "gelu") return attzoo::Activation::kGelu;
  if (name == "relu") return attzoo::Activation::kRelu;
  if (name != "gelu_new" && name != "gelu_pytorch_tanh") {
    in.wrong(std::string(key) + " = \"" + name + "\" is not supported");
  }
  return attzoo::Activation::kGeluTanh;
}

inline int64_t read_layers(Reader& in, const char* key) {
  return in.integer(key, std::nullopt, 0, 10000);
}

/// Which layers have a window: by layer_types, or else by the family's rule.
inline std::vector<std::optional<int64_t>> read_windows(Reader& in, const std::string& family,
                                                        int64_t layers) {
  std::vector<std::optional<int64_t>> windows(static_cast<size_t>(layers));
  const bool qwen = family == "qwen2" || family == "qwen3";
  if (family == "llama") return windows;
  // Without the key, what transformers takes then; null is none.
  const int64_t usual = in.has("sliding_window") ? 0 : family == "gpt_oss" ? 128 : 4096;
  std::optional<int64_t> window = in.integer("sliding_window", usual, 0);
  if (*window == 0) window.reset();
  if (qwen && !in.boolean("use_sliding_window", false)) window.reset();
  const int64_t first = qwen ? in.integer("max_window_layers", 28) : 0;
  const auto types = in.get("layer_types");
  if (types.is_null()) {
    for (int64_t i = 0; i < layers; ++i) {
      if (i >= first && !(family == "gpt_oss" && i % 2)) windows[static_cast<size_t>(i)] = window;
    }
    return windows;
  }
  if (!types.is<attzoo::core::Json::Array>() ||
      types.array().size() != static_cast<size_t>(layers)) {
    in.wrong("layer_types must be a list of num_hidden_layers names");
    return windows;
  }
  for (size_t i = 0; i < windows.size(); ++i) {
    const auto& type = types.array()[i];
    if (type.dump() == "\"sliding_attention\"") {
      if (!window) in.wrong("layer_types asks for a window, and there is none");
      windows[i] = window;
    } else if (type.dump() != "\"full_attention\"") {
      in.wrong("layer_types: " + type.dump() + " is not supported");
    }
  }
  return windows;
}

inline void read_gpt2(Reader& in, Config& c) {
  const int64_t width = in.size("n_embd"), heads = in.size("n_head");
  if (heads > 0 && width % heads != 0) in.wrong("n_head must divide n_embd");
  c.vocab = in.size("vocab_size");
  c.context = c.positions = in.size("n_positions");
  c.tied = in.boolean("tie_word_embeddings", true);
  c.windows.resize(static_cast<size_t>(read_layers(in, "n_layer")));
  c.attention = {.d_model = width, .num_query_heads = heads, .num_kv_heads = heads, .bias = true};
  c.block = {.mlp_hidden = in.size("n_inner", 4 * width),
             .norm_eps = in.number("layer_norm_epsilon", 1e-5, 0, 1),
             .activation = read_activation(in, "activation_function", "gelu_new")};
  c.names = attzoo::names::gpt2();
  in.only("scale_attn_weights", true);
  in.only("scale_attn_by_inverse_layer_idx", false);
  in.only("add_cross_attention", false);
  in.ignore({"n_ctx", "reorder_and_upcast_attn", "attn_pdrop", "embd_pdrop", "resid_pdrop",
             "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
             "summary_type", "summary_use_proj"});
}

inline void read_llama_like(Reader& in, Config& c) {
  const bool oss = c.family == "gpt_oss", qwen2 = c.family == "qwen2", qwen3 = c.family == "qwen3";
  const int64_t width = in.size("hidden_size"), heads = in.size("num_attention_heads");
  const int64_t usual = qwen3 ? 128 : oss ? 64 : width / std::max<int64_t>(heads, 1);
  const int64_t head_dim = in.size("head_dim", usual);
  const double eps = in.number("rms_norm_eps", oss ? 1e-5 : 1e-6, 0, 1);
  const bool bias = c.family != "mistral" && !qwen2 && in.boolean("attention_bias", oss);
  c.vocab = in.size("vocab_size");
  c.context = in.integer("max_position_embeddings", std::nullopt, 1);
  c.tied = in.boolean("tie_word_embeddings", false);
  c.attention = {.d_model = width,
                 .num_query_heads = heads,
                 .num_kv_heads = in.size("num_key_value_heads", heads),
                 .bias = bias || qwen2,
                 .rope = read_rope(in, c, head_dim),
                 .head_dim = head_dim,
                 .out_bias = bias,
                 .qk_norm = qwen3,
                 .qk_norm_eps = eps,
                 .sinks = oss};
  c.block = {.mlp_hidden = in.size("intermediate_size"),
             .norm = attzoo::NormKind::kRMSNorm,
             .norm_eps = eps,
             .mlp_gated = true,
             .mlp_bias = c.family == "llama" && in.boolean("mlp_bias", false)};
  c.windows = read_windows(in, c.family, read_layers(in, "num_hidden_layers"));
  in.ignore({"attention_dropout", "pretraining_tp"});
  if (!oss) {
    c.block.activation = read_activation(in, "hidden_act", "silu");
    c.names = attzoo::names::llama();
    return;
  }
  in.only("hidden_act", "silu");
  c.experts = ExpertsOptions{.count = in.size("num_local_experts"),
                             .per_token = in.size("num_experts_per_tok", 4),
                             .alpha = in.number("swiglu_alpha", 1.702),
                             .limit = in.number("swiglu_limit", 7, 0)};
  if (c.experts->per_token > c.experts->count) {
    in.wrong("num_experts_per_tok must be at most num_local_experts");
  }
  c.names = attzoo::names::gpt_oss();
  in.ignore({"experts_per_token", "initial_context_length", "output_router_logits",
             "router_aux_loss_coef"});
}

/// Throws one c10::ValueError that lists all keys that are missing, wrong, not supported, or not
/// known to change nothing.
inline Config read_config(const attzoo::core::Json& json) {
  static const std::set<std::string> families = {"llama", "mistral", "qwen2",
                                                 "qwen3", "gpt2",    "gpt_oss"};
  Config c;
  Reader in(json, "");
  c.family = in.string("model_type");
  TORCH_CHECK_VALUE(families.count(c.family), "config.json: model_type \"", c.family,
                    "\" is not one of gpt2, gpt_oss, llama, mistral, qwen2, qwen3");
  const auto architectures = in.get("architectures");
  if (!architectures.is_null()) {
    const auto text = architectures.dump();
    if (text.find("ForCausalLM") == std::string::npos &&
        text.find("LMHeadModel") == std::string::npos) {
      in.wrong("architectures = " + text + " is no language model");
    }
  }
  const auto stop = in.get("eos_token_id");
  if (stop.is<attzoo::core::Json::Array>()) {
    for (const auto& id : stop.array()) {
      if (id.is<int64_t>()) {
        c.stop.push_back(id.integer());
      } else {
        in.wrong("eos_token_id: " + id.dump() + " is no token");
      }
    }
  } else if (!stop.is_null()) {
    c.stop.push_back(in.integer("eos_token_id"));
  }
  if (c.family == "gpt2") {
    read_gpt2(in, c);
  } else {
    read_llama_like(in, c);
  }
  c.attention.dropout = 0;
  c.attention.causal = true;
  in.only("is_encoder_decoder", false);
  in.ignore({"_attn_implementation",
             "_name_or_path",
             "bos_token_id",
             "chunk_size_feed_forward",
             "dtype",
             "gradient_checkpointing",
             "id2label",
             "initializer_range",
             "is_decoder",
             "keys_to_ignore_at_inference",
             "label2id",
             "output_attentions",
             "output_hidden_states",
             "pad_token_id",
             "problem_type",
             "return_dict",
             "task_specific_params",
             "torch_dtype",
             "torchscript",
             "transformers_version",
             "unk_token_id",
             "use_cache"});
  const auto problems = in.problems();
  TORCH_CHECK_VALUE(problems.empty(), "config.json:", problems);
  return c;
}

}  // namespace generate
