#pragma once
/// \file
/// Reference cases of recurrent layers of models (golden_modern.hpp says what a case has), loaded
/// by their upstream names: outputs, and all gradients by these names.

#include <attzoo/gated_delta_net.hpp>
#include <attzoo/io/recurrent_name_maps.hpp>
#include <attzoo/kimi_delta.hpp>
#include <attzoo/lightning.hpp>
#include <attzoo/mamba2.hpp>

#include <set>
#include <string>

#include "golden_modern.hpp"

namespace attzoo::testing {

/// The state that a layer leaves behind, from its own projections.
inline torch::Tensor last_state(LightningAttentionImpl& m, const torch::Tensor& x) {
  const int64_t dh = *m.options.head_dim;
  const auto heads = [&](torch::nn::Linear& w) { return core::split_heads(torch::silu(w(x)), dh); };
  return recurrence(heads(m.w_q), heads(m.w_k), heads(m.w_v), {.decay = m.decay(), .scale = 1.0})
      .state;
}

/// A layer with the case's weights: what it gives, and the gradients that this has.
template <class Module>
void check_recurrent_layer(const ModernCase& c, Module m, const NameMap& names, Report& report) {
  if (c.dtype == "f64") m->to(torch::kFloat64);
  load_state_dict(*m, c.under("param."), names);
  const auto x = c.at("in.hidden_states").detach().clone().requires_grad_();
  const auto out = m(x).output;
  report.compare("out.o", out, c.at("out.o"), c.tolerance());
  auto sum = (out * c.at("cot.o")).sum();
  if constexpr (std::is_same_v<Module, LightningAttention>) {
    const auto state = last_state(*m, x);
    report.compare("out.final_state", state, c.at("out.final_state"), c.tolerance());
    sum = sum + (state * c.at("cot.final_state")).sum();
  }
  sum.backward();
  report.compare("grad.hidden_states", x.grad(), c.at("grad.hidden_states"), c.tolerance());
  compare_gradients(c, *m, names, report);
}

inline void check_gated_delta_net(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  const names::DeltaHeads heads{f.integer("Hk"), f.integer("HV"), f.integer("Dk"), f.integer("Dv")};
  check_recurrent_layer(
      c,
      GatedDeltaNet(GatedDeltaNetOptions{.d_model = f.integer("E"),
                                         .num_heads = heads.num_heads,
                                         .num_value_heads = heads.num_value_heads,
                                         .head_dim = heads.head_dim,
                                         .value_head_dim = heads.value_head_dim,
                                         .conv_size = c.at("param.conv1d.weight").size(2)}),
      names::qwen3_next(1, heads), report);
}

inline void check_kimi_delta(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  check_recurrent_layer(c,
                        KimiDeltaAttention(KimiDeltaAttentionOptions{
                            .d_model = f.integer("E"),
                            .num_heads = f.integer("H"),
                            .head_dim = f.integer("D"),
                            .conv_size = c.at("param.conv1d.weight").size(2)}),
                        names::kimi_linear(), report);
}

inline void check_mamba2(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  check_recurrent_layer(c,
                        Mamba2(Mamba2Options{.d_model = f.integer("E"),
                                             .num_heads = f.integer("H"),
                                             .head_dim = f.integer("P"),
                                             .state_size = f.integer("S"),
                                             .num_groups = f.integer("groups"),
                                             .conv_size = c.at("param.conv1d.weight").size(2),
                                             .bias = c.has("param.in_proj.bias"),
                                             .conv_bias = c.has("param.conv1d.bias")}),
                        names::mamba2(), report);
}

inline void check_lightning(const ModernCase& c, Report& report) {
  Fields f(c.config, "config");
  const int64_t H = f.integer("H");
  NameMap names;  // rows of a head: query, key, value
  names
      .split("qkv_proj.weight",
             {{"w_q.weight", names::part_of_heads(H, 0, 3)},
              {"w_k.weight", names::part_of_heads(H, 1, 3)},
              {"w_v.weight", names::part_of_heads(H, 2, 3)}},
             names::join_parts(H))
      .rename("output_gate.weight", "w_g.weight")
      .rename("norm.weight", "norm.weight")
      .rename("out_proj.weight", "w_o.weight");
  constexpr int64_t kLayers = 4;  // of every case: their notes say so
  check_recurrent_layer(c,
                        LightningAttention(LightningAttentionOptions{.d_model = f.integer("E"),
                                                                     .num_heads = H,
                                                                     .head_dim = f.integer("D"),
                                                                     .layer = f.integer("layer"),
                                                                     .num_layers = kLayers}),
                        names, report);
}

/// Checks a case of these ops; false for others.
inline bool check_recurrent_module(const ModernCase& c, Report& report) {
  if (c.op == "qwen3_next_gated_delta_net") return check_gated_delta_net(c, report), true;
  if (c.op == "kimi_delta_attention") return check_kimi_delta(c, report), true;
  if (c.op == "mamba2_mixer") return check_mamba2(c, report), true;
  if (c.op == "minimax_lightning") return check_lightning(c, report), true;
  return false;
}

}  // namespace attzoo::testing
