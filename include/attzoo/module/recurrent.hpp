#pragma once
/// \file
/// The base of every mechanism that is a linear recurrence, those of the zoo and your own.

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/core/views.hpp>
#include <attzoo/module/parts.hpp>
#include <attzoo/module/recurrent_call.hpp>
#include <attzoo/module/rms_norm.hpp>
#include <attzoo/module/self_attention.hpp>

#include <memory>
#include <optional>

namespace attzoo {

namespace core {

/// Heads of queries and keys, those of values, and the features of each.
struct RecurrentHeads {
  int64_t H, HV, dk, dv;
};

/// What recurrent mechanisms of all kinds have in common; it is compiled once.
class RecurrentParts : public MechanismParts {
 public:
  /// The output projection.
  torch::nn::Linear w_o{nullptr};

 protected:
  /// Throws c10::ValueError for sizes out of range, naming the mechanism.
  RecurrentParts(const char* name, int64_t d_model, std::optional<int64_t> input_dim,
                 const SelfAttentionSettings& settings, TakenInputs takes);

  /// Options of heads, those that a mechanism does not have null; and how many features keys and
  /// values have by default in all heads.
  struct HeadOptions {
    int64_t num_heads;
    std::optional<int64_t>* num_value_heads;
    std::optional<int64_t>* head_dim;
    std::optional<int64_t>* value_head_dim;
    int64_t key_features;
    std::optional<int64_t> value_features;  // default: each value those of a key
  };
  /// The heads that they ask for, with the defaults filled in. Throws c10::ValueError for options
  /// out of range.
  RecurrentHeads settle_heads(const HeadOptions& options) const;
  /// From now on rotated() turns rows of dk features, and calls take positions. Throws
  /// c10::ValueError as plan_rope().
  void rotate_heads(const Rope& rope, int64_t dk);
  /// t [B, H, n, dk] of a call's tokens, turned by their positions if rotate_heads() asked for it.
  torch::Tensor rotated(const RecurrentCall& call, const torch::Tensor& t) const;
  /// Layers are the mechanism's own.
  void make_parameters(torch::nn::Module&, bool) {}
  /// Checks all inputs. Throws c10::ValueError for a wrong shape, size or device and for inputs
  /// that have no meaning here, c10::TypeError for a wrong dtype or layout.
  RecurrentCall begin_call(const torch::Tensor& x, const AttentionInputs& inputs,
                           const CallMode& mode) const;
  /// w_o of features [B, n, ..]: the result of the call, whose tokens the cache takes.
  AttentionResult end_call(const RecurrentCall& call, const torch::Tensor& features,
                           double dropout) const;
  /// What a new cache of this module begins with; see MakesCache.
  CacheHead new_cache_head(int64_t batch, std::optional<int64_t> capacity,
                           const CacheOptions& options, bool unending) const;

 private:
  std::optional<RopePlan> rope_;
};

/// t / sqrt(sum t^2 + eps) over the last dimension, in float32 at least.
ATTZOO_API torch::Tensor l2_norm(const torch::Tensor& t, double eps = 1e-6);
/// The norm, whose weight is for all features, of each of equal groups of them.
ATTZOO_API torch::Tensor norm_in_groups(const RMSNorm& norm, const torch::Tensor& t,
                                        int64_t groups);

/// -exp(A_log) softplus(t + dt_bias), natural logs of decays, in float32 at least.
ATTZOO_API torch::Tensor softplus_decay(const torch::Tensor& A_log, const torch::Tensor& t,
                                        const torch::Tensor& dt_bias);
/// As Mamba-2 begins: the logs of uniform numbers within 1 ... 16.
ATTZOO_API torch::Tensor initial_A_log(int64_t heads);
/// What softplus makes numbers within 0.001 ... 0.1 of, their logs uniform.
ATTZOO_API torch::Tensor initial_dt_bias(int64_t features);

}  // namespace core

/// Base of every mechanism that is a linear recurrence:
/// ```
/// class MineImpl : public attzoo::RecurrentAttention<MineImpl, MineOptions> {
///  public:
///   static constexpr const char* kName = "Mine";
///   explicit MineImpl(const MineOptions& o) : RecurrentAttention(o) { reset(); }
///   void reset() override {
///     RecurrentAttention::reset();
///     w_q = make_projection("w_q", input_dim(), d_model());  // and w_k, w_v, w_b, w_o
///   }
///   AttentionResult forward(const torch::Tensor& x, const AttentionInputs& in = {}) {
///     auto call = begin(x, in);
///     const auto beta = torch::sigmoid(w_b(call.x)).transpose(1, 2);
///     const auto o = call.recur(q, k, v, {.beta = beta});    // [B, H, n, dh]
///     return finish(call, core::join_heads(o));
///   }
/// };
/// ```
/// The base checks options and inputs and handles key padding, documents and caches: convolutions
/// and recurrences of a call go on from where the tokens before left them, in the order in which
/// forward() calls them. A mask of pairs, a context, and causal = false have no meaning and are
/// errors. `weights` are those of the recurrence, output = weights v in every head, before norms
/// and gates; there are none with a cache, and no lse.
template <class Derived, MechanismOptions OptionsType>
class RecurrentAttention : public core::Mechanism<Derived, OptionsType, core::RecurrentParts> {
  using Base = core::Mechanism<Derived, OptionsType, core::RecurrentParts>;

 public:
  static constexpr TakenInputs kTakes{.mask = false, .context = false, .later = false};
  using Base::Base;

  /// The state behind the tokens so far, in float32 at least, without end; see MakesCache and
  /// Cache.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    const auto head = this->new_cache_head(batch, capacity, how, /*unending=*/true);
    return Cache(std::make_shared<core::StateCache>(head, this->input_dim()));
  }
  /// Throws c10::NotImplementedError: there is no context.
  Cache make_context_cache(const torch::Tensor&, const torch::Tensor& = {}) const override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, Derived::kName,
                                ": a context has no meaning: a recurrence reads its own tokens, "
                                "one after the other");
  }

 protected:
  /// The heads that the options num_heads, num_value_heads, head_dim and value_head_dim ask for,
  /// with their defaults filled in: keys have key_features in all heads, values value_features, or
  /// each as many as a key.
  core::RecurrentHeads settle_heads(int64_t key_features,
                                    std::optional<int64_t> value_features = std::nullopt) {
    auto& o = this->options;
    std::optional<int64_t>*HV = nullptr, *dk = nullptr, *dv = nullptr;
    if constexpr (requires { o.num_value_heads; }) HV = &o.num_value_heads;
    if constexpr (requires { o.head_dim; }) dk = &o.head_dim;
    if constexpr (requires { o.value_head_dim; }) dv = &o.value_head_dim;
    return core::RecurrentParts::settle_heads(
        {o.num_heads, HV, dk, dv, key_features, value_features});
  }
  /// A short convolution over so many features, with SiLU, registered under `name`.
  ShortConvolution make_convolution(const char* name, int64_t features, int64_t size,
                                    bool bias = false) {
    this->check_positive("conv_size", size);
    return this->register_module(
        name, ShortConvolution({.channels = features, .kernel_size = size, .bias = bias}));
  }
  /// A norm of so many features, registered under `name`.
  RMSNorm make_norm(const char* name, int64_t features, double eps) {
    return this->register_module(name, RMSNorm({.features = features, .eps = eps}));
  }

  /// Checks options and all inputs: RecurrentParts::begin_call.
  core::RecurrentCall begin(const torch::Tensor& x, const AttentionInputs& in) const {
    this->check_options();
    return this->begin_call(x, in, this->mode(in));
  }
  /// Dropout and w_o of what a call made, [B, n, ..] -> output [B, L, d_model].
  AttentionResult finish(const core::RecurrentCall& call, const torch::Tensor& features) const {
    return this->end_call(call, features, this->dropout());
  }
};

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/module/checks.hpp>

#include <ATen/ops/dropout.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/softplus.h>

#include <cmath>

namespace attzoo::core {

ATTZOO_API RecurrentParts::RecurrentParts(const char* name, int64_t d_model,
                                          std::optional<int64_t> input_dim,
                                          const SelfAttentionSettings& settings, TakenInputs takes)
    : MechanismParts({name, input_dim.value_or(d_model), std::nullopt, settings.heads.count, takes},
                     d_model) {
  check_positive(settings.heads.name, settings.heads.count);
  check_layer("w_o", 1, d_model);  // so that what options make of it stays in range
}

ATTZOO_API void RecurrentParts::rotate_heads(const Rope& rope, int64_t dk) {
  rope_ = plan_rope(rope, dk, callee().name);
  callee().takes.positions = rope_.has_value();
}

ATTZOO_API torch::Tensor RecurrentParts::rotated(const RecurrentCall& call,
                                                 const torch::Tensor& t) const {
  if (!rope_) return t;
  const auto places = call.places.defined() ? call.places.unsqueeze(1) : call.places;
  auto by = rotation(rope_->frequencies, rope_->pairs, t.size(2), call.offset, places, t);
  return rotate(t, by);
}

ATTZOO_API RecurrentHeads RecurrentParts::settle_heads(const HeadOptions& o) const {
  const auto settle = [](std::optional<int64_t>* option, int64_t value) {
    if (!option) return value;
    if (!*option) *option = value;
    return **option;
  };
  const auto share = [this](int64_t features, const char* name, int64_t heads) {
    check_divides(name, heads, "d_model", features);
    return features / heads;
  };
  const int64_t H = o.num_heads, HV = settle(o.num_value_heads, H);
  check_positive("num_value_heads", HV);
  check_divides("num_heads", H, "num_value_heads", HV);
  const bool has_dk = o.head_dim && *o.head_dim, has_dv = o.value_head_dim && *o.value_head_dim;
  const int64_t dk = settle(o.head_dim, has_dk ? 0 : share(o.key_features, "num_heads", H));
  const int64_t dv =
      settle(o.value_head_dim,
             has_dv || !o.value_features ? dk : share(*o.value_features, "num_value_heads", HV));
  check_positive("head_dim", dk);
  check_positive("value_head_dim", dv);
  check_layer("w_q", H, dk);  // so that products stay in range
  check_layer("w_v", HV, dv);
  return {H, HV, dk, dv};
}

ATTZOO_API RecurrentCall RecurrentParts::begin_call(const torch::Tensor& x,
                                                    const AttentionInputs& inputs,
                                                    const CallMode& mode) const {
  const auto* name = callee().name;
  const auto places = check_call(callee(), w_o->weight, x, inputs, mode);
  TORCH_CHECK_VALUE(!says_pairs(inputs), name,
                    ": mask, pattern and score are about pairs, which a recurrence does not have; "
                    "pass tokens to leave out as key_padding_mask [B, L], or documents");
  TORCH_CHECK_VALUE(!crosses(inputs), name,
                    ": a context has no meaning: a recurrence reads its own tokens, one after the "
                    "other");
  TORCH_CHECK_VALUE(mode.causal, name,
                    ": causal = false has no meaning: a recurrence never sees later tokens");
  return {x, inputs, places};
}

ATTZOO_API AttentionResult RecurrentParts::end_call(const RecurrentCall& call,
                                                    const torch::Tensor& features,
                                                    double dropout) const {
  AttentionResult result{
      linear(torch::dropout(call.asked(features), dropout, dropout > 0), w_o), call.weights, {}};
  call.done();
  return result;
}

ATTZOO_API CacheHead RecurrentParts::new_cache_head(int64_t batch, std::optional<int64_t> capacity,
                                                    const CacheOptions& options,
                                                    bool unending) const {
  return cache_head(callee().name, callee().identity, w_o->weight, batch, capacity, options,
                    unending, /*has_keys=*/false);
}

ATTZOO_API torch::Tensor l2_norm(const torch::Tensor& t, double eps) {
  const auto all = wide(t);
  return all * (all.square().sum(-1, /*keepdim=*/true) + eps).rsqrt();
}

ATTZOO_API torch::Tensor norm_in_groups(const RMSNorm& norm, const torch::Tensor& t,
                                        int64_t groups) {
  const int64_t size = t.size(-1) / groups;
  const auto rows = at::rms_norm(t.unflatten(-1, {groups, size}), {size}, {}, norm->options.eps);
  return rows.flatten(-2) * norm->weight;
}

ATTZOO_API torch::Tensor softplus_decay(const torch::Tensor& A_log, const torch::Tensor& t,
                                        const torch::Tensor& dt_bias) {
  return -wide(A_log).exp() * at::softplus(wide(t) + wide(dt_bias));
}

ATTZOO_API torch::Tensor initial_A_log(int64_t heads) {
  return torch::empty({heads}).uniform_(1, 16).log();
}

ATTZOO_API torch::Tensor initial_dt_bias(int64_t features) {
  const auto dt = torch::empty({features}).uniform_(std::log(0.001), std::log(0.1)).exp();
  return dt + torch::log(-torch::expm1(-dt));
}

}  // namespace attzoo::core

#endif
