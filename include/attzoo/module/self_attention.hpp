#pragma once
/// \file
/// The base of every mechanism, those of the zoo and your own.

#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/scores.hpp>
#include <attzoo/module/callable_module.hpp>
#include <attzoo/module/checks.hpp>
#include <attzoo/module/options.hpp>
#include <attzoo/module/softmax.hpp>

#include <concepts>
#include <optional>
#include <utility>

namespace attzoo {

/// The options of a mechanism: an aggregate with these fields at least.
template <class O>
concept MechanismOptions = requires(O& o) {
  { o.d_model } -> std::same_as<int64_t&>;                   // features of the output
  { o.input_dim } -> std::same_as<std::optional<int64_t>&>;  // features of x; default d_model
  { o.dropout } -> std::same_as<double&>;                    // while training
  { o.bias } -> std::same_as<bool&>;                         // of the projections
};
/// Those of one that is causal or not.
template <class O>
concept SelfAttentionOptions = MechanismOptions<O> && requires(O& o) {
  { o.causal } -> std::same_as<bool&>;  // nobody attends to later tokens
};

namespace core {

/// O, which does not compile without the fields of every mechanism with a softmax.
template <class O>
struct CheckedOptions {
  static_assert(SelfAttentionOptions<O>,
                "attzoo: the options of a mechanism need `int64_t d_model`, "
                "`std::optional<int64_t> input_dim`, `double dropout`, `bool bias` and `bool "
                "causal`; examples/own_mechanism.cpp has them with their defaults");
  using Type = O;
};

/// What mechanisms of all kinds are: options, parameters and calls that agree with them. Parts is
/// SoftmaxAttention, Projections where there is no softmax, as in linear attention, or
/// RecurrentParts.
template <class Derived, MechanismOptions OptionsType, class Parts>
class Mechanism : public CallableModule<Derived>, public Parts {
 public:
  using Options = OptionsType;
  using Config = OptionsType;  ///< what get_config() returns and the constructor takes
  using BaseParts = Parts;
  static constexpr TakenInputs kTakes = {};  ///< hidden by mechanisms that take others

  /// With the settings that the options name. The constructor of a mechanism calls reset().
  explicit Mechanism(const Options& o) : Mechanism(o, settings_of(o)) {}
  /// Throws c10::ValueError for options out of range.
  Mechanism(Options o, const SelfAttentionSettings& settings)
      : Parts(Derived::kName, o.d_model, o.input_dim, settings, Derived::kTakes),
        options(std::move(o)) {
    options.input_dim = this->input_dim();
  }

  /// Makes and registers the parameters, for the constructor and clone(): Xavier uniform weights,
  /// zero biases and sinks, norms of 1. A module that has them gets new values by
  /// reset_parameters().
  void reset() override {
    if (!made_) {
      check_options();
      made_ = options;
    }
    this->make_parameters(*this, options.bias);
  }

  /// Prints the mechanism with its options: `attzoo::Name(d_model=64, ...)`.
  void pretty_print(std::ostream& stream) const override {
    stream << "attzoo::" << Derived::kName << "(d_model=" << options.d_model;
    print_options(stream, options);
    extra_repr(stream);
    stream << ")";
  }
  /// Prints options of names that core::for_each_option() does not know, each as ", name=value".
  virtual void extra_repr(std::ostream&) const {}

  /// Options that build this module again, every default filled in.
  Config get_config() const { return options; }

  /// As they were given, every default filled in. Each call reads `dropout`, `causal` and those of
  /// the mechanism that its parameters do not depend on, as `window_size`. The others are settled
  /// when the module is made, core::for_each_option() has their names: changed later, they are an
  /// error of the next call.
  Options options;

 protected:
  /// A projection [to, from] of the mechanism's own, registered under `name`. `apply_linear(x,
  /// layer)` calls it with its LoRA (module/lora.hpp), which its own forward() does not know.
  /// `bias`: default as the options say.
  torch::nn::Linear make_projection(const char* name, int64_t from, int64_t to,
                                    std::optional<bool> bias = std::nullopt) {
    return this->new_projection(*this, name, from, to, bias.value_or(options.bias));
  }

  /// Throws c10::ValueError for options of the mechanism's own that are out of range: called by
  /// reset(), and by each call, since they may change.
  virtual void check_own_options() const {}

  /// What a new cache of this module begins with: new_cache_head of Projections or RecurrentParts.
  template <class... More>
  CacheHead new_cache_head(int64_t batch, std::optional<int64_t> capacity, const CacheOptions& how,
                           bool unending, More... has_keys) const {
    check_options();
    return Parts::new_cache_head(batch, capacity, how, unending, has_keys...);
  }

  /// Checks options and all inputs, projects x [B, L, input_dim] and the context, splits heads, and
  /// rotates q and k: Projections::project, or that of SoftmaxAttention.
  template <class... More>
  Heads project(const torch::Tensor& x, const AttentionInputs& in, const More&... more) {
    check_options();
    return Parts::project(x, in, mode(in), more...);
  }

  /// Whether this call is causal. A recurrence, which has no such option, is; what has no causal
  /// form is not.
  bool is_causal(const AttentionInputs& in) const {
    if constexpr (SelfAttentionOptions<Options>) {
      return in.causal.value_or(options.causal);
    } else {
      return in.causal.value_or(Derived::kTakes.causal);
    }
  }
  /// What the parts must know of this call.
  CallMode mode(const AttentionInputs& in) const { return {is_causal(in), dropout(), *this}; }
  /// Of this call.
  double dropout() const { return this->is_training() ? options.dropout : 0.0; }

  void check_options() const {
    if (made_) check_settled(Derived::kName, *made_, options);
    check_dropout(Derived::kName, options.dropout);
    check_own_options();
  }

 private:
  std::optional<Options> made_;  // the options when the module was made
};

}  // namespace core

/// Base of every mechanism with a softmax, those of the zoo and your own
/// (examples/own_mechanism.cpp):
/// ```
/// struct MineOptions { ... };  // as the concept SelfAttentionOptions says
/// class MineImpl : public attzoo::SelfAttention<MineImpl, MineOptions> {
///  public:
///   static constexpr const char* kName = "Mine";  // in errors and in print
///   explicit MineImpl(const MineOptions& o) : SelfAttention(o) { reset(); }
///   AttentionResult forward(const torch::Tensor& x, const AttentionInputs& in = {}) {
///     return finish(attend(project(x, in), in, window(16, 0), softcap(30.0)));
///   }
/// };
/// using Mine = attzoo::Holder<MineImpl>;
/// ```
/// The base checks options and the inputs of a call, makes w_q, w_k, w_v and w_o, and handles
/// masks, padding, causality, documents, a context and RoPE, and all else of SelfAttentionSettings:
/// options of those names have that meaning, and `SelfAttention(o, settings)` says others. The
/// mechanism gives its mask and its score modifier, may override `extra_repr(stream)` and
/// `check_own_options()` for options of its own, and says with `static constexpr TakenInputs
/// kTakes` if it takes other inputs than most. tests/support/mechanism_contract.hpp (CMake target
/// attzoo::testing) tests what all of them keep.
template <class Derived, class OptionsType>
class SelfAttention
    : public core::Mechanism<Derived, typename core::CheckedOptions<OptionsType>::Type,
                             core::SoftmaxAttention> {
  using Base = core::Mechanism<Derived, OptionsType, core::SoftmaxAttention>;

 public:
  using Base::Base;

  /// What the next tokens need of those before; see MakesCache and Cache.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    this->check_options();
    return this->new_kv_cache(batch, capacity, how, keeps());
  }
  /// A context's keys and values, projected once; see MakesCache.
  Cache make_context_cache(const torch::Tensor& context,
                           const torch::Tensor& key_padding_mask = {}) const override {
    this->check_options();
    return this->new_context_cache(*this, context, key_padding_mask);
  }

 protected:
  /// Which tokens a cache must keep, where the pattern does not reach all of them.
  virtual Keeps keeps() const { return this->keeps_window(); }

  /// Checks options and all inputs, projects x [B, L, input_dim] and the context, splits heads, and
  /// rotates q and k: SoftmaxAttention::project.
  Heads project(const torch::Tensor& x, const AttentionInputs& in) {
    return Base::project(x, in, in.cache.defined() ? keeps() : Keeps{});
  }

  /// Attention under the mechanism's own pattern and score, and all that the caller asked for:
  /// output [B, H, L, dh], weights [B, H, L, S], lse [B, H, L].
  AttentionResult attend(const Heads& heads, const AttentionInputs& in,
                         const core::AnyMask& pattern = {},
                         const core::AnyScore& score = {}) const {
    return core::SoftmaxAttention::attend(heads, in, this->mode(in), pattern, score);
  }
  /// The same without a pattern.
  template <ScoreMod Score>
  AttentionResult attend(const Heads& heads, const AttentionInputs& in, const Score& score) const
      requires(!MaskMod<Score>) {
    return attend(heads, in, core::AnyMask(), score);
  }
  /// What is neither does not compile, nor what is in another order.
  template <class First, class... More>
  AttentionResult attend(const Heads& heads, const AttentionInputs& in, const First&,
                         const More&...) const
      requires(!(ScoreMod<First> && sizeof...(More) == 0) &&
               !(std::convertible_to<First, core::AnyMask> &&
                 (std::convertible_to<More, core::AnyScore> && ...))) {
    static_assert(!sizeof(First*),
                  "attzoo: attend(heads, inputs) takes a mask, a score modifier or both in this "
                  "order: write mask_mod(f) or score_mod(f) for a callable f");
    return attend(heads, in);
  }

  /// How this call attends: by the module's scale, with dropout while training.
  AttentionOptions attention_options() const {
    return {.scale = this->scale(), .dropout = this->dropout()};
  }
};

}  // namespace attzoo
