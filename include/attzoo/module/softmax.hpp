#pragma once
/// \file
/// What is softmax attention's alone: scores and what bounds them, sinks, the sliding window, and a
/// cache of keys and values.

#include <attzoo/functional/attention.hpp>
#include <attzoo/module/projections.hpp>
#include <attzoo/module/row_buffer.hpp>

namespace attzoo::core {

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

  /// 1 / (sqrt(d_head) * temperature).
  double scale() const;

  /// What a cache must keep for the sliding window; all without one.
  Keeps keeps_window() const;
  /// A cache of keys and values.
  Cache new_kv_cache(int64_t batch, std::optional<int64_t> capacity, const CacheOptions& options,
                     const Keeps& keeps) const;
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/module/softmax.ipp>
#endif
