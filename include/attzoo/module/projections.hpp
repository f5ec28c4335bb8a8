#pragma once
/// \file
/// What mechanisms of all kinds have in common and no template parameter changes: options that all
/// have, projections, norms and positions of queries and keys, the output gate.

#include <attzoo/config.hpp>
#include <attzoo/functional/result.hpp>
#include <attzoo/functional/rope.hpp>
#include <attzoo/module/parts.hpp>
#include <attzoo/module/rms_norm.hpp>

#include <functional>
#include <optional>
#include <utility>

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
  bool scaled = true;                                 ///< sqrt(d_head) divides them, too
  std::optional<Rope> rope = std::nullopt;            ///< rotary positions; default off
  std::optional<int64_t> feature_dim = std::nullopt;  ///< width of q and k; default d_model
  std::optional<int64_t> head_dim = std::nullopt;     ///< of a head; default d_model / heads
  std::optional<int64_t> context_dim = std::nullopt;  ///< features of a context; default input_dim
  std::optional<bool> out_bias = std::nullopt;        ///< of w_o; default as the others
  bool key_bias = true;                               ///< of w_k, where the others have one
  std::optional<double> qk_norm_eps =
      std::nullopt;                              ///< norms of q and k with this eps; default none
  std::optional<double> softcap = std::nullopt;  ///< bound of the scores; default none
  bool sinks = false;                            ///< a logit of each head without a value
  bool output_gate = false;                      ///< of the heads' outputs, before w_o
  std::optional<int64_t> sliding_window = std::nullopt;  ///< tokens that a causal call sees
  /// Features whose products a score sums, the scale being 1 / sqrt of them; default head_dim.
  std::optional<int64_t> score_dim = std::nullopt;
  bool own_layers = false;      ///< but for what it has, the mechanism makes its layers itself
  bool stick_breaking = false;  ///< AttentionOptions::stick_breaking
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
  if constexpr (requires { o.scaled; }) s.scaled = o.scaled;
  if constexpr (requires { o.rope; }) s.rope = o.rope;
  if constexpr (requires { o.head_dim; }) s.head_dim = o.head_dim;
  if constexpr (requires { o.context_dim; }) s.context_dim = o.context_dim;
  if constexpr (requires { o.out_bias; }) s.out_bias = o.out_bias;
  if constexpr (requires { o.key_bias; }) s.key_bias = o.key_bias;
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
class Projections : public MechanismParts {
 public:
  /// Features of a context: input_dim, unless there is an option of this name.
  int64_t context_dim() const { return settings_.context_dim.value_or(input_dim()); }
  /// Features of a value in one head: head_dim, or d_model / query heads.
  int64_t d_head() const { return settings_.head_dim.value_or(d_model() / settings_.heads.count); }
  /// Features of a query and a key in one head: d_head, but for mechanisms with a feature_dim.
  int64_t d_qk() const {
    return settings_.feature_dim ? *settings_.feature_dim / settings_.heads.count : d_head();
  }

  /// The projections, [heads * features, input_dim], w_k and w_v [.., context_dim], and w_o
  /// [d_model, heads * d_head].
  torch::nn::Linear w_q{nullptr}, w_k{nullptr}, w_v{nullptr}, w_o{nullptr};
  /// Of each head's queries and keys, before RoPE; empty without qk_norm.
  RMSNorm norm_q{nullptr}, norm_k{nullptr};
  /// The output gate [heads * d_head, input_dim]; empty without output_gate.
  torch::nn::Linear w_g{nullptr};

 protected:
  /// Throws c10::ValueError for options and settings out of range, naming the mechanism.
  Projections(const char* name, int64_t d_model, std::optional<int64_t> input_dim,
              const SelfAttentionSettings& settings, TakenInputs takes);

  /// Makes w_q, w_k, w_v and w_o, and what the settings ask for besides: norm_q, norm_k, w_g.
  /// With own_layers, nothing.
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

  /// Rotates t [B, heads, L, features], which is made of x, by the positions of x's tokens in a
  /// call whose heads stand where `heads` says.
  static void rotate_tokens(torch::Tensor& t, const RopePlan& plan, const Heads& heads,
                            const AttentionInputs& inputs);
  /// Rotates t [B, heads, S, features], which is made of a context.
  static void rotate_context(torch::Tensor& t, const RopePlan& plan);

  /// What a new cache of this module begins with; see MakesCache. `unending`: whether it may do
  /// without a capacity; `has_keys`: whether it keeps keys and values.
  CacheHead new_cache_head(int64_t batch, std::optional<int64_t> capacity,
                           const CacheOptions& options, bool unending, bool has_keys = true) const;

  /// The keys and values of a context for the module, which is this one; see MakesCache.
  Cache new_context_cache(const torch::nn::Module& module, const torch::Tensor& context,
                          const torch::Tensor& key_padding_mask) const;
  /// The same, which `project` makes of it: [B, heads, S, features].
  using MakeKeysAndValues =
      std::function<std::pair<torch::Tensor, torch::Tensor>(const torch::Tensor& context)>;
  Cache new_context_cache(const torch::nn::Module& module, const torch::Tensor& context,
                          const torch::Tensor& key_padding_mask,
                          const MakeKeysAndValues& project) const;

  /// Turns queries and keys [B, H or Hkv, L, d_qk] by their positions, where there is RoPE.
  void rotate_heads(Heads& heads, const AttentionInputs& inputs) const;
  const std::optional<RopePlan>& rope_plan() const { return rope_; }

  const SelfAttentionSettings& settings() const { return settings_; }
  int64_t kv_heads() const { return settings_.kv_heads.value_or(settings_.heads.count); }

 private:
  void check_settings() const;

  SelfAttentionSettings settings_;
  std::optional<RopePlan> rope_;
};

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/core/views.hpp>
#include <attzoo/module/checks.hpp>
#include <attzoo/module/token_cache.hpp>

#include <cmath>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

namespace attzoo::core {

ATTZOO_API Projections::Projections(const char* name, int64_t d_model,
                                    std::optional<int64_t> input_dim,
                                    const SelfAttentionSettings& settings, TakenInputs takes)
    : MechanismParts(
          {name, input_dim.value_or(d_model), settings.context_dim, settings.heads.count, takes},
          d_model),
      settings_(settings) {
  check_settings();
  if (settings.context_dim) say_size("context_dim", *settings.context_dim);
  if (settings.feature_dim) say_size("feature_dim", *settings.feature_dim);
  if (settings.head_dim) say_size("head_dim", *settings.head_dim);
  rope_ = plan_rope(settings_.rope.value_or(Rope()), d_qk(), name);
  callee().takes.positions = rope_.has_value();
  check_layer("w_q", this->input_dim(), settings_.heads.count * d_qk());
  check_layer("w_o", settings_.heads.count * d_head(), d_model);
  check_layer("w_v", context_dim(), settings_.heads.count * d_head());
}

ATTZOO_API void Projections::check_settings() const {
  constexpr int64_t kMost = int64_t{1} << 36;  // as check_layer, so that products stay in range
  const auto& [heads, head_dim, eps] =
      std::tie(settings_.heads, settings_.head_dim, settings_.qk_norm_eps);
  check_positive("context_dim", context_dim());
  check_positive(heads.name, heads.count);
  if (!head_dim) check_divides(heads.name, heads.count, "d_model", d_model());
  TORCH_CHECK_VALUE(!head_dim || (*head_dim > 0 && *head_dim <= kMost / heads.count), callee().name,
                    ": head_dim must be > 0, at most 2^36 in all heads, got ", *head_dim);
  if (settings_.kv_heads) check_divides("num_kv_heads", kv_heads(), heads.name, heads.count);
  TORCH_CHECK_VALUE(!eps || (*eps >= 0 && std::isfinite(*eps)), callee().name,
                    ": qk_norm_eps must be >= 0 and finite, got ", *eps);
  if (settings_.feature_dim) {
    check_positive("feature_dim", *settings_.feature_dim);
    check_divides(heads.name, heads.count, "feature_dim", *settings_.feature_dim);
  }
}

ATTZOO_API void Projections::make_parameters(torch::nn::Module& module, bool bias) {
  if (settings_.own_layers) return;
  const int64_t heads = settings_.heads.count;
  w_q = new_projection(module, "w_q", input_dim(), heads * d_qk(), bias);
  w_k =
      new_projection(module, "w_k", context_dim(), kv_heads() * d_qk(), bias && settings_.key_bias);
  w_v = new_projection(module, "w_v", context_dim(), kv_heads() * d_head(), bias);
  w_o =
      new_projection(module, "w_o", heads * d_head(), d_model(), settings_.out_bias.value_or(bias));
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
  return project_with(w_q, w_k, w_v, x, inputs, check_call(callee(), w_q->weight, x, inputs, mode));
}

/// Heads [B, H, S, size] of a projection, each through the norm if there is one.
inline torch::Tensor split_and_norm(const torch::Tensor& t, int64_t size, RMSNorm norm) {
  if (norm.is_empty()) return split_heads(t, size);
  const auto heads = t.view({t.size(0), t.size(1), t.size(2) / size, size});
  // Autocast makes half types of q and k.
  return norm(heads.to(norm->weight.scalar_type())).to(t.scalar_type()).transpose(1, 2);
}

/// The rotation of the tokens of `like` [B, heads, L, features] in a call.
inline auto rotation_of_call(const RopePlan& plan, const Heads& heads,
                             const AttentionInputs& inputs, const torch::Tensor& like) {
  auto positions = heads.packing.position;
  int64_t offset = inputs.position_offset;
  if (heads.past) {
    positions = heads.past->positions;
    if (!positions.defined()) offset = heads.past->offset;
  } else if (inputs.positions.defined()) {
    positions = inputs.positions.dim() == 1 ? inputs.positions.unsqueeze(0) : inputs.positions;
  }
  if (positions.defined()) positions = positions.unsqueeze(1);  // the same in all heads
  return rotation(plan.frequencies, plan.pairs, like.size(2), offset, positions, like);
}

ATTZOO_API Heads Projections::project_with(torch::nn::Linear& to_q, torch::nn::Linear& to_k,
                                           torch::nn::Linear& to_v, const torch::Tensor& x,
                                           const AttentionInputs& inputs,
                                           const CallPlaces& places) const {
  Heads heads;
  heads.packing = places.packing;
  heads.past = places.past;
  const auto take = [&](const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) {
    heads.q = split_and_norm(q, d_qk(), norm_q);
    heads.k = split_and_norm(k, d_qk(), norm_k);
    heads.v = split_heads(v, d_head());
  };
  if (const auto* kept = context_cache(inputs)) {
    heads.q = split_and_norm(linear(x, to_q), d_qk(), norm_q).to(kept->k.scalar_type());
    heads.k = kept->k;
    heads.v = kept->v;
  } else if (inputs.context.defined()) {
    const auto kv = linear_each(inputs.context, {to_k, to_v});
    take(linear(x, to_q), kv[0], kv[1]);
  } else {
    const auto qkv = linear_each(x, {to_q, to_k, to_v});
    take(qkv[0], qkv[1], qkv[2]);
  }
  if (!w_g.is_empty()) heads.gate = split_heads(torch::sigmoid(linear(x, w_g)), d_head());
  rotate_heads(heads, inputs);
  return heads;
}

ATTZOO_API void Projections::rotate_heads(Heads& heads, const AttentionInputs& inputs) const {
  if (!rope_) return;
  auto by = rotation_of_call(*rope_, heads, inputs, heads.q);
  rotate_own(heads.q, by);
  if (inputs.context.defined()) {
    rotate_context(heads.k, *rope_);
  } else if (!context_cache(inputs)) {
    rotate_own(heads.k, by);
  }
}

ATTZOO_API void Projections::rotate_tokens(torch::Tensor& t, const RopePlan& plan,
                                           const Heads& heads, const AttentionInputs& inputs) {
  auto by = rotation_of_call(plan, heads, inputs, t);
  rotate_own(t, by);
}

ATTZOO_API void Projections::rotate_context(torch::Tensor& t, const RopePlan& plan) {
  rotate_own(t, rotation(plan.frequencies, plan.pairs, t.size(2), 0, {}, t));
}

ATTZOO_API CacheHead Projections::new_cache_head(int64_t batch, std::optional<int64_t> capacity,
                                                 const CacheOptions& options, bool unending,
                                                 bool has_keys) const {
  check_reads_x(callee());
  return cache_head(callee().name, callee().identity, w_o->weight, batch, capacity, options,
                    unending, has_keys);
}

ATTZOO_API Cache Projections::new_context_cache(const torch::nn::Module& module,
                                                const torch::Tensor& context,
                                                const torch::Tensor& key_padding_mask) const {
  return new_context_cache(module, context, key_padding_mask, [this](const torch::Tensor& t) {
    const auto kv = linear_each(t, {w_k, w_v});
    auto k = split_and_norm(kv[0], d_qk(), norm_k);
    if (rope_) rotate_context(k, *rope_);
    return std::pair(k, split_heads(kv[1], d_head()));
  });
}

ATTZOO_API Cache Projections::new_context_cache(const torch::nn::Module& module,
                                                const torch::Tensor& context,
                                                const torch::Tensor& key_padding_mask,
                                                const MakeKeysAndValues& project) const {
  check_context(callee(), context, w_o->weight);
  const auto& real = key_padding_mask;
  const Shape n{context.size(0), callee().heads, 1, context.size(1)};
  if (real.defined()) check_key_padding(real, n, context.device(), callee().name);
  check_no_gradients(callee().name, module, context);
  const auto head = cache_head(callee().name, callee().identity, w_o->weight, n.B, std::nullopt, {},
                               /*unending=*/true, /*has_keys=*/true);
  const auto [k, v] = project(context);
  const auto own = [&](const torch::Tensor& t) { return t.to(head.dtype).contiguous(); };
  return Cache(
      std::make_shared<ContextCache>(head, own(k), own(v), real.defined() ? real.clone() : real));
}

ATTZOO_API AttentionResult Projections::finish(AttentionResult result) {
  result.output = linear(join_heads(result.output), w_o);
  return result;
}

}  // namespace attzoo::core

#endif
