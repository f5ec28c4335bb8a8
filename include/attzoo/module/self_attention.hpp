#pragma once
/// \file
/// The base of every mechanism, those of the zoo and your own.

#include <attzoo/functional/masks.hpp>
#include <attzoo/functional/scores.hpp>
#include <attzoo/module/callable_module.hpp>
#include <attzoo/module/parts.hpp>
#include <attzoo/module/settled.hpp>

#include <concepts>
#include <optional>
#include <utility>

namespace attzoo {

/// The options of a mechanism: an aggregate with these fields at least.
template <class O>
concept SelfAttentionOptions = requires(O& o) {
  { o.d_model } -> std::same_as<int64_t&>;                   // features of the output
  { o.input_dim } -> std::same_as<std::optional<int64_t>&>;  // features of x; default d_model
  { o.dropout } -> std::same_as<double&>;                    // of the weights, while training
  { o.bias } -> std::same_as<bool&>;                         // of the projections
  { o.causal } -> std::same_as<bool&>;                       // nobody attends to later tokens
};

namespace core {

CommonOptions common_options(const SelfAttentionOptions auto& o) {
  return {o.d_model, o.input_dim, o.dropout, o.bias, o.causal};
}

}  // namespace core

/// Base of every mechanism, those of the zoo and your own (examples/own_mechanism.cpp):
/// ```
/// struct MineOptions { ... };  // as the concept SelfAttentionOptions says
/// class MineImpl : public attzoo::SelfAttention<MineImpl, MineOptions> {
///  public:
///   static constexpr const char* kName = "Mine";  // in errors and in print
///   explicit MineImpl(const MineOptions& o)
///       : SelfAttention(o, {.heads = {"num_heads", o.num_heads}}) {
///     reset();
///   }
///   AttentionResult forward(const torch::Tensor& x, const AttentionInputs& in = {}) {
///     return finish(attend(project(x, in), in, window(16, 0), softcap(30.0)));
///   }
/// };
/// using Mine = attzoo::Holder<MineImpl>;
/// ```
/// The base checks options and the inputs of a call, makes w_q, w_k, w_v and w_o, and handles
/// masks, padding, causality, documents, a context and RoPE, and all else of SelfAttentionSettings.
/// The mechanism gives its mask and its score modifier, may override `extra_repr(stream)` and
/// `check_own_options()` for options of its own, and says with `static constexpr TakenInputs
/// kTakes` if it takes other inputs than most. tests/support/mechanism_contract.hpp (CMake target
/// attzoo::testing) tests what all of them keep.
template <class Derived, SelfAttentionOptions OptionsType>
class SelfAttention : public core::CallableModule<Derived>, public core::SelfAttentionParts {
 public:
  using Options = OptionsType;
  using Config = OptionsType;  ///< what get_config() returns and the constructor takes
  static constexpr TakenInputs kTakes = {};  ///< hidden by mechanisms that take others

  /// Throws c10::ValueError for options out of range. The constructor of a mechanism calls reset().
  SelfAttention(Options o, const SelfAttentionSettings& settings)
      : SelfAttentionParts(Derived::kName, core::common_options(o), settings, Derived::kTakes),
        options(std::move(o)) {
    options.input_dim = input_dim();
  }

  /// Makes and registers the parameters, for the constructor and clone(): Xavier uniform weights,
  /// zero biases and sinks, norms of 1. A module that has them gets new values by
  /// reset_parameters().
  void reset() override {
    if (!made_) made_ = options;
    make_projections(*this, options.bias);
  }

  /// Prints the mechanism with its options: `attzoo::Name(d_model=64, ...)`.
  void pretty_print(std::ostream& stream) const override {
    print_sizes(stream);
    extra_repr(stream);
    print_options(stream, core::common_options(options));
  }
  /// Prints options of the mechanism's own, each as ", name=value".
  virtual void extra_repr(std::ostream&) const {}

  /// Options that build this module again, every default filled in.
  Config get_config() const { return options; }

  /// What the next tokens need of those before; see MakesCache and Cache.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    check_options();
    return new_kv_cache(batch, capacity, how, keeps());
  }

  /// As they were given, every default filled in. Each call reads `dropout`, `causal` and those of
  /// the mechanism that its parameters do not depend on, as `window_size`. The others are settled
  /// when the module is made, core::for_each_settled() has their names: changed later, they are an
  /// error of the next call.
  Options options;

 protected:
  /// A projection [to, from] of the mechanism's own, registered under `name`.
  torch::nn::Linear make_projection(const char* name, int64_t from, int64_t to) {
    return new_projection(*this, name, from, to, options.bias);
  }

  /// Which tokens a cache must keep, where the pattern does not reach all of them.
  virtual Keeps keeps() const { return keeps_window(); }

  /// Throws c10::ValueError for options of the mechanism's own that are out of range: called by its
  /// constructor, and by each call, since they may change.
  virtual void check_own_options() const {}

  /// What a new cache of this module begins with: SelfAttentionParts::new_cache_head.
  core::CacheHead new_cache_head(int64_t batch, std::optional<int64_t> capacity,
                                 const CacheOptions& how, bool unending) const {
    check_options();
    return SelfAttentionParts::new_cache_head(batch, capacity, how, unending);
  }

  /// Checks options and all inputs, projects x [B, L, input_dim] and the context, splits heads, and
  /// rotates q and k: SelfAttentionParts::project.
  Heads project(const torch::Tensor& x, const AttentionInputs& in) {
    check_options();
    auto how = mode(in);
    if (in.cache.defined()) how.keeps = keeps();
    return SelfAttentionParts::project(x, in, how);
  }

  /// Attention under the mechanism's own pattern and score, and all that the caller asked for:
  /// output [B, H, L, dh], weights [B, H, L, S], lse [B, H, L].
  AttentionResult attend(const Heads& heads, const AttentionInputs& in,
                         const core::AnyMask& pattern = {},
                         const core::AnyScore& score = {}) const {
    return SelfAttentionParts::attend(heads, in, mode(in), pattern, score, attention_options());
  }

  /// Whether this call is causal.
  bool is_causal(const AttentionInputs& in) const { return in.causal.value_or(options.causal); }

  /// How this call attends: by the module's scale, with dropout while training.
  AttentionOptions attention_options() const {
    return {.scale = scale(),
            .dropout = this->is_training() ? options.dropout : 0.0,
            .private_qk = true};
  }

 private:
  core::CallMode mode(const AttentionInputs& in) const {
    return {is_causal(in), this->is_training() && options.dropout > 0, *this};
  }
  void check_options() const {
    if (made_) core::check_settled(Derived::kName, *made_, options);
    core::check_dropout(Derived::kName, options.dropout);
    check_own_options();
  }

  std::optional<Options> made_;  // the options when the module was made
};

}  // namespace attzoo
