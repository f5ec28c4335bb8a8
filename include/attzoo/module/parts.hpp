#pragma once
/// \file
/// What all mechanisms have in common and no template parameter changes: the projections, the
/// checks of options and inputs, RoPE, what models put around attention, and the way through the
/// core.

#include <attzoo/config.hpp>
#include <attzoo/functional/attention.hpp>
#include <attzoo/module/checks.hpp>
#include <attzoo/module/heads.hpp>
#include <attzoo/module/inputs.hpp>
#include <attzoo/module/rms_norm.hpp>
#include <attzoo/module/rope.hpp>
#include <attzoo/module/row_buffer.hpp>

#include <torch/nn/modules/linear.h>

#include <iosfwd>
#include <optional>
#include <string>

namespace attzoo {

/// How many query heads an option named `name` asks for.
struct HeadOption {
  const char* name;  ///< in errors
  int64_t count;     ///< > 0
};

/// What a mechanism tells its base beside the options that all have. Fields that are not given do
/// not exist for it: `{.heads = {"num_heads", o.num_heads}, .rope = o.rope}` has no temperature.
struct SelfAttentionSettings {
  HeadOption heads;  ///< query heads; divide d_model unless there is a head_dim
  std::optional<int64_t> kv_heads = std::nullopt;     ///< of keys and values; default as many
  std::optional<double> temperature = std::nullopt;   ///< divides the scores, > 0; default 1
  std::optional<Rope> rope = std::nullopt;            ///< rotary positions; default off
  std::optional<int64_t> feature_dim = std::nullopt;  ///< width of q and k; default d_model
  std::optional<int64_t> head_dim = std::nullopt;     ///< of a head; default d_model / heads
  std::optional<bool> out_bias = std::nullopt;        ///< of w_o; default as the others
  std::optional<double> qk_norm_eps =
      std::nullopt;                              ///< norms of q and k with this eps; default none
  std::optional<double> softcap = std::nullopt;  ///< bound of the scores; default none
  bool sinks = false;                            ///< a logit of each head without a value
  bool output_gate = false;                      ///< of the heads' outputs, before w_o
  std::optional<int64_t> sliding_window = std::nullopt;  ///< tokens that a causal call sees
};

namespace core {

/// The options that every mechanism has.
struct CommonOptions {
  int64_t d_model;
  std::optional<int64_t> input_dim;
  double dropout;
  bool bias, causal;
};

/// What a module says of one call.
struct CallMode {
  bool causal;
  bool drops;                       // weights are dropped at random
  const torch::nn::Module& module;  // itself
  Keeps keeps = {};                 // with a cache: what it must keep
};

/// The base of SelfAttention that is the same for all mechanisms; it is compiled once.
class SelfAttentionParts {
 public:
  /// Features of the output.
  int64_t d_model() const { return d_model_; }
  /// Features of x and of a context.
  int64_t input_dim() const { return input_dim_; }
  /// Features of a value in one head: head_dim, or d_model / query heads.
  int64_t d_head() const { return settings_.head_dim.value_or(d_model_ / settings_.heads.count); }
  /// Features of a query and a key in one head: d_head, but for mechanisms with a feature_dim.
  int64_t d_qk() const {
    return settings_.feature_dim ? *settings_.feature_dim / settings_.heads.count : d_head();
  }
  /// Which inputs have a meaning here.
  TakenInputs takes() const { return takes_; }

  /// The projections, [heads * features, input_dim] and w_o [d_model, heads * d_head].
  torch::nn::Linear w_q{nullptr}, w_k{nullptr}, w_v{nullptr}, w_o{nullptr};
  /// Of each head's queries and keys, before RoPE; empty without qk_norm.
  RMSNorm norm_q{nullptr}, norm_k{nullptr};
  /// The output gate [heads * d_head, input_dim]; empty without output_gate.
  torch::nn::Linear w_g{nullptr};
  /// Logits [heads] in the softmax's denominator, at first 0; undefined without sinks.
  torch::Tensor sinks;

 protected:
  /// Throws c10::ValueError for options and settings out of range, naming the mechanism.
  SelfAttentionParts(const char* name, const CommonOptions& options,
                     const SelfAttentionSettings& settings, TakenInputs takes);

  /// Throws c10::ValueError unless value > 0.
  void check_positive(const char* name, int64_t value) const;
  /// Throws c10::ValueError unless divisor > 0 divides value.
  void check_divides(const char* divisor_name, int64_t divisor, const char* name,
                     int64_t value) const;

  /// Registers a new layer with `module`: Xavier uniform weights [to, from], biases of 0. Throws
  /// c10::ValueError for more than 2^36 weights.
  torch::nn::Linear new_projection(torch::nn::Module& module, const char* name, int64_t from,
                                   int64_t to, bool bias) const;
  /// Makes w_q, w_k, w_v and w_o, and what the settings ask for besides: norm_q, norm_k, w_g,
  /// sinks.
  void make_projections(torch::nn::Module& module, bool bias);

  /// Checks all inputs, projects x [B, L, input_dim] and the context, splits heads, and rotates q
  /// and k. With a cache, the keys and values are those that it keeps, the new ones last. Throws
  /// c10::ValueError for a wrong shape, size or device and for inputs that have no meaning here,
  /// c10::TypeError for a wrong dtype or layout, before anything is computed.
  Heads project(const torch::Tensor& x, const AttentionInputs& inputs, const CallMode& mode);
  /// The same with projections of the mechanism's own, on inputs that project() has checked and for
  /// tokens that stand where it has found them; without a cache's keys and values.
  Heads project_with(torch::nn::Linear& to_q, torch::nn::Linear& to_k, torch::nn::Linear& to_v,
                     const torch::Tensor& x, const AttentionInputs& inputs, const Packing& packing,
                     const std::optional<Past>& past) const;

  /// What a new cache of this module begins with; see MakesCache. `unending`: whether it may do
  /// without a capacity.
  CacheHead new_cache_head(int64_t batch, std::optional<int64_t> capacity,
                           const CacheOptions& options, bool unending) const;
  /// Attention under a mechanism's pattern and score, within the sliding window, with softcap,
  /// sinks and output gate: output [B, H, L, dh], weights [B, H, L, S], lse [B, H, L]. Throws
  /// c10::ValueError for a sliding window in a call that is not causal.
  AttentionResult attend(const Heads& heads, const AttentionInputs& inputs, const CallMode& mode,
                         AnyMask pattern, AnyScore score, const AttentionOptions& how) const;
  /// What a cache must keep for the sliding window; all without one.
  Keeps keeps_window() const;
  /// A cache of keys and values.
  Cache new_kv_cache(int64_t batch, std::optional<int64_t> capacity, const CacheOptions& options,
                     const Keeps& keeps) const;
  /// Joins the heads of an output and applies w_o: [B, H, L, dh] -> [B, L, d_model].
  AttentionResult finish(AttentionResult result);

  /// 1 / (sqrt(d_head) * temperature).
  double scale() const;

  /// "attzoo::Name(d_model=.., input_dim=..", and the rest behind the mechanism's own options.
  void print_sizes(std::ostream& stream) const;
  void print_options(std::ostream& stream, const CommonOptions& options) const;

 private:
  void rotate_heads(Heads& heads, const torch::Tensor& x, const AttentionInputs& inputs) const;
  std::string who(const char* argument) const;
  void check_options(const CommonOptions& options) const;
  void check_around() const;
  void check_layer(const char* layer, int64_t from, int64_t to) const;
  void check_inputs(const torch::Tensor& x, const AttentionInputs& inputs,
                    const CallMode& mode) const;
  void check_global(const torch::Tensor& x, const AttentionInputs& inputs) const;
  void check_positions(const torch::Tensor& x, const AttentionInputs& inputs) const;
  void check_documents(const AttentionInputs& inputs, const Shape& n,
                       const torch::Device& device) const;
  void check_cached_call(const torch::Tensor& x, const AttentionInputs& inputs,
                         const CallMode& mode) const;

  const char* name_;
  SelfAttentionSettings settings_;
  TakenInputs takes_;
  int64_t d_model_, input_dim_;
  std::optional<RopePlan> rope_;
  Identity identity_;  // of which caches are
};

/// The settings of a mechanism whose options have what models put around attention.
template <class Options>
SelfAttentionSettings with_model_options(const Options& o, SelfAttentionSettings settings) {
  settings.head_dim = o.head_dim;
  settings.out_bias = o.out_bias;
  if (o.qk_norm) settings.qk_norm_eps = o.qk_norm_eps;
  settings.softcap = o.softcap;
  settings.sinks = o.sinks;
  settings.output_gate = o.output_gate;
  settings.sliding_window = o.sliding_window;
  return settings;
}

/// Attention under a mechanism's pattern and score, and all that a call asks for: output [B, H, L,
/// dh], weights [B, H, L, S], lse [B, H, L].
ATTZOO_API AttentionResult attend(const Heads& heads, const AttentionInputs& inputs, bool is_causal,
                                  AnyMask pattern, AnyScore score, const AttentionOptions& how);

}  // namespace core
}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/module/parts.ipp>
#endif
