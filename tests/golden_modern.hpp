#pragma once
/// \file
/// Reference cases made by running public implementations of attention layers. Metadata: `op`,
/// `dtype` (f32 or f64) and `config`; tensors: in.X, param.X by upstream names, out.X, cot.X, and
/// grad.X and grad.param.X, the gradients of the sum over outputs of <cot, out>.

#include <torch/nn/init.h>
#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/scores.hpp>
#include <attzoo/grouped.hpp>
#include <attzoo/io/json.hpp>
#include <attzoo/io/safetensors.hpp>
#include <attzoo/io/state_dict.hpp>
#include <attzoo/module/torch_masks.hpp>
#include <attzoo/multi_head.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
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
  if (const auto size = model.maybe_integer("head_dim")) {
    TORCH_CHECK_VALUE(*size == D, "config.cfg.head_dim is ", *size, ", but D ", D);
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
  // The parameters have the bias, in.allowed who attends, and in.position_ids where tokens stand.
  model.ignore({"attention_bias", "use_sliding_window", "max_window_layers", "layer_types"});
  f.ignore({"op", "family", "case", "B", "N", "f32", "maxpos", "pos_shift", "pos0", "pad_last",
            "pad_first"});
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
inline AttentionInputs inputs_of(const ModernCase& c, bool causal,
                                 const std::optional<int64_t>& sliding_window, Report& report) {
  AttentionInputs in;
  if (c.has("in.position_ids")) in.positions = c.at("in.position_ids");
  if (!c.has("in.allowed")) return in;
  const auto allowed = c.at("in.allowed").squeeze(1);  // [B, N, N]
  const int64_t n = allowed.size(-1);
  auto pattern = torch::ones({n, n}, torch::kBool);
  if (causal) pattern = pattern.tril();
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

/// By upstream names.
inline void compare_gradients(const ModernCase& c, NamedTensors found, Report& report) {
  for (const auto& [name, want] : c.under("grad.param.")) {
    report.compare("grad.param." + name, found[name], want, c.tolerance());
  }
}

/// Those of a module's parameters, which `names` gives upstream ones.
inline void compare_gradients(const ModernCase& c, const torch::nn::Module& module,
                              const NameMap& names, Report& report) {
  NamedTensors own;
  for (const auto& p : module.named_parameters()) own[p.key()] = p.value().grad();
  std::string wrong;
  const auto found = core::upstream_tensors(own, names, wrong);
  TORCH_CHECK_VALUE(wrong.empty(), wrong);
  compare_gradients(c, found, report);
}

/// One call of a module: the output and all gradients.
template <class Module>
void check_layer(const ModernCase& c, Module m, const std::optional<int64_t>& sliding_window,
                 Report& report) {
  const int64_t D = m->d_head();
  if (c.dtype == "f64") m->to(torch::kFloat64);
  load_state_dict(*m, from_upstream(c.op, D, c.under("param.")));
  const auto x = c.at("in.hidden_states").detach().clone().requires_grad_();
  const auto out = m(x, inputs_of(c, /*causal=*/true, sliding_window, report)).output;
  report.compare("out.o", out, c.at("out.o"), c.tolerance());
  (out * c.at("cot.o")).sum().backward();
  report.compare("grad.hidden_states", x.grad(), c.at("grad.hidden_states"), c.tolerance());
  compare_gradients(c, gradients_upstream(c.op, D, *m), report);
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

/// The same for modules whose q, k and v lie in one tensor, rows q|k|v.
struct Fused {
  std::string qkv_weight, qkv_bias, out;
  bool transposed = false;  ///< weights [in, out]

  torch::Tensor turned(const torch::Tensor& t) const {
    return transposed && t.dim() == 2 ? t.t() : t;
  }

  NamedTensors from_upstream(NamedTensors upstream) const {
    NamedTensors state;
    const auto take = [&](const std::string& name) {
      const auto node = upstream.extract(name);
      return node.empty() ? torch::Tensor() : turned(node.mapped());
    };
    for (const std::string part : {"weight", "bias"}) {
      if (const auto t = take(part == "weight" ? qkv_weight : qkv_bias); t.defined()) {
        const auto parts = t.chunk(3, 0);
        for (size_t i = 0; i < 3; ++i) state[c10::str("w_", "qkv"[i], ".", part)] = parts[i];
      }
      if (const auto t = take(out + "." + part); t.defined()) state["w_o." + part] = t;
    }
    TORCH_CHECK_VALUE(upstream.empty(), "unknown parameter ",
                      upstream.empty() ? "" : upstream.begin()->first);
    return state;
  }

  NamedTensors gradients(const MultiHeadSelfAttention& m) const {
    const auto joined = [&](auto of) {
      return turned(torch::cat({of(m->w_q).grad(), of(m->w_k).grad(), of(m->w_v).grad()}, 0));
    };
    NamedTensors found{{qkv_weight, joined([](const auto& l) { return l->weight; })},
                       {out + ".weight", turned(m->w_o->weight.grad())}};
    if (m->w_q->bias.defined()) {
      found[qkv_bias] = joined([](const auto& l) { return l->bias; });
      found[out + ".bias"] = m->w_o->bias.grad();
    }
    return found;
  }
};

inline void check_gpt2(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  static const core::Json none(core::Json::Object{});
  const auto* cfg = f.find("cfg");
  Fields model(cfg ? *cfg : none, "config.cfg");
  const int64_t E = f.integer("E"), H = f.integer("H");
  // Scores may be divided by the layer's number + 1, and not by sqrt(d_head).
  auto layer = f.maybe_integer("layer");
  bool by_layer = false, by_size = true;
  for (auto* fields : {&f, &model}) {
    if (const auto* inverse = fields->find("inv_layer")) {  // true or false, or the layer
      by_layer = inverse->is<int64_t>() || inverse->boolean();
      if (inverse->is<int64_t>()) layer = inverse->integer();
    }
    if (const auto* given = fields->find("scale_attn_by_inverse_layer_idx")) {
      by_layer = given->boolean();
    }
    if (const auto* given = fields->find("scale_attn_weights")) by_size = given->boolean();
  }
  f.ignore({"op", "case", "B", "N", "f32", "pad_last", "reorder_and_upcast_attn"});
  model.ignore({"reorder_and_upcast_attn"});
  f.check_all_asked();
  model.check_all_asked();
  const Fused names{"c_attn.weight", "c_attn.bias", "c_proj", /*transposed=*/true};
  const auto state = names.from_upstream(c.under("param."));
  const auto make = [&](int64_t of_layer) {
    MultiHeadSelfAttentionOptions o{
        .d_model = E, .num_heads = H, .dropout = 0, .bias = true, .causal = true};
    if (by_layer) o.temperature = static_cast<double>(of_layer + 1);
    if (!by_size) o.temperature /= std::sqrt(static_cast<double>(E / H));
    MultiHeadSelfAttention m(o);
    if (c.dtype == "f64") m->to(torch::kFloat64);
    load_state_dict(*m, state);
    return m;
  };
  const auto x = c.at("in.hidden_states").detach().clone().requires_grad_();
  const auto in = inputs_of(c, /*causal=*/true, {}, report);
  if (by_layer && !layer) {  // the case does not say which: the one whose output comes nearest
    std::pair<double, int64_t> best{INFINITY, 0};
    for (int64_t i = 0; i < 64; ++i) {
      const auto error = (make(i)(x, in).output - c.at("out.o")).abs().max().item<double>();
      best = std::min(best, {error, i});
    }
    layer = best.second;
  }
  auto m = make(layer.value_or(0));
  const auto out = m(x, in).output;
  report.compare("out.o", out, c.at("out.o"), c.tolerance());
  (out * c.at("cot.o")).sum().backward();
  report.compare("grad.hidden_states", x.grad(), c.at("grad.hidden_states"), c.tolerance());
  compare_gradients(c, names.gradients(m), report);
}

/// What a case of torch.nn.MultiheadAttention is differentiated by, each time anew, and its masks.
struct TorchMhaInputs {
  explicit TorchMhaInputs(const ModernCase& c, int64_t num_heads) {
    for (const std::string name : {"query", "key", "value", "attn_mask", "key_padding_mask"}) {
      if (!c.has("in." + name)) continue;
      t[name] = c.at("in." + name).detach().clone();
      if (t[name].is_floating_point()) t[name].requires_grad_();
    }
    masks = from_torch_masks(t["attn_mask"], t["key_padding_mask"], num_heads);
  }
  const torch::Tensor& query() const { return t.at("query"); }
  const torch::Tensor& key() const { return t.count("key") ? t.at("key") : query(); }
  const torch::Tensor& value() const { return t.count("value") ? t.at("value") : key(); }

  NamedTensors t;
  AttentionInputs masks;
};

/// Outputs and weights of all heads, and all gradients.
inline void compare_torch_mha(const ModernCase& c, bool average, const torch::Tensor& output,
                              torch::Tensor weights, const TorchMhaInputs& in,
                              const std::function<NamedTensors()>& gradients, Report& report) {
  report.compare("out.o", output, c.at("out.o"), c.tolerance());
  auto loss = (output * c.at("cot.o")).sum();
  if (c.has("out.weights")) {
    if (average) weights = weights.mean(1);
    report.compare("out.weights", weights, c.at("out.weights"), c.tolerance());
    if (c.has("cot.weights")) loss = loss + (weights * c.at("cot.weights")).sum();
  }
  loss.backward();
  for (const auto& [name, tensor] : in.t) {
    if (!c.has("grad." + name)) continue;
    report.compare("grad." + name, tensor.grad(), c.at("grad." + name), c.tolerance());
  }
  compare_gradients(c, gradients(), report);
}

/// By functions, as a user's own module would: keys and values of other tensors and widths, and
/// those that no token has, a learned one (bias_k, bias_v) and one of zeros, which nothing masks.
inline void check_torch_functions(const ModernCase& c, int64_t H, bool zero_attn, bool average,
                                  Report& report) {
  const TorchMhaInputs in(c, H);
  NamedTensors p;
  for (const auto& [name, t] : c.under("param.")) p[name] = t.detach().clone().requires_grad_();
  const auto maybe = [&](const char* name) { return p.count(name) ? p.at(name) : torch::Tensor(); };
  const auto rows = [&](size_t i, const torch::Tensor& x) {  // of query, key or value
    const auto packed = maybe("in_proj_weight"), bias = maybe("in_proj_bias");
    return torch::linear(
        x, packed.defined() ? packed.chunk(3)[i] : p.at(c10::str("qkv"[i], "_proj_weight")),
        bias.defined() ? bias.chunk(3)[i] : bias);
  };
  const auto heads = [&](const torch::Tensor& x) {
    return x.unflatten(-1, {H, -1}).transpose(1, 2);
  };
  auto q = rows(0, in.query()), k = rows(1, in.key()), v = rows(2, in.value());
  if (p.count("bias_k")) {
    k = torch::cat({k, p.at("bias_k").expand({k.size(0), 1, -1})}, 1);
    v = torch::cat({v, p.at("bias_v").expand({v.size(0), 1, -1})}, 1);
  }
  q = heads(q), k = heads(k), v = heads(v);
  if (zero_attn) {
    k = torch::constant_pad_nd(k, {0, 0, 0, 1});
    v = torch::constant_pad_nd(v, {0, 0, 0, 1});
  }
  const int64_t more = k.size(2) - in.key().size(1);
  auto allowed = torch::ones({1, 1, 1, k.size(2)}, torch::kBool);
  core::AnyScore score;
  const auto& [mask, real] = std::tie(in.masks.mask, in.masks.key_padding_mask);
  if (mask.defined() && mask.is_floating_point()) {
    score = bias_tensor(torch::constant_pad_nd(mask, {0, more}));
  } else if (mask.defined()) {
    allowed = allowed & torch::constant_pad_nd(mask, {0, more}, true);
  }
  if (real.defined()) {
    allowed = allowed & torch::constant_pad_nd(real, {0, more}, true).view({-1, 1, 1, k.size(2)});
  }
  const auto result = attention(q, k, v, mask_tensor(allowed), score);
  const auto output = torch::linear(result.output.transpose(1, 2).flatten(2),
                                    p.at("out_proj.weight"), maybe("out_proj.bias"));
  compare_torch_mha(
      c, average, output, result.weights, in,
      [&] {
        NamedTensors found;
        for (const auto& [name, t] : p) found[name] = t.grad();
        return found;
      },
      report);
}

/// torch.nn.MultiheadAttention, by attzoo's module, too, where keys and values are the query's.
inline void check_torch_mha(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  const int64_t E = f.integer("E"), H = f.integer("H");
  const auto *average = f.find("average"), *zero_attn = f.find("zero_attn");
  const bool of_heads = average && !average->boolean(), zero = zero_attn && zero_attn->boolean();
  // The tensors of the case say the same.
  f.ignore({"op", "case", "B", "N", "M", "f32", "kpm", "attn_mask", "batch_first", "bias", "kdim",
            "vdim", "bias_kv"});
  f.check_all_asked();
  check_torch_functions(c, H, zero, !of_heads, report);
  if (c.has("in.key") || c.has("in.value") || c.has("param.bias_k") || zero) return;
  MultiHeadSelfAttention m(
      {.d_model = E, .num_heads = H, .dropout = 0, .bias = c.has("param.in_proj_bias")});
  const Fused names{"in_proj_weight", "in_proj_bias", "out_proj"};
  if (c.dtype == "f64") m->to(torch::kFloat64);
  load_state_dict(*m, names.from_upstream(c.under("param.")));
  const TorchMhaInputs in(c, H);
  const auto result = m(in.query(), in.masks);
  compare_torch_mha(
      c, !of_heads, result.output, result.weights, in, [&] { return names.gradients(m); }, report);
}

/// BertAttention: the heads' joined outputs, w_o of them, and the layer norm of that and x.
inline void check_bert(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  const MultiHeadSelfAttentionOptions o{
      .d_model = f.integer("E"), .num_heads = f.integer("H"), .dropout = 0, .bias = true};
  f.ignore({"op", "case", "B", "N", "f32", "pad_last"});
  f.check_all_asked();
  static const std::map<std::string, std::string> names{{"w_q", "attention.self.query"},
                                                        {"w_k", "attention.self.key"},
                                                        {"w_v", "attention.self.value"},
                                                        {"w_o", "attention.output.dense"}};
  auto upstream = c.under("param.");
  NamedTensors state;
  for (const auto& [ours, theirs] : names) {
    for (const std::string part : {".weight", ".bias"}) {
      state[ours + part] = upstream.at(theirs + part);
      upstream.erase(theirs + part);
    }
  }
  const std::string norm = "attention.output.LayerNorm.";
  const auto weight = upstream.at(norm + "weight").detach().clone().requires_grad_(),
             bias = upstream.at(norm + "bias").detach().clone().requires_grad_();
  TORCH_CHECK_VALUE(upstream.size() == 2, "unknown parameter ", upstream.begin()->first);
  // The outputs before w_o are those of a module whose w_o changes nothing.
  MultiHeadSelfAttention dense(o), context(o);
  for (auto* m : {&dense, &context}) {
    if (c.dtype == "f64") (*m)->to(torch::kFloat64);
    load_state_dict(**m, state);
  }
  {
    const torch::NoGradGuard no_grad;
    torch::nn::init::eye_(context->w_o->weight);
    context->w_o->bias.zero_();
  }
  const auto x = c.at("in.hidden_states").detach().clone().requires_grad_();
  const auto in = inputs_of(c, /*causal=*/false, {}, report);
  const std::map<std::string, torch::Tensor> outputs = [&] {
    const auto of_dense = dense(x, in).output;
    return std::map<std::string, torch::Tensor>{
        {"context", context(x, in).output},
        {"dense", of_dense},
        {"layer", torch::layer_norm(of_dense + x, {o.d_model}, weight, bias, 1e-12)}};
  }();
  auto loss = torch::zeros({}, x.options());
  for (const auto& [name, out] : outputs) {
    report.compare("out." + name, out, c.at("out." + name), c.tolerance());
    loss = loss + (out * c.at("cot." + name)).sum();
  }
  loss.backward();
  report.compare("grad.hidden_states", x.grad(), c.at("grad.hidden_states"), c.tolerance());
  NamedTensors found{{norm + "weight", weight.grad()}, {norm + "bias", bias.grad()}};
  for (const auto& [ours, theirs] : names) {
    for (const std::string part : {".weight", ".bias"}) {
      const auto name = ours + part;
      found[theirs + part] = dense->named_parameters()[name].grad();
      if (ours != "w_o") found[theirs + part] += context->named_parameters()[name].grad();
    }
  }
  compare_gradients(c, found, report);
}

/// Throws Skipped for an op that attzoo does not have.
inline void check_modern(const ModernCase& c, Report& report) {
  static const std::set<std::string> layers{"llama_attention",  "qwen2_attention",
                                            "qwen3_attention",  "qwen3_next_attention",
                                            "gemma2_attention", "gpt_oss_attention"};
  if (layers.count(c.op)) return check_rope_layer(c, report);
  if (c.op == "gpt2_attention") return check_gpt2(c, report);
  if (c.op == "bert_attention") return check_bert(c, report);
  if (c.op == "torch_multihead_attention") return check_torch_mha(c, report);
  throw Skipped{"attzoo has no " + c.op};
}

}  // namespace attzoo::testing
