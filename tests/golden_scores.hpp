#pragma once
/// \file
/// Reference cases (golden_modern.hpp) of softmax attention whose scores are changed: a forget
/// gate, a sink, T5's relative bias, and differences of two softmaxes.

#include <attzoo/differential.hpp>
#include <attzoo/forgetting.hpp>
#include <attzoo/relative.hpp>

#include "golden_modern.hpp"

namespace attzoo::testing {

/// The tensors `in.X` of these names, as leaves.
inline NamedTensors leaves_of(const ModernCase& c, std::initializer_list<const char*> names) {
  NamedTensors found;
  for (const std::string name : names) {
    if (c.has("in." + name)) found[name] = c.at("in." + name).detach().clone().requires_grad_();
  }
  return found;
}

/// The output, and the gradients of all leaves.
inline void compare_call(const ModernCase& c, const torch::Tensor& out, const NamedTensors& leaves,
                         Report& report) {
  report.compare("out.o", out, c.at("out.o"), c.tolerance());
  (out * c.at("cot.o")).sum().backward();
  for (const auto& [name, leaf] : leaves) {
    report.compare("grad." + name, leaf.grad(), c.at("grad." + name), c.tolerance());
  }
}

/// attn and forgetting_attn of flash-linear-attention, by attention().
inline void check_attn(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  const bool forgets = c.op == "forgetting_attn";
  const auto* causal_field = f.find("causal");
  const auto window_size = f.maybe_integer("window");
  AttentionOptions options;
  if (const auto* scale = f.find("scale")) options.scale = scale->number();
  f.ignore({"op", "case", "B", "H", "Hkv", "N", "Dk", "Dv", "f32", "sink", "g"});
  f.check_all_asked();
  const auto t = leaves_of(c, {"q", "k", "v", "g", "sink"});
  core::AnyMask mask;
  if (!causal_field || causal_field->boolean()) mask = causal();
  // Without causality the window bounds what lies before alone.
  if (window_size) mask = mask && window(*window_size - 1, kUnbounded);
  core::AnyScore score;
  if (forgets) score = decay(t.at("g").cumsum(-1));
  if (t.count("sink")) score = score + sink(t.at("sink"));
  const auto out = attention(t.at("q"), t.at("k"), t.at("v"), mask, score, options);
  if (c.has("out.max_logit")) {
    const torch::NoGradGuard no_grad;
    // The largest weight is exp(the largest logit - lse).
    auto most = torch::Tensor(out.weights).amax(-1).log() + out.lse;
    if (t.count("sink")) most = torch::maximum(most, t.at("sink").view({1, -1, 1}));
    report.compare("out.max_logit", most, c.at("out.max_logit"), c.tolerance());
  }
  compare_call(c, out.output, t, report);
}

inline void check_t5(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  const auto* decoder = f.find("decoder");
  const std::string table = "relative_attention_bias.weight";
  const RelativeSelfAttentionOptions o{.d_model = f.integer("E"),
                                       .num_heads = f.integer("H"),
                                       .num_buckets = f.integer("buckets"),
                                       .max_distance = f.integer("max_distance"),
                                       .bidirectional = !(decoder && decoder->boolean()),
                                       .has_relative_bias = c.has("param." + table),
                                       .head_dim = f.integer("D")};
  f.ignore({"op", "case", "B", "N", "M", "f32", "pad_last", "pad_first"});
  f.check_all_asked();
  RelativeSelfAttention m(o);
  if (c.dtype == "f64") m->to(torch::kFloat64);
  NameMap names;
  for (const std::string part : {"q", "k", "v", "o"}) {
    names.rename(part + ".weight", "w_" + part + ".weight");
  }
  names.rename(table, "relative_attention_bias");
  load_state_dict(*m, c.under("param."), names);
  auto leaves = leaves_of(c, {"hidden_states", "key_value_states"});
  AttentionInputs in;
  if (c.has("in.allowed")) in.mask = c.at("in.allowed");
  if (leaves.count("key_value_states")) in.context = leaves.at("key_value_states");
  const auto out = m(leaves.at("hidden_states"), in).output;
  if (c.has("aux.bucket") && o.has_relative_bias) {
    const auto rows = c.at("aux.bucket");
    const int64_t n = rows.size(0);
    const auto q = torch::zeros({1, o.num_heads, n, 1}, torch::kFloat64);
    // Scores that are the numbers of buckets; none has 0, so that their softmax tells them.
    const auto numbers = torch::arange(o.num_buckets, torch::kFloat64) / 8;
    const auto score =
        relative_bias(numbers.unsqueeze(1).expand({-1, o.num_heads}),
                      {.bidirectional = *o.bidirectional, .max_distance = o.max_distance});
    const torch::Tensor weights = attention(q, q, q, full(), score).weights;
    report.compare("aux.bucket", weights[0][0], torch::softmax(rows.to(torch::kFloat64) / 8, -1),
                   1e-12);
  }
  compare_call(c, out, leaves, report);
  NamedTensors found;
  for (const std::string part : {"q", "k", "v", "o"}) {
    found[part + ".weight"] = m->named_parameters()["w_" + part + ".weight"].grad();
  }
  if (o.has_relative_bias) found[table] = m->relative_attention_bias.grad();
  compare_gradients(c, found, report);
}

inline void check_diffllama(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  const auto* rope = f.find("rope");
  static const core::Json none(core::Json::Object{});
  const auto* cfg = f.find("cfg");
  Fields model(cfg ? *cfg : none, "config.cfg");
  const int64_t D = f.integer("D");
  const DifferentialSelfAttentionOptions o{
      .d_model = f.integer("E"),
      .num_query_heads = f.integer("H"),
      .num_kv_heads = f.integer("Hkv"),
      .half_pairs = true,
      .norm_weight = false,
      .layer = f.integer("layer"),
      .eps = model.number("rms_norm_eps", f.number("eps", 1e-5)),
      .bias = c.has("param.q_proj.bias"),
      .rope = read_rope(rope ? *rope : none, D),
      .causal = true,
      .head_dim = D,
      .out_bias = c.has("param.o_proj.bias")};
  f.ignore({"op", "case", "B", "N", "f32", "pos_shift", "pos0", "pad_last", "pad_first", "maxpos"});
  model.ignore({"attention_bias", "lambda_std_dev", "head_dim"});
  f.check_all_asked();
  model.check_all_asked();
  DifferentialSelfAttention m(o);
  if (c.dtype == "f64") m->to(torch::kFloat64);
  if (c.has("aux.lambda_init")) {
    report.compare("aux.lambda_init", torch::tensor(m->lambda_init(), torch::kFloat64),
                   c.at("aux.lambda_init"), c.tolerance());
  }
  NameMap names;
  for (const std::string part : {"q", "k", "v", "o"}) {
    names.rename_layer(part + "_proj", "w_" + part);
  }
  for (const std::string name : {"lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"}) {
    names.rename(name, name);
  }
  load_state_dict(*m, c.under("param."), names);
  const auto leaves = leaves_of(c, {"hidden_states"});
  const auto in = inputs_of(c, /*causal=*/true, {}, report);
  compare_call(c, m(leaves.at("hidden_states"), in).output, leaves, report);
  NamedTensors found;
  for (const auto& p : m->named_parameters()) {
    auto name = p.key();
    if (name.starts_with("w_")) name = name.substr(2, 1) + "_proj" + name.substr(3);
    found[name] = p.value().grad();
  }
  compare_gradients(c, found, report);
}

/// False for an op that is not here.
inline bool check_scores(const ModernCase& c, Report& report) {
  if (c.op == "attn" || c.op == "forgetting_attn") {
    check_attn(c, report);
  } else if (c.op == "t5_attention") {
    check_t5(c, report);
  } else if (c.op == "diffllama_attention") {
    check_diffllama(c, report);
  } else {
    return false;
  }
  return true;
}

}  // namespace attzoo::testing
