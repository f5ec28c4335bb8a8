#pragma once
/// \file
/// Reference cases made by running public implementations of attention layers. Metadata: `op`,
/// `dtype` (f32 or f64) and `config`; tensors: in.X, param.X by upstream names, out.X, cot.X, and
/// grad.X and grad.param.X, the gradients of the sum over outputs of <cot, out>.

#include <attzoo/grouped.hpp>
#include <attzoo/io/json.hpp>
#include <attzoo/io/safetensors.hpp>
#include <attzoo/multi_head.hpp>

#include <map>
#include <set>
#include <string>
#include <utility>

#include "golden_report.hpp"

namespace attzoo::testing {

using NamedTensors = std::map<std::string, torch::Tensor>;

struct ModernCase {
  std::string op, dtype;
  core::Json config;
  NamedTensors t;

  bool has(const std::string& name) const { return t.count(name) > 0; }
  const torch::Tensor& at(const std::string& name) const {
    TORCH_CHECK_VALUE(has(name), "the case has no tensor ", name);
    return t.at(name);
  }
  /// Tensors whose names begin with prefix, without it.
  NamedTensors under(const std::string& prefix) const {
    NamedTensors found;
    for (const auto& [name, tensor] : t) {
      if (name.starts_with(prefix)) found[name.substr(prefix.size())] = tensor;
    }
    return found;
  }
  double tolerance() const { return dtype == "f64" ? 1e-12 : 1e-5; }
};

inline ModernCase modern_case(SafeTensors file) {
  return {file.metadata.at("op"), file.metadata.at("dtype"),
          core::Json::parse(file.metadata.at("config")), std::move(file.tensors)};
}

/// The fields of an object of options, null ones as if they were not there. Those that nobody asked
/// for are an error.
class Fields {
 public:
  Fields(const core::Json& json, std::string where)
      : object_(json.object()), where_(std::move(where)) {}

  const core::Json* find(const std::string& name) {
    asked_.insert(name);
    const auto it = object_.find(name);
    return it == object_.end() || it->second.is_null() ? nullptr : &it->second;
  }
  double number(const std::string& name, double otherwise) {
    const auto* found = find(name);
    return found ? found->number() : otherwise;
  }
  int64_t integer(const std::string& name) { return need(name).integer(); }
  std::optional<int64_t> maybe_integer(const std::string& name) {
    const auto* found = find(name);
    return found ? std::optional(found->integer()) : std::nullopt;
  }
  const core::Json& need(const std::string& name) {
    const auto* found = find(name);
    TORCH_CHECK_VALUE(found, where_, ": no field ", name);
    return *found;
  }
  /// They describe how inputs were drawn, which are in the file, or another field says the same.
  void ignore(std::initializer_list<const char*> names) {
    for (const auto* name : names) asked_.insert(name);
  }
  void check_all_asked() const {
    for (const auto& [name, value] : object_) {
      TORCH_CHECK_VALUE(asked_.count(name) || value.is_null(), where_, ": unknown field ", name);
    }
  }

 private:
  core::Json::Object object_;
  std::string where_;
  std::set<std::string> asked_;
};

/// Hugging Face's rope parameters, for heads of D features.
inline RopeOptions read_rope(const core::Json& json, int64_t D) {
  Fields f(json, "config.rope");
  RopeOptions o{.base = f.number("rope_theta", 10000.0), .pairs = RopePairs::kHalves};
  if (const auto* part = f.find("partial_rotary_factor")) {
    o.dimensions = static_cast<int64_t>(static_cast<double>(D) * part->number());
  }
  const auto* named = f.find("rope_type");
  const std::string type = named ? named->string() : "default";
  if (type == "linear") {
    o.scaling = LinearRopeScaling{.factor = f.need("factor").number()};
  } else if (type == "llama3") {
    o.scaling =
        Llama3RopeScaling{.factor = f.need("factor").number(),
                          .low_freq_factor = f.need("low_freq_factor").number(),
                          .high_freq_factor = f.need("high_freq_factor").number(),
                          .original_max_position = f.integer("original_max_position_embeddings")};
  } else if (type == "yarn") {
    YarnRopeScaling yarn{.factor = f.need("factor").number(),
                         .original_max_position = f.integer("original_max_position_embeddings"),
                         .beta_fast = f.number("beta_fast", 32.0),
                         .beta_slow = f.number("beta_slow", 1.0)};
    if (const auto* truncate = f.find("truncate")) yarn.truncate = truncate->boolean();
    const double mscale = f.number("mscale", 0.0), all = f.number("mscale_all_dim", 0.0);
    const auto scale = [&](double m) { return 0.1 * m * std::log(yarn.factor) + 1; };
    if (mscale != 0 && all != 0) yarn.attention_factor = scale(mscale) / scale(all);
    if (const auto* given = f.find("attention_factor")) yarn.attention_factor = given->number();
    o.scaling = yarn;
  } else {
    TORCH_CHECK_VALUE(type == "default", "config.rope: unknown rope_type ", type);
  }
  f.check_all_asked();
  return o;
}

/// The options of a decoder's attention layer with RoPE, by its config and its parameters.
inline GroupedSelfAttentionOptions read_options(const ModernCase& c) {
  Fields f(c.config, "config");
  static const core::Json none(core::Json::Object{});
  const auto* rope = f.find("rope");
  const auto* cfg = f.find("cfg");
  Fields model(cfg ? *cfg : none, "config.cfg");
  const int64_t E = f.integer("E"), D = f.integer("D");
  const bool bias = c.has("param.q_proj.bias");
  GroupedSelfAttentionOptions o{.d_model = E,
                                .num_query_heads = f.integer("H"),
                                .num_kv_heads = f.integer("Hkv"),
                                .dropout = 0,
                                .bias = bias,
                                .rope = read_rope(rope ? *rope : none, D),
                                .causal = true,
                                .head_dim = D,
                                .out_bias = c.has("param.o_proj.bias"),
                                .qk_norm = c.has("param.q_norm.weight"),
                                .sinks = c.has("param.sinks"),
                                .output_gate = c.op == "qwen3_next_attention"};
  o.qk_norm_eps = model.number("rms_norm_eps", f.number("eps", 1e-6));
  if (c.op == "gemma2_attention") {
    const double scalar = model.number("query_pre_attn_scalar", 256.0);
    o.temperature = std::sqrt(scalar / static_cast<double>(D));
    const bool capped = !cfg || !cfg->contains("attn_logit_softcapping") ||
                        !(*cfg)["attn_logit_softcapping"].is_null();
    const double cap = model.number("attn_logit_softcapping", 50.0);
    if (capped) o.softcap = cap;
  }
  // Gemma 2 and GPT-OSS: even layers have a window. in.allowed has it, too, and is compared.
  const auto layer = f.maybe_integer("layer");
  const auto of_model = model.maybe_integer("sliding_window"), window = f.maybe_integer("window");
  const bool alternates = c.op == "gemma2_attention" || c.op == "gpt_oss_attention";
  if (window) {
    o.sliding_window = window;
  } else if (alternates && layer && *layer % 2 == 0) {
    o.sliding_window = of_model;
  }
  model.ignore({"attention_bias"});  // the parameters have it
  f.ignore({"op", "family", "case", "B", "N", "f32", "maxpos", "pos_shift", "pos0", "pad_last"});
  model.check_all_asked();
  f.check_all_asked();
  return o;
}

/// Rows of a per-head pair of projections, [heads * 2D, ...], as two, and the other way round.
inline std::pair<torch::Tensor, torch::Tensor> split_rows(const torch::Tensor& t, int64_t D) {
  const auto parts = t.unflatten(0, {-1, 2, D});
  return {parts.select(1, 0).flatten(0, 1), parts.select(1, 1).flatten(0, 1)};
}
inline torch::Tensor join_rows(const torch::Tensor& a, const torch::Tensor& b, int64_t D) {
  return torch::stack({a.unflatten(0, {-1, D}), b.unflatten(0, {-1, D})}, 1).flatten(0, 2);
}

inline const std::map<std::string, std::string>& upstream_names() {
  static const std::map<std::string, std::string> names{
      {"w_q", "q_proj"},    {"w_k", "k_proj"},    {"w_v", "v_proj"}, {"w_o", "o_proj"},
      {"norm_q", "q_norm"}, {"norm_k", "k_norm"}, {"sinks", "sinks"}};
  return names;
}

/// Upstream parameters by the names of attzoo. Qwen3-Next has the gate in q_proj, [q, gate] for
/// each head, and norms that multiply by 1 + weight.
inline NamedTensors from_upstream(const std::string& op, int64_t D, NamedTensors upstream) {
  NamedTensors state;
  const bool next = op == "qwen3_next_attention";
  for (const auto& [ours, theirs] : upstream_names()) {
    for (const std::string part : {"", ".weight", ".bias"}) {
      const auto node = upstream.extract(theirs + part);
      if (node.empty()) continue;
      auto value = node.mapped();
      if (next && ours == "w_q") std::tie(value, state["w_g" + part]) = split_rows(value, D);
      if (next && ours.starts_with("norm")) value = value + 1;
      state[ours + part] = value;
    }
  }
  TORCH_CHECK_VALUE(upstream.empty(), "unknown parameter ",
                    upstream.empty() ? "" : upstream.begin()->first);
  return state;
}

/// The gradients of a module's parameters by upstream names.
inline NamedTensors gradients_upstream(const std::string& op, int64_t D,
                                       const torch::nn::Module& module) {
  NamedTensors ours, found;
  for (const auto& p : module.named_parameters()) ours[p.key()] = p.value().grad();
  for (const auto& [name, theirs] : upstream_names()) {
    for (const std::string part : {"", ".weight", ".bias"}) {
      if (!ours.count(name + part)) continue;
      auto value = ours.at(name + part);
      if (op == "qwen3_next_attention" && name == "w_q") {
        value = join_rows(value, ours.at("w_g" + part), D);
      }
      found[theirs + part] = value;
    }
  }
  return found;
}

/// The mask of a call: as options if they say it, else as a tensor.
inline AttentionInputs inputs_of(const ModernCase& c, const std::optional<int64_t>& sliding_window,
                                 Report& report) {
  AttentionInputs in;
  if (c.has("in.position_ids")) in.positions = c.at("in.position_ids");
  if (!c.has("in.allowed")) return in;
  const auto allowed = c.at("in.allowed").squeeze(1);  // [B, N, N]
  const int64_t n = allowed.size(-1);
  auto pattern = torch::ones({n, n}, torch::kBool).tril();
  if (sliding_window) pattern = pattern.triu(1 - *sliding_window);
  const auto real = allowed.any(1);
  if (torch::equal(allowed, pattern & real.unsqueeze(1))) {
    if (!real.all().item<bool>()) in.key_padding_mask = real;
  } else {
    report.expect((pattern | allowed.logical_not()).all().item<bool>(),
                  "in.allowed has pairs that the options forbid");
    in.mask = allowed;
  }
  return in;
}

/// One call of a module: the output and all gradients.
template <class Module>
void check_layer(const ModernCase& c, Module m, const std::optional<int64_t>& sliding_window,
                 Report& report) {
  const int64_t D = m->d_head();
  if (c.dtype == "f64") m->to(torch::kFloat64);
  load_state_dict(*m, from_upstream(c.op, D, c.under("param.")));
  const auto x = c.at("in.hidden_states").detach().clone().requires_grad_();
  const auto out = m(x, inputs_of(c, sliding_window, report)).output;
  report.compare("out.o", out, c.at("out.o"), c.tolerance());
  (out * c.at("cot.o")).sum().backward();
  report.compare("grad.hidden_states", x.grad(), c.at("grad.hidden_states"), c.tolerance());
  auto gradients = gradients_upstream(c.op, D, *m);
  for (const auto& [name, want] : c.under("grad.param.")) {
    report.compare("grad.param." + name, gradients[name], want, c.tolerance());
  }
}

inline void check_rope_layer(const ModernCase& c, Report& report) {
  const auto o = read_options(c);
  if (c.has("aux.inv_freq")) {
    const auto f = rope_frequencies(*o.rope.options(), *o.head_dim);
    report.compare("aux.inv_freq", f.radians, c.at("aux.inv_freq"), c.tolerance());
    report.compare("aux.attention_scaling", torch::tensor(f.attention_factor, torch::kFloat64),
                   c.at("aux.attention_scaling"), c.tolerance());
  }
  check_layer(c, GroupedSelfAttention(o), o.sliding_window, report);
  if (o.num_kv_heads != o.num_query_heads) return;
  check_layer(c,
              MultiHeadSelfAttention({.d_model = o.d_model,
                                      .num_heads = o.num_query_heads,
                                      .dropout = 0,
                                      .bias = o.bias,
                                      .temperature = o.temperature,
                                      .rope = o.rope,
                                      .causal = true,
                                      .head_dim = o.head_dim,
                                      .out_bias = o.out_bias,
                                      .qk_norm = o.qk_norm,
                                      .qk_norm_eps = o.qk_norm_eps,
                                      .softcap = o.softcap,
                                      .sinks = o.sinks,
                                      .output_gate = o.output_gate,
                                      .sliding_window = o.sliding_window}),
              o.sliding_window, report);
}

/// Throws Skipped for an op that attzoo does not have.
inline void check_modern(const ModernCase& c, Report& report) {
  static const std::set<std::string> layers{"llama_attention",  "qwen2_attention",
                                            "qwen3_attention",  "qwen3_next_attention",
                                            "gemma2_attention", "gpt_oss_attention"};
  if (layers.count(c.op)) return check_rope_layer(c, report);
  throw Skipped{"attzoo has no " + c.op};
}

}  // namespace attzoo::testing
