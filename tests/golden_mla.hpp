#pragma once
/// \file
/// Reference cases of multi-head latent attention (golden_modern.hpp says what a case has), in the
/// full and in the absorbed form.

#include <attzoo/io/latent_name_maps.hpp>
#include <attzoo/multi_head_latent.hpp>

#include <cmath>
#include <string>

#include "golden_modern.hpp"

namespace attzoo::testing {

/// The options of a case, by its config and its parameters.
inline MultiHeadLatentAttentionOptions read_latent_options(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  static const core::Json none(core::Json::Object{});
  const auto* cfg = f.find("cfg");
  Fields model(cfg ? *cfg : none, "config.cfg");
  const bool bias = c.has("param.kv_a_proj_with_mqa.bias");
  MultiHeadLatentAttentionOptions o{.d_model = f.integer("E"),
                                    .num_heads = f.integer("H"),
                                    .head_dim = f.integer("nope"),
                                    .rope_dim = f.integer("rope_dim"),
                                    .value_head_dim = f.integer("v"),
                                    .kv_rank = f.integer("kv_lora"),
                                    .q_rank = f.maybe_integer("q_lora"),
                                    .bias = bias,
                                    .causal = true};
  // Both layers scale by YaRN's magnitude, whatever stretches the positions.
  auto rope = f.find("rope") ? f.find("rope")->object() : core::Json::Object();
  const auto number = [&](const char* name) {
    return rope.count(name) ? rope.at(name).number() : 0.0;
  };
  const bool stretched = rope.count("rope_type") && rope.at("rope_type").string() != "default";
  const double all = number("mscale_all_dim");
  double magnitude = stretched && all != 0 ? yarn_magnitude(number("factor"), all) : 1.0;
  if (!stretched || rope.at("rope_type").string() != "yarn") {
    rope.erase("mscale");
    rope.erase("mscale_all_dim");
  }
  auto options = read_rope(core::Json(rope), *o.rope_dim);
  auto halves = model.find("rope_interleave");
  if (!halves) halves = f.find("rope_interleave");
  options.pairs = halves && !halves->boolean() ? RopePairs::kHalves : RopePairs::kInterleaved;
  const double plain = 1 / std::sqrt(static_cast<double>(*o.head_dim + *o.rope_dim));
  const double scale = c.at("aux.scale").item<double>();
  // Some versions of DeepseekV2Attention leave it away.
  if (c.op == "deepseek_v2_mla" && std::abs(scale / plain - 1) < 1e-6) magnitude = 1;
  o.temperature = 1 / (magnitude * magnitude);
  o.rope = options;
  report.compare("aux.scale", torch::tensor(plain / o.temperature, torch::kFloat64),
                 c.at("aux.scale"), c.tolerance());
  const auto turns = rope_frequencies(options, *o.rope_dim);
  report.compare("aux.inv_freq", turns.radians, c.at("aux.inv_freq"), c.tolerance());
  report.compare("aux.rope_factor", torch::tensor(turns.attention_factor, torch::kFloat64),
                 c.at("aux.rope_factor"), c.tolerance());
  if (const auto size = model.maybe_integer("head_dim")) {
    TORCH_CHECK_VALUE(*size == *o.rope_dim, "config.cfg.head_dim is ", *size);
  }
  // The parameters have the bias, in.position_ids where tokens stand; both norms have eps 1e-6.
  model.ignore({"attention_bias", "rms_norm_eps"});
  f.ignore({"op", "case", "ver", "B", "N", "f32", "pad_last", "pad_first", "pos0", "pos_shift",
            "maxpos", "attention_bias"});
  model.check_all_asked();
  f.check_all_asked();
  return o;
}

/// Checks a case of latent attention; false for other ops.
inline bool check_mla(const ModernCase& c, Report& report) {
  if (c.op != "deepseek_v2_mla" && c.op != "deepseek_v3_mla") return false;
  auto options = read_latent_options(c, report);
  const auto names = names::deepseek();
  for (const bool absorb : {false, true}) {
    options.absorb = absorb;
    MultiHeadLatentAttention m(options);
    if (c.dtype == "f64") m->to(torch::kFloat64);
    load_state_dict(*m, c.under("param."), names);
    const auto x = c.at("in.hidden_states").detach().clone().requires_grad_();
    const auto out = m(x, inputs_of(c, /*causal=*/true, {}, report)).output;
    report.compare("out.o", out, c.at("out.o"), c.tolerance());
    (out * c.at("cot.o")).sum().backward();
    report.compare("grad.hidden_states", x.grad(), c.at("grad.hidden_states"), c.tolerance());
    compare_gradients(c, *m, names, report);
  }
  return true;
}

}  // namespace attzoo::testing
