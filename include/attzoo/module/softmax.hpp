#pragma once
/// \file
/// What is softmax attention's alone: scores and what bounds them, sinks, the sliding window, and a
/// cache of keys and values.

#include <attzoo/functional/attention.hpp>
#include <attzoo/module/projections.hpp>
#include <attzoo/module/row_buffer.hpp>

namespace attzoo::core {

/// What the caller asks of pairs, by pattern, score and mask, for n.S keys: all tokens of a cache,
/// also those that it has forgotten. Callables that count in documents have been told their places.
ATTZOO_API MaskAndBias asked_pairs(const AttentionInputs& inputs, const Heads& heads,
                                   const Shape& n);

/// The base of SelfAttention that is the same for all mechanisms; it is compiled once.
class SoftmaxAttention : public Projections {
 public:
  /// Logits [heads] in the softmax's denominator, at first 0; undefined without sinks.
  torch::Tensor sinks;

 protected:
  /// Throws c10::ValueError for options and settings out of range, naming the mechanism.
  SoftmaxAttention(const char* name, int64_t d_model, std::optional<int64_t> input_dim,
                   const SelfAttentionSettings& settings, TakenInputs takes);

  /// Those of Projections, and sinks.
  void make_parameters(torch::nn::Module& module, bool bias);

  /// As Projections::project(). With a cache, which keeps what `keeps` says, the keys and values
  /// are those that it has, the new ones last. Throws c10::ValueError, too, for a sliding window in
  /// a call that is not causal, and where the cache keeps other tokens.
  Heads project(const torch::Tensor& x, const AttentionInputs& inputs, const CallMode& mode,
                const Keeps& keeps);

  /// Attention under a mechanism's pattern and score, within the sliding window, with softcap,
  /// sinks and output gate, and all that a call asks for: output [B, H, L, dh], weights
  /// [B, H, L, S], lse [B, H, L].
  AttentionResult attend(const Heads& heads, const AttentionInputs& inputs, const CallMode& mode,
                         AnyMask pattern, AnyScore score) const;
  /// Who attend() lets attend, and how it changes scores, by the places of heads.q and heads.k.
  MaskAndBias rule(const Heads& heads, const AttentionInputs& inputs, const CallMode& mode,
                   AnyMask pattern, AnyScore score) const;
  /// What attend() makes of the heads' attention: the dtype of a call with a cache, whose weights
  /// are guarded, and the output gate.
  AttentionResult conclude(const Heads& heads, AttentionResult result) const;

  /// 1 / (sqrt(d_head) * temperature), with the setting score_dim in the place of d_head, and 1 of
  /// scores that are not scaled.
  double scale() const;

  /// What a cache must keep for the sliding window; all without one.
  Keeps keeps_window() const;
  /// A cache of keys and values.
  Cache new_kv_cache(int64_t batch, std::optional<int64_t> capacity, const CacheOptions& options,
                     const Keeps& keeps) const;
  /// The same of other rows than keys and values of kv_heads().
  Cache new_kv_cache(int64_t batch, std::optional<int64_t> capacity, const CacheOptions& options,
                     const Keeps& keeps, const KvRows& rows) const;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/checks.hpp>
#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/scores.hpp>
#include <attzoo/module/token_cache.hpp>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

namespace attzoo::core {

ATTZOO_API SoftmaxAttention::SoftmaxAttention(const char* name, int64_t d_model,
                                              std::optional<int64_t> input_dim,
                                              const SelfAttentionSettings& s, TakenInputs takes)
    : Projections(name, d_model, input_dim, s, takes) {
  TORCH_CHECK_VALUE(!s.temperature || (*s.temperature > 0 && std::isfinite(*s.temperature)), name,
                    ": temperature must be > 0 and finite, got ", *s.temperature);
  TORCH_CHECK_VALUE(scale() <= std::numeric_limits<float>::max(), name,
                    ": temperature must not scale scores beyond float32, got ", *s.temperature);
  TORCH_CHECK_VALUE(!s.softcap || (*s.softcap >= 1e-30 && *s.softcap <= 1e30), name,
                    ": softcap must be > 0, within 1e-30 ... 1e30, got ", *s.softcap);
  if (s.sliding_window) check_positive("sliding_window", *s.sliding_window);
}

ATTZOO_API double SoftmaxAttention::scale() const {
  const auto features = settings().scaled ? settings().score_dim.value_or(d_head()) : 1;
  return 1.0 / (std::sqrt(static_cast<double>(features)) * settings().temperature.value_or(1.0));
}

ATTZOO_API void SoftmaxAttention::make_parameters(torch::nn::Module& module, bool bias) {
  Projections::make_parameters(module, bias);
  if (!settings().sinks) return;
  sinks = module.register_parameter("sinks", torch::zeros({settings().heads.count}));
}

ATTZOO_API Heads SoftmaxAttention::project(const torch::Tensor& x, const AttentionInputs& inputs,
                                           const CallMode& mode, const Keeps& keeps) {
  const char* name = callee().name;
  const auto places = check_call(callee(), w_q->weight, x, inputs, mode);
  TORCH_CHECK_VALUE(!settings().sliding_window || mode.causal, name,
                    ": a sliding_window is for causal attention; set causal");
  TORCH_CHECK_VALUE(!sinks.defined() || !inputs.score.sink().defined(), name,
                    ": the module has sinks of its own; score must bring no other");
  if (!places.past) return project_with(w_q, w_k, w_v, x, inputs, places);
  auto& cache = static_cast<KvCache&>(inputs.cache.state());
  const auto& kept = cache.keeps();
  TORCH_CHECK_VALUE(
      kept == keeps, name,
      ": options were changed since the cache was made, which keeps what a query sees up to ",
      kept.reach, " tokens back, in units of ", kept.unit, "; now it is up to ", keeps.reach,
      " in units of ", keeps.unit, "; make another cache");
  auto heads = project_with(w_q, w_k, w_v, x, inputs, places);
  cache.append(heads);
  return heads;
}

ATTZOO_API MaskAndBias asked_pairs(const AttentionInputs& inputs, const Heads& heads,
                                   const Shape& n) {
  const auto& [packing, past] = std::tie(heads.packing, heads.past);
  auto pattern = inputs.pattern;
  auto score = inputs.score;
  if (pattern.asks_places() || score.asks_places()) {
    const auto device = heads.q.device();
    auto places = packing.position;
    if (past && past->padding.defined() && !packing.defined()) {
      const auto token = torch::arange(n.S, past->padding.options());
      places = (token - past->padding.unsqueeze(1)).clamp_min(0);
    }
    if (!places.defined()) places = asked_places(pattern, score.asks_places(), n, device);
    if (places.defined()) {
      pattern = pattern.placed(places);
      score = score.placed(places);
    }
  }
  if (!inputs.mask.defined()) return {pattern, score};
  const auto said = mask_and_bias(mask_rank4(inputs.mask));
  return {pattern && said.mask, score + said.bias};
}

/// The mask and the score of a mechanism with all that a call asks for, at the places of its
/// tokens.
inline void add_inputs(AnyMask& pattern, AnyScore& score, const Heads& heads,
                       const AttentionInputs& inputs, bool is_causal) {
  const auto& [packing, past] = std::tie(heads.packing, heads.past);
  TORCH_CHECK_VALUE(
      !past || (!pattern.is_raw() && !score.is_raw()),
      "with a cache, a mechanism's callables count queries among the keys, mask_mod(f, aligned), "
      "or in their documents, mask_mod(f, in_document); score_mod likewise");
  if (pattern.asks_places() || score.asks_places()) {
    // Those of padding are of no use, and not negative: tables may be indexed by them.
    const auto places = packing.defined() ? packing.position
                        : past            ? past->places().clamp_min(0)
                                          : torch::Tensor();
    if (places.defined()) {
      pattern = pattern.placed(places);
      score = score.placed(places);
    }
  }
  if (is_causal) pattern = pattern && CausalMask();
  if (packing.run.defined()) pattern = pattern && DocumentsMask{{.ids = packing.run}};
  if (says_pairs(inputs)) {
    Shape n{heads.q.size(0), heads.q.size(1), heads.q.size(2), heads.k.size(2)};
    if (past) n.S = past->offset + n.L;
    auto asked = asked_pairs(inputs, heads, n);
    if (n.S != heads.k.size(2)) {  // the cache has forgotten some
      const auto keys = past->keys.tensor().view({1, 1, -1});
      const PairNumbers numbers{
          n, torch::arange(past->offset, n.S, keys.options()).view({1, 1, -1}), keys};
      asked = {asked.mask.at(numbers), asked.bias.at(numbers)};
    }
    pattern = pattern && asked.mask;
    score = score + asked.bias;
  }
  const auto& real = past ? past->real : key_padding_of(inputs);
  if (real.defined()) pattern = pattern && TensorMask{real.unsqueeze(1).unsqueeze(1)};
}

ATTZOO_API MaskAndBias SoftmaxAttention::rule(const Heads& heads, const AttentionInputs& inputs,
                                              const CallMode& mode, AnyMask pattern,
                                              AnyScore score) const {
  const auto& s = settings();
  if (s.sliding_window) pattern = pattern && window(*s.sliding_window - 1, 0);
  if (s.softcap) score = softcap(*s.softcap) + score;
  if (sinks.defined()) score = score + sink(sinks);
  add_inputs(pattern, score, heads, inputs, mode.causal);
  return {std::move(pattern), std::move(score)};
}

ATTZOO_API AttentionResult SoftmaxAttention::conclude(const Heads& heads,
                                                      AttentionResult result) const {
  if (heads.past) {
    const auto dtype = *heads.past->dtype;
    if (result.output.scalar_type() != dtype) result.output = result.output.to(dtype);
    result.weights = heads.past->guard(std::move(result.weights));
  }
  if (heads.gate.defined()) result.output = result.output * heads.gate;
  return result;
}

ATTZOO_API AttentionResult SoftmaxAttention::attend(const Heads& heads,
                                                    const AttentionInputs& inputs,
                                                    const CallMode& mode, AnyMask pattern,
                                                    AnyScore score) const {
  const auto pairs = rule(heads, inputs, mode, std::move(pattern), std::move(score));
  return conclude(heads, attention(heads.q, heads.k, heads.v, pairs.mask, pairs.bias,
                                   {.scale = scale(),
                                    .dropout = mode.dropout,
                                    .stick_breaking = settings().stick_breaking},
                                   /*private_qk=*/true));
}

ATTZOO_API Keeps SoftmaxAttention::keeps_window() const {
  return settings().sliding_window ? Keeps{.reach = *settings().sliding_window - 1} : Keeps{};
}

ATTZOO_API Cache SoftmaxAttention::new_kv_cache(int64_t batch, std::optional<int64_t> capacity,
                                                const CacheOptions& options,
                                                const Keeps& keeps) const {
  return new_kv_cache(batch, capacity, options, keeps, {kv_heads(), d_qk(), d_head()});
}

ATTZOO_API Cache SoftmaxAttention::new_kv_cache(int64_t batch, std::optional<int64_t> capacity,
                                                const CacheOptions& options, const Keeps& keeps,
                                                const KvRows& rows) const {
  const auto head = new_cache_head(batch, capacity, options, keeps.forgets());
  std::string what;
  try {
    return Cache(std::make_shared<KvCache>(head, rows, keeps, takes().global_attention));
  } catch (const c10::Error& error) {
    what = error.what_without_backtrace();
  }
  TORCH_CHECK_VALUE(false, callee().name, ": make_cache has no memory for batch=", batch, " and ",
                    RowBuffer::rows_for(head.capacity, keeps),
                    " tokens; give it a smaller capacity: ", what);
}

}  // namespace attzoo::core

#endif
