#pragma once
// Definitions of projections.hpp.

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/core/views.hpp>
#include <attzoo/functional/rope.hpp>
#include <attzoo/module/checks.hpp>
#include <attzoo/module/projections.hpp>

#include <torch/nn/init.h>

#include <cmath>
#include <tuple>
#include <vector>

namespace attzoo::core {

ATTZOO_API Projections::Projections(const char* name, int64_t d_model,
                                    std::optional<int64_t> input_dim,
                                    const SelfAttentionSettings& settings, TakenInputs takes)
    : settings_(settings),
      callee_{name, input_dim.value_or(d_model), settings.heads.count, takes},
      d_model_(d_model) {
  check_settings();
  rope_ = plan_rope(settings_.rope.value_or(Rope()), d_qk(), name);
  callee_.takes.positions = rope_.has_value();
  check_layer("w_q", callee_.input_dim, settings_.heads.count * d_qk());
  check_layer("w_o", settings_.heads.count * d_head(), d_model_);
  check_layer("w_v", callee_.input_dim, settings_.heads.count * d_head());
}

ATTZOO_API void Projections::check_settings() const {
  constexpr int64_t kMost = int64_t{1} << 36;  // as check_layer, so that products stay in range
  const auto& [heads, head_dim, eps] =
      std::tie(settings_.heads, settings_.head_dim, settings_.qk_norm_eps);
  check_positive("d_model", d_model_);
  check_positive("input_dim", input_dim());
  check_positive(heads.name, heads.count);
  if (!head_dim) check_divides(heads.name, heads.count, "d_model", d_model_);
  TORCH_CHECK_VALUE(!head_dim || (*head_dim > 0 && *head_dim <= kMost / heads.count), callee_.name,
                    ": head_dim must be > 0, at most 2^36 in all heads, got ", *head_dim);
  if (settings_.kv_heads) check_divides("num_kv_heads", kv_heads(), heads.name, heads.count);
  TORCH_CHECK_VALUE(!eps || (*eps >= 0 && std::isfinite(*eps)), callee_.name,
                    ": qk_norm_eps must be >= 0 and finite, got ", *eps);
  if (settings_.feature_dim) {
    check_positive("feature_dim", *settings_.feature_dim);
    check_divides(heads.name, heads.count, "feature_dim", *settings_.feature_dim);
  }
}

ATTZOO_API void Projections::check_positive(const char* name, int64_t value) const {
  TORCH_CHECK_VALUE(value > 0, callee_.name, ": ", name, " must be > 0, got ", value);
}

ATTZOO_API void Projections::check_divides(const char* divisor_name, int64_t divisor,
                                           const char* name, int64_t value) const {
  check_positive(divisor_name, divisor);
  TORCH_CHECK_VALUE(value % divisor == 0, callee_.name, ": ", divisor_name, " must divide ", name,
                    ", got ", divisor_name, "=", divisor, " ", name, "=", value);
}

ATTZOO_API void Projections::check_layer(const char* layer, int64_t from, int64_t to) const {
  std::string sizes = c10::str(" d_model=", d_model_, " input_dim=", input_dim());
  if (settings_.feature_dim) sizes += c10::str(" feature_dim=", *settings_.feature_dim);
  if (settings_.head_dim) sizes += c10::str(" head_dim=", *settings_.head_dim);
  core::check_layer(callee_.name, layer, from, to, sizes);
}

ATTZOO_API torch::nn::Linear Projections::new_projection(torch::nn::Module& module,
                                                         const char* name, int64_t from, int64_t to,
                                                         bool bias) const {
  check_layer(name, from, to);
  torch::nn::Linear layer(torch::nn::LinearOptions(from, to).bias(bias));
  torch::nn::init::xavier_uniform_(layer->weight);
  if (bias) torch::nn::init::zeros_(layer->bias);
  return module.register_module(name, layer);
}

ATTZOO_API void Projections::make_parameters(torch::nn::Module& module, bool bias) {
  const int64_t heads = settings_.heads.count;
  w_q = new_projection(module, "w_q", input_dim(), heads * d_qk(), bias);
  w_k = new_projection(module, "w_k", input_dim(), kv_heads() * d_qk(), bias);
  w_v = new_projection(module, "w_v", input_dim(), kv_heads() * d_head(), bias);
  w_o =
      new_projection(module, "w_o", heads * d_head(), d_model_, settings_.out_bias.value_or(bias));
  if (settings_.qk_norm_eps) {
    const RMSNormOptions norm{.features = d_qk(), .eps = *settings_.qk_norm_eps};
    norm_q = module.register_module("norm_q", RMSNorm(norm));
    norm_k = module.register_module("norm_k", RMSNorm(norm));
  }
  if (settings_.output_gate) {
    w_g = new_projection(module, "w_g", input_dim(), heads * d_head(), bias);
  }
}

ATTZOO_API Heads Projections::project(const torch::Tensor& x, const AttentionInputs& inputs,
                                      const CallMode& mode) {
  return project_with(w_q, w_k, w_v, x, inputs, check_call(callee_, w_q->weight, x, inputs, mode));
}

ATTZOO_API Heads Projections::project_with(torch::nn::Linear& to_q, torch::nn::Linear& to_k,
                                           torch::nn::Linear& to_v, const torch::Tensor& x,
                                           const AttentionInputs& inputs,
                                           const CallPlaces& places) const {
  std::vector<torch::Tensor> qkv;
  if (inputs.context.defined()) {
    qkv = linear_each(inputs.context, {to_k, to_v});
    qkv.insert(qkv.begin(), linear(x, to_q));
  } else {
    qkv = linear_each(x, {to_q, to_k, to_v});
  }
  const auto split = [](const torch::Tensor& t, int64_t size, RMSNorm norm) {
    if (norm.is_empty()) return split_heads(t, size);
    const auto heads = t.view({t.size(0), t.size(1), t.size(2) / size, size});
    // Autocast makes half types of q and k.
    return norm(heads.to(norm->weight.scalar_type())).to(t.scalar_type()).transpose(1, 2);
  };
  Heads heads{split(qkv[0], d_qk(), norm_q), split(qkv[1], d_qk(), norm_k),
              split_heads(qkv[2], d_head()), places.packing, places.past};
  if (!w_g.is_empty()) heads.gate = split_heads(torch::sigmoid(linear(x, w_g)), d_head());
  if (rope_) rotate_heads(heads, x, inputs);
  return heads;
}

ATTZOO_API void Projections::rotate_heads(Heads& heads, const torch::Tensor& x,
                                          const AttentionInputs& inputs) const {
  auto positions = heads.packing.position;
  int64_t offset = inputs.position_offset;
  if (heads.past) {
    positions = heads.past->positions;
    if (!positions.defined()) offset = heads.past->offset;
  } else if (inputs.positions.defined()) {
    positions = inputs.positions.dim() == 1 ? inputs.positions.unsqueeze(0) : inputs.positions;
  }
  if (positions.defined()) positions = positions.unsqueeze(1);  // the same in all heads
  const auto& [frequencies, pairs] = *rope_;
  auto by = rotation(frequencies, pairs, x.size(1), offset, positions, heads.q);
  rotate_own(heads.q, by);
  if (inputs.context.defined()) {
    by = rotation(frequencies, pairs, inputs.context.size(1), 0, {}, heads.k);
  }
  rotate_own(heads.k, by);
}

ATTZOO_API CacheHead Projections::new_cache_head(int64_t batch, std::optional<int64_t> capacity,
                                                 const CacheOptions& options, bool unending) const {
  return cache_head(callee_.name, callee_.identity, w_q->weight, batch, capacity, options,
                    unending);
}

ATTZOO_API AttentionResult Projections::finish(AttentionResult result) {
  result.output = linear(join_heads(result.output), w_o);
  return result;
}

}  // namespace attzoo::core
