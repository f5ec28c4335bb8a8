#pragma once
// Definitions of parts.hpp.

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/core/views.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/rope.hpp>
#include <attzoo/functional/scores.hpp>
#include <attzoo/module/parts.hpp>
#include <attzoo/module/token_cache.hpp>

#include <torch/nn/init.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>
#include <tuple>
#include <vector>

namespace attzoo::core {

ATTZOO_API SelfAttentionParts::SelfAttentionParts(const char* name, const CommonOptions& options,
                                                  const SelfAttentionSettings& settings,
                                                  TakenInputs takes)
    : name_(name),
      settings_(settings),
      takes_(takes),
      d_model_(options.d_model),
      input_dim_(options.input_dim.value_or(options.d_model)) {
  check_options(options);
  rope_ = plan_rope(settings_.rope.value_or(Rope()), d_qk(), name_);
  takes_.positions = rope_.has_value();
  check_layer("w_q", input_dim_, settings_.heads.count * d_qk());
  check_layer("w_o", settings_.heads.count * d_head(), d_model_);
  check_layer("w_v", input_dim_, settings_.heads.count * d_head());
}

ATTZOO_API void SelfAttentionParts::check_options(const CommonOptions& options) const {
  const auto& heads = settings_.heads;
  const auto& temperature = settings_.temperature;
  check_positive("d_model", d_model_);
  check_positive("input_dim", input_dim_);
  check_dropout(name_, options.dropout);
  TORCH_CHECK_VALUE(!temperature || (*temperature > 0 && std::isfinite(*temperature)), name_,
                    ": temperature must be > 0 and finite, got ", *temperature);
  check_positive(heads.name, heads.count);
  if (!settings_.head_dim) check_divides(heads.name, heads.count, "d_model", d_model_);
  check_around();
  TORCH_CHECK_VALUE(scale() <= std::numeric_limits<float>::max(), name_,
                    ": temperature must not scale scores beyond float32, got ", *temperature);
  if (settings_.feature_dim) {
    check_positive("feature_dim", *settings_.feature_dim);
    check_divides(heads.name, heads.count, "feature_dim", *settings_.feature_dim);
  }
}

ATTZOO_API void SelfAttentionParts::check_around() const {
  constexpr int64_t kMost = int64_t{1} << 36;  // as check_layer, so that products stay in range
  const auto& [head_dim, eps, window] =
      std::tie(settings_.head_dim, settings_.qk_norm_eps, settings_.sliding_window);
  TORCH_CHECK_VALUE(!head_dim || (*head_dim > 0 && *head_dim <= kMost / settings_.heads.count),
                    name_, ": head_dim must be > 0, at most 2^36 in all heads, got ", *head_dim);
  TORCH_CHECK_VALUE(!eps || (*eps >= 0 && std::isfinite(*eps)), name_,
                    ": qk_norm_eps must be >= 0 and finite, got ", *eps);
  TORCH_CHECK_VALUE(
      !settings_.softcap || (*settings_.softcap >= 1e-30 && *settings_.softcap <= 1e30), name_,
      ": softcap must be > 0, within 1e-30 ... 1e30, got ", *settings_.softcap);
  if (window) check_positive("sliding_window", *window);
}

ATTZOO_API void SelfAttentionParts::check_positive(const char* name, int64_t value) const {
  TORCH_CHECK_VALUE(value > 0, name_, ": ", name, " must be > 0, got ", value);
}

ATTZOO_API void SelfAttentionParts::check_divides(const char* divisor_name, int64_t divisor,
                                                  const char* name, int64_t value) const {
  check_positive(divisor_name, divisor);
  TORCH_CHECK_VALUE(value % divisor == 0, name_, ": ", divisor_name, " must divide ", name,
                    ", got ", divisor_name, "=", divisor, " ", name, "=", value);
}

ATTZOO_API void SelfAttentionParts::check_layer(const char* layer, int64_t from, int64_t to) const {
  std::string sizes = c10::str(" d_model=", d_model_, " input_dim=", input_dim_);
  if (settings_.feature_dim) sizes += c10::str(" feature_dim=", *settings_.feature_dim);
  if (settings_.head_dim) sizes += c10::str(" head_dim=", *settings_.head_dim);
  core::check_layer(name_, layer, from, to, sizes);
}

ATTZOO_API torch::nn::Linear SelfAttentionParts::new_projection(torch::nn::Module& module,
                                                                const char* name, int64_t from,
                                                                int64_t to, bool bias) const {
  check_layer(name, from, to);
  torch::nn::Linear layer(torch::nn::LinearOptions(from, to).bias(bias));
  torch::nn::init::xavier_uniform_(layer->weight);
  if (bias) torch::nn::init::zeros_(layer->bias);
  return module.register_module(name, layer);
}

ATTZOO_API void SelfAttentionParts::make_projections(torch::nn::Module& module, bool bias) {
  const int64_t heads = settings_.heads.count, kv_heads = settings_.kv_heads.value_or(heads);
  w_q = new_projection(module, "w_q", input_dim_, heads * d_qk(), bias);
  w_k = new_projection(module, "w_k", input_dim_, kv_heads * d_qk(), bias);
  w_v = new_projection(module, "w_v", input_dim_, kv_heads * d_head(), bias);
  w_o =
      new_projection(module, "w_o", heads * d_head(), d_model_, settings_.out_bias.value_or(bias));
  if (settings_.qk_norm_eps) {
    const RMSNormOptions norm{.features = d_qk(), .eps = *settings_.qk_norm_eps};
    norm_q = module.register_module("norm_q", RMSNorm(norm));
    norm_k = module.register_module("norm_k", RMSNorm(norm));
  }
  if (settings_.output_gate) {
    w_g = new_projection(module, "w_g", input_dim_, heads * d_head(), bias);
  }
  if (settings_.sinks) sinks = module.register_parameter("sinks", torch::zeros({heads}));
}

ATTZOO_API Heads SelfAttentionParts::project(const torch::Tensor& x, const AttentionInputs& inputs,
                                             const CallMode& mode) {
  check_inputs(x, inputs, mode);
  if (inputs.cache.defined()) check_cached_call(x, inputs, mode);
  const auto packing =
      inputs.documents.defined() ? pack(inputs.documents, who("documents")) : Packing{};
  if (!inputs.cache.defined()) return project_with(w_q, w_k, w_v, x, inputs, packing, {});
  auto& cache = static_cast<TokenCache&>(inputs.cache.state());
  const auto past = cache.next(name_, x.size(1), inputs, packing);
  auto heads = project_with(w_q, w_k, w_v, x, inputs, packing, past);
  cache.append(heads);
  return heads;
}

ATTZOO_API Heads SelfAttentionParts::project_with(torch::nn::Linear& to_q, torch::nn::Linear& to_k,
                                                  torch::nn::Linear& to_v, const torch::Tensor& x,
                                                  const AttentionInputs& inputs,
                                                  const Packing& packing,
                                                  const std::optional<Past>& past) const {
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
              split_heads(qkv[2], d_head()), packing, past};
  if (!w_g.is_empty()) heads.gate = split_heads(torch::sigmoid(linear(x, w_g)), d_head());
  if (rope_) rotate_heads(heads, x, inputs);
  return heads;
}

ATTZOO_API void SelfAttentionParts::rotate_heads(Heads& heads, const torch::Tensor& x,
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

ATTZOO_API CacheHead SelfAttentionParts::new_cache_head(int64_t batch,
                                                        std::optional<int64_t> capacity,
                                                        const CacheOptions& options,
                                                        bool unending) const {
  return cache_head(name_, identity_, w_k->weight, batch, capacity, options, unending);
}

ATTZOO_API Cache SelfAttentionParts::new_kv_cache(int64_t batch, std::optional<int64_t> capacity,
                                                  const CacheOptions& options,
                                                  const Keeps& keeps) const {
  const auto head = new_cache_head(batch, capacity, options, keeps.forgets());
  const int64_t kv_heads = settings_.kv_heads.value_or(settings_.heads.count);
  std::string what;
  try {
    return Cache(std::make_shared<KvCache>(head, kv_heads, d_qk(), d_head(), keeps,
                                           takes_.global_attention));
  } catch (const c10::Error& error) {
    what = error.what_without_backtrace();
  }
  TORCH_CHECK_VALUE(false, name_, ": make_cache has no memory for batch=", batch, " and ",
                    RowBuffer::rows_for(head.capacity, keeps),
                    " tokens; give it a smaller capacity: ", what);
}

ATTZOO_API void SelfAttentionParts::check_cached_call(const torch::Tensor& x,
                                                      const AttentionInputs& inputs,
                                                      const CallMode& mode) const {
  check_cache(name_, identity_, inputs.cache, x);
  const auto dtype = inputs.cache.state().head().module_dtype;
  TORCH_CHECK_VALUE(w_k->weight.scalar_type() == dtype, name_,
                    ": the cache was made when the module's dtype was ", dtype, ", now it is ",
                    w_k->weight.scalar_type());
  TORCH_CHECK_VALUE(mode.causal, name_, ": a cache is for causal attention; set causal");
  const auto& kept = static_cast<TokenCache&>(inputs.cache.state()).keeps();
  TORCH_CHECK_VALUE(
      kept == mode.keeps, name_,
      ": options were changed since the cache was made, which keeps what a query sees up to ",
      kept.reach, " tokens back, in units of ", kept.unit, "; now it is up to ", mode.keeps.reach,
      " in units of ", mode.keeps.unit, "; make another cache");
  TORCH_CHECK_VALUE(!mode.drops, name_,
                    ": with a cache nothing is dropped at random; call eval(), or set dropout 0");
  TORCH_CHECK_VALUE(inputs.position_offset == 0, name_,
                    ": a cache counts positions itself; position_offset must be 0, got ",
                    inputs.position_offset);
  check_no_gradients(name_, mode.module, x);
}

ATTZOO_API AttentionResult SelfAttentionParts::attend(const Heads& heads,
                                                      const AttentionInputs& inputs,
                                                      const CallMode& mode, AnyMask pattern,
                                                      AnyScore score,
                                                      const AttentionOptions& how) const {
  if (settings_.sliding_window) pattern = pattern && window(*settings_.sliding_window - 1, 0);
  if (settings_.softcap) score = softcap(*settings_.softcap) + score;
  if (sinks.defined()) score = score + sink(sinks);
  auto result = core::attend(heads, inputs, mode.causal, pattern, score, how);
  if (heads.gate.defined()) result.output = result.output * heads.gate;
  return result;
}

ATTZOO_API Keeps SelfAttentionParts::keeps_window() const {
  return settings_.sliding_window ? Keeps{.reach = *settings_.sliding_window - 1} : Keeps{};
}

ATTZOO_API AttentionResult SelfAttentionParts::finish(AttentionResult result) {
  result.output = linear(join_heads(result.output), w_o);
  return result;
}

ATTZOO_API double SelfAttentionParts::scale() const {
  return 1.0 / (std::sqrt(static_cast<double>(d_head())) * settings_.temperature.value_or(1.0));
}

ATTZOO_API void SelfAttentionParts::print_sizes(std::ostream& stream) const {
  stream << "attzoo::" << name_ << "(d_model=" << d_model_ << ", input_dim=" << input_dim_;
}

ATTZOO_API void SelfAttentionParts::print_options(std::ostream& stream,
                                                  const CommonOptions& options) const {
  stream << ", dropout=" << options.dropout << std::boolalpha << ", bias=" << options.bias;
  if (settings_.temperature) stream << ", temperature=" << *settings_.temperature;
  if (settings_.rope) stream << ", rope=" << *settings_.rope;
  stream << ", causal=" << options.causal;
  const auto& s = settings_;
  if (s.head_dim) stream << ", head_dim=" << *s.head_dim;
  if (s.out_bias) stream << ", out_bias=" << *s.out_bias;
  if (s.qk_norm_eps) stream << ", qk_norm=true, qk_norm_eps=" << *s.qk_norm_eps;
  if (s.softcap) stream << ", softcap=" << *s.softcap;
  if (s.sinks) stream << ", sinks=true";
  if (s.output_gate) stream << ", output_gate=true";
  if (s.sliding_window) stream << ", sliding_window=" << *s.sliding_window;
  stream << std::noboolalpha << ")";
}

ATTZOO_API std::string SelfAttentionParts::who(const char* argument) const {
  return std::string(name_) + ": " + argument;
}

ATTZOO_API void SelfAttentionParts::check_inputs(const torch::Tensor& x,
                                                 const AttentionInputs& inputs,
                                                 const CallMode& mode) const {
  const auto check = [&](const torch::Tensor& t, const char* argument) {
    check_tokens(t, name_, argument, input_dim_, w_q->weight);
  };
  check(x, "x");
  TORCH_CHECK_VALUE(!inputs.cache.defined() || !inputs.context.defined(), name_,
                    ": a cache has no meaning with a context");
  TORCH_CHECK_VALUE(takes_.global_attention || !inputs.global_attention.defined(), name_,
                    ": global_attention has no meaning here; LongformerSelfAttention takes it");
  if (inputs.global_attention.defined()) check_global(x, inputs);
  if (inputs.context.defined()) {
    check(inputs.context, "context");
    TORCH_CHECK_VALUE(inputs.context.size(0) == x.size(0), name_,
                      ": context must have x's batch size ", x.size(0), ", got ",
                      inputs.context.sizes());
  }
  const Shape n{x.size(0), settings_.heads.count, x.size(1),
                inputs.context.defined() ? inputs.context.size(1) : x.size(1)};
  if (inputs.mask.defined()) {
    auto all = n;
    if (inputs.cache.defined()) all.S += inputs.cache.length();
    check_mask(inputs.mask, all, x.device(), name_);
  }
  if (inputs.key_padding_mask.defined()) {
    check_key_padding(inputs.key_padding_mask, n, x.device(), name_);
  }
  if (inputs.documents.defined()) check_documents(inputs, n, x.device());
  TORCH_CHECK_VALUE(!settings_.sliding_window || mode.causal, name_,
                    ": a sliding_window is for causal attention; set causal");
  if (rope_) check_position_offset(inputs.position_offset, name_);
  TORCH_CHECK_VALUE(rope_ || inputs.position_offset == 0, name_,
                    ": position_offset has no meaning without rope, got ", inputs.position_offset);
  if (inputs.positions.defined()) check_positions(x, inputs);
}

ATTZOO_API void SelfAttentionParts::check_positions(const torch::Tensor& x,
                                                    const AttentionInputs& inputs) const {
  const auto& t = inputs.positions;
  TORCH_CHECK_VALUE(takes_.positions, name_, ": positions have no meaning without rope");
  check_dense(t, name_, "positions");
  TORCH_CHECK_TYPE(torch::isIntegralType(t.scalar_type(), /*includeBool=*/false), name_,
                   ": positions must be integers, got ", t.scalar_type());
  const bool of_rows = t.dim() == 2 && (t.size(0) == 1 || t.size(0) == x.size(0));
  TORCH_CHECK_VALUE((t.dim() == 1 || of_rows) && t.size(-1) == x.size(1), name_,
                    ": positions must have shape [L], [1, L] or [B, L] with B=", x.size(0),
                    " L=", x.size(1), ", got ", t.sizes());
  TORCH_CHECK_VALUE(t.device() == x.device(), name_, ": positions must be on ", x.device(),
                    ", got ", t.device());
  TORCH_CHECK_VALUE(
      inputs.position_offset == 0 && !inputs.documents.defined() && !inputs.cache.defined(), name_,
      ": positions take the place of a position_offset, documents and a cache, which "
      "count positions themselves; give one of them");
}

ATTZOO_API void SelfAttentionParts::check_global(const torch::Tensor& x,
                                                 const AttentionInputs& inputs) const {
  const auto& g = inputs.global_attention;
  check_dense(g, name_, "global_attention");
  TORCH_CHECK_VALUE(!inputs.context.defined(), name_,
                    ": global_attention marks tokens of x and has no meaning with a context");
  TORCH_CHECK_VALUE(
      (g.dim() == 1 || (g.dim() == 2 && g.size(0) == x.size(0))) && g.size(-1) == x.size(1), name_,
      ": global_attention must have shape [L] or [B, L] with B=", x.size(0), " L=", x.size(1),
      ", got ", g.sizes());
  TORCH_CHECK_VALUE(g.device() == x.device(), name_, ": global_attention must be on ", x.device(),
                    ", got ", g.device());
}

ATTZOO_API void SelfAttentionParts::check_documents(const AttentionInputs& inputs, const Shape& n,
                                                    const torch::Device& device) const {
  TORCH_CHECK_VALUE(!inputs.context.defined(), name_,
                    ": documents pack the tokens of x and have no meaning with a context");
  core::check_documents(inputs.documents, who("documents"));
  check_documents_fit(inputs.documents, n, device, who("documents"));
}

ATTZOO_API AttentionResult attend(const Heads& heads, const AttentionInputs& inputs, bool is_causal,
                                  AnyMask pattern, AnyScore score, const AttentionOptions& how) {
  TORCH_CHECK_VALUE(
      !heads.past || heads.past->offset == 0 || (!pattern.is_raw() && !score.is_raw()),
      "with a cache, a mechanism's callables count queries among the keys, mask_mod(f, aligned), "
      "or in their documents, mask_mod(f, in_document); score_mod likewise");
  if (pattern.asks_places() || score.asks_places()) {
    // Those of padding are of no use, and not negative: tables may be indexed by them.
    const auto places = heads.packing.defined() ? heads.packing.position
                        : heads.past            ? heads.past->places().clamp_min(0)
                                                : torch::Tensor();
    if (places.defined()) {
      pattern = pattern.placed(places);
      score = score.placed(places);
    }
  }
  if (is_causal) pattern = pattern && CausalMask();
  if (heads.packing.defined()) pattern = pattern && DocumentsMask{{.ids = heads.packing.run}};
  if (inputs.mask.defined()) {
    const auto mask = heads.past ? heads.past->columns(inputs.mask) : inputs.mask;
    const auto said = mask_and_bias(mask_rank4(mask));
    pattern = pattern && said.mask;
    score = score + said.bias;
  }
  const auto& real = heads.past ? heads.past->real : inputs.key_padding_mask;
  if (real.defined()) pattern = pattern && TensorMask{real.unsqueeze(1).unsqueeze(1)};
  auto result = attention(heads.q, heads.k, heads.v, pattern, score, how);
  if (heads.past) {
    const auto dtype = *heads.past->dtype;
    if (result.output.scalar_type() != dtype) result.output = result.output.to(dtype);
    result.weights = heads.past->guard(std::move(result.weights));
  }
  return result;
}

}  // namespace attzoo::core
