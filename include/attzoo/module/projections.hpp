#pragma once
/// \file
/// What mechanisms of all kinds have in common and no template parameter changes: options that all
/// have, projections, norms and positions of queries and keys, the output gate.

#include <attzoo/config.hpp>
#include <attzoo/functional/result.hpp>
#include <attzoo/functional/rope.hpp>
#include <attzoo/module/call.hpp>
#include <attzoo/module/rms_norm.hpp>

#include <torch/nn/modules/linear.h>

#include <optional>

namespace attzoo {

/// How many query heads an option named `name` asks for.
struct HeadOption {
  const char* name = "num_heads";  ///< in errors
  int64_t count = 1;               ///< > 0
};

/// What a mechanism tells its base beside the options that all have. Fields that are not given do
/// not exist for it: `{.heads = {"num_heads", o.num_heads}, .rope = o.rope}` has no temperature.
struct SelfAttentionSettings {
  HeadOption heads = {};  ///< query heads; divide d_model unless there is a head_dim
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

/// The settings of a mechanism whose options have their names.
template <class Options>
SelfAttentionSettings settings_of(const Options& o) {
  SelfAttentionSettings s;
  if constexpr (requires { o.num_heads; }) s.heads = {"num_heads", o.num_heads};
  if constexpr (requires { o.num_query_heads; }) s.heads = {"num_query_heads", o.num_query_heads};
  if constexpr (requires { o.num_kv_heads; }) s.kv_heads = o.num_kv_heads;
  if constexpr (requires { o.feature_dim; }) s.feature_dim = o.feature_dim.value_or(o.d_model);
  if constexpr (requires { o.temperature; }) s.temperature = o.temperature;
  if constexpr (requires { o.rope; }) s.rope = o.rope;
  if constexpr (requires { o.head_dim; }) s.head_dim = o.head_dim;
  if constexpr (requires { o.out_bias; }) s.out_bias = o.out_bias;
  if constexpr (requires { o.qk_norm; }) {
    if (o.qk_norm) s.qk_norm_eps = o.qk_norm_eps;
  }
  if constexpr (requires { o.softcap; }) s.softcap = o.softcap;
  if constexpr (requires { o.sinks; }) s.sinks = o.sinks;
  if constexpr (requires { o.output_gate; }) s.output_gate = o.output_gate;
  if constexpr (requires { o.sliding_window; }) s.sliding_window = o.sliding_window;
  return s;
}

/// The part of every mechanism's base that comes before and after what it computes; it is compiled
/// once.
class Projections {
 public:
  /// Features of the output.
  int64_t d_model() const { return d_model_; }
  /// Features of x and of a context.
  int64_t input_dim() const { return callee_.input_dim; }
  /// Features of a value in one head: head_dim, or d_model / query heads.
  int64_t d_head() const { return settings_.head_dim.value_or(d_model_ / settings_.heads.count); }
  /// Features of a query and a key in one head: d_head, but for mechanisms with a feature_dim.
  int64_t d_qk() const {
    return settings_.feature_dim ? *settings_.feature_dim / settings_.heads.count : d_head();
  }
  /// Which inputs have a meaning here.
  TakenInputs takes() const { return callee_.takes; }

  /// The projections, [heads * features, input_dim] and w_o [d_model, heads * d_head].
  torch::nn::Linear w_q{nullptr}, w_k{nullptr}, w_v{nullptr}, w_o{nullptr};
  /// Of each head's queries and keys, before RoPE; empty without qk_norm.
  RMSNorm norm_q{nullptr}, norm_k{nullptr};
  /// The output gate [heads * d_head, input_dim]; empty without output_gate.
  torch::nn::Linear w_g{nullptr};

 protected:
  /// Throws c10::ValueError for options and settings out of range, naming the mechanism.
  Projections(const char* name, int64_t d_model, std::optional<int64_t> input_dim,
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
  /// Makes w_q, w_k, w_v and w_o, and what the settings ask for besides: norm_q, norm_k, w_g.
  void make_parameters(torch::nn::Module& module, bool bias);

  /// Checks all inputs, projects x [B, L, input_dim] and the context, splits heads, and rotates q
  /// and k. Throws c10::ValueError for a wrong shape, size or device and for inputs that have no
  /// meaning here, c10::TypeError for a wrong dtype or layout, before anything is computed.
  Heads project(const torch::Tensor& x, const AttentionInputs& inputs, const CallMode& mode);
  /// The same with projections of the mechanism's own, on inputs that were checked already.
  Heads project_with(torch::nn::Linear& to_q, torch::nn::Linear& to_k, torch::nn::Linear& to_v,
                     const torch::Tensor& x, const AttentionInputs& inputs,
                     const CallPlaces& places) const;
  /// Joins the heads of an output and applies w_o: [B, H, L, dh] -> [B, L, d_model].
  AttentionResult finish(AttentionResult result);

  /// What a new cache of this module begins with; see MakesCache. `unending`: whether it may do
  /// without a capacity.
  CacheHead new_cache_head(int64_t batch, std::optional<int64_t> capacity,
                           const CacheOptions& options, bool unending) const;

  /// What the checks of a call know.
  const Callee& callee() const { return callee_; }
  const SelfAttentionSettings& settings() const { return settings_; }
  int64_t kv_heads() const { return settings_.kv_heads.value_or(settings_.heads.count); }

 private:
  void rotate_heads(Heads& heads, const torch::Tensor& x, const AttentionInputs& inputs) const;
  void check_settings() const;
  void check_layer(const char* layer, int64_t from, int64_t to) const;

  SelfAttentionSettings settings_;
  Callee callee_;
  int64_t d_model_;
  std::optional<RopePlan> rope_;
};

}  // namespace core
}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/module/projections.ipp>
#endif
