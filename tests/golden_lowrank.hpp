#pragma once
/// \file
/// Reference cases of attention in linear time by features, projected keys and landmarks:
/// Performer, Linformer, Nystromformer.

#include <attzoo/functional/performer_attention.hpp>
#include <attzoo/linformer.hpp>
#include <attzoo/nystrom.hpp>

#include <cmath>

#include "golden_modern.hpp"

namespace attzoo::testing {

inline bool flag(Fields& f, const std::string& name) {
  const auto* found = f.find(name);
  return found && found->boolean();
}

/// FastAttention of performer-pytorch, whose causal keys are scaled by the largest of all.
inline void check_performer(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  PerformerAttentionOptions o{.causal = flag(f, "causal"), .max_of_all_keys = true};
  const auto* kind = f.find("kind");
  const std::string kernel = kind ? kind->string() : "softmax";
  o.relu_kernel = kernel == "relu" || kernel == "generalized" || flag(f, "generalized") ||
                  flag(f, "generalized_attention");
  TORCH_CHECK_VALUE(o.relu_kernel || kernel == "softmax", "unknown kind ", kernel);
  f.ignore({"op", "case", "B", "H", "N", "D", "Dk", "Dv", "features", "nb_features", "f32",
            "ortho_scaling", "scaling"});
  f.check_all_asked();
  const auto leaf = [&](const char* name) {
    return c.at(std::string("in.") + name).detach().clone().requires_grad_();
  };
  const auto q = leaf("q"), k = leaf("k"), v = leaf("v");
  const auto out = performer_attention(q, k, v, c.at("in.projection"), o).output;
  report.compare("out.o", out, c.at("out.o"), c.tolerance());
  (out * c.at("cot.o")).sum().backward();
  report.compare("grad.q", q.grad(), c.at("grad.q"), c.tolerance());
  report.compare("grad.k", k.grad(), c.at("grad.k"), c.tolerance());
  report.compare("grad.v", v.grad(), c.at("grad.v"), c.tolerance());
}

/// One call of a module whose parameters are those of `names` (ours, theirs), and of `more`, which
/// the case does not have.
template <class Module>
void check_by_names(const ModernCase& c, Module m, const std::map<std::string, std::string>& names,
                    const NamedTensors& more, const AttentionInputs& in, Report& report) {
  if (c.dtype == "f64") m->to(torch::kFloat64);
  auto upstream = c.under("param.");
  auto state = more;
  for (const auto& [ours, theirs] : names) {
    for (const std::string part : {"", ".weight", ".bias"}) {
      if (auto node = upstream.extract(theirs + part)) state[ours + part] = node.mapped();
    }
  }
  TORCH_CHECK_VALUE(upstream.empty(), "unknown parameter ",
                    upstream.empty() ? "" : upstream.begin()->first);
  load_state_dict(*m, state);
  const auto x = c.at("in.hidden_states").detach().clone().requires_grad_();
  const auto out = m(x, in).output;
  report.compare("out.o", out, c.at("out.o"), c.tolerance());
  (out * c.at("cot.o")).sum().backward();
  report.compare("grad.hidden_states", x.grad(), c.at("grad.hidden_states"), c.tolerance());
  NamedTensors found;
  for (const auto& p : m->named_parameters()) {
    const auto dot = p.key().find('.');
    const auto name = names.find(p.key().substr(0, dot));
    if (name == names.end()) continue;
    found[name->second + (dot == std::string::npos ? "" : p.key().substr(dot))] = p.value().grad();
  }
  compare_gradients(c, found, report);
}

/// LinformerSelfAttention of linformer.
inline void check_linformer(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  const int64_t E = f.integer("E"), H = f.integer("H");
  const auto head = f.maybe_integer("dim_head");
  LinformerSelfAttentionOptions o{.d_model = E,
                                  .num_heads = H,
                                  .seq_len = f.integer("seq_len"),
                                  .num_projected = f.integer("k"),
                                  .share_kv = !c.has("param.to_v.weight"),
                                  .head_dim = head.value_or(c.at("param.to_q.weight").size(0) / H),
                                  .out_bias = true};
  o.one_kv_head = flag(f, "one_kv_head");
  f.ignore({"op", "case", "B", "N", "f32", "share_kv", "D"});
  f.check_all_asked();
  check_by_names(c, LinformerSelfAttention(o),
                 {{"w_q", "to_q"},
                  {"w_k", "to_k"},
                  {"w_v", "to_v"},
                  {"w_o", "to_out"},
                  {"proj_k", "proj_k"},
                  {"proj_v", "proj_v"}},
                 {}, {}, report);
}

/// NystromformerSelfAttention of transformers, which has no output projection.
inline void check_nystrom(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  const int64_t E = f.integer("E");
  NystromSelfAttentionOptions o{.d_model = E,
                                .num_heads = f.integer("H"),
                                .num_landmarks = f.integer("landmarks"),
                                .batch_inverse = true,
                                .count_padding = true,
                                .bias = c.has("param.query.bias")};
  if (c.has("param.conv.weight")) o.conv_kernel_size = c.at("param.conv.weight").size(2);
  for (const char* name : {"inv_coeff_init_option", "inv_init_coeff_option", "init_option"}) {
    const auto* found = f.find(name);
    if (!found) continue;
    o.batch_inverse = found->is<bool>() ? !found->boolean() : found->string() == "original";
  }
  f.ignore({"op", "case", "B", "N", "f32", "conv", "pad_last", "keep", "pad", "D"});
  f.check_all_asked();
  AttentionInputs in;
  if (c.has("in.keep")) in.key_padding_mask = c.at("in.keep");
  const auto like = torch::dtype(c.dtype == "f64" ? torch::kFloat64 : torch::kFloat32);
  NamedTensors more{{"w_o.weight", torch::eye(E, like)}};
  if (o.bias) more["w_o.bias"] = torch::zeros({E}, like);
  check_by_names(c, NystromSelfAttention(o),
                 {{"w_q", "query"}, {"w_k", "key"}, {"w_v", "value"}, {"conv", "conv"}}, more, in,
                 report);
}

/// False for other ops.
inline bool check_lowrank(const ModernCase& c, Report& report) {
  if (c.op == "performer_fast_attention") return check_performer(c, report), true;
  if (c.op == "linformer_self_attention") return check_linformer(c, report), true;
  if (c.op == "nystromformer_self_attention") return check_nystrom(c, report), true;
  return false;
}

}  // namespace attzoo::testing
