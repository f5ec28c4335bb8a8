#pragma once
/// \file
/// What modules around other attention modules share: which modules they take, and how they hold,
/// copy and rebuild them.

#include <attzoo/module/callable_module.hpp>
#include <attzoo/module/checks.hpp>
#include <attzoo/module/joined_cache.hpp>
#include <attzoo/module/options.hpp>

#include <concepts>
#include <memory>
#include <optional>
#include <utility>

namespace attzoo {

/// What a wrapper needs of the module that it wraps; every mechanism of the zoo and every wrapper
/// has it. `takes()` says which inputs the wrapper may pass on. One that also has make_cache, as
/// MakesCache says, is wrapped with its caches.
template <class M>
concept AttentionModule = std::derived_from<M, torch::nn::Module> &&
    std::constructible_from<M, const typename M::Config&> &&
    requires(M& m, const torch::Tensor& x, const AttentionInputs& inputs) {
  { m.forward(x, inputs) } -> std::same_as<AttentionResult>;
  { m.d_model() } -> std::convertible_to<int64_t>;
  { m.input_dim() } -> std::convertible_to<int64_t>;
  { m.takes() } -> std::convertible_to<TakenInputs>;
  { m.get_config() } -> std::convertible_to<typename M::Config>;
  { m.clone() } -> std::convertible_to<std::shared_ptr<torch::nn::Module>>;
};

namespace core {

/// A wrapped module's cache. Throws c10::NotImplementedError if it makes none.
template <class M>
Cache inner_cache(const char* who, const M& inner, int64_t batch, std::optional<int64_t> capacity,
                  const CacheOptions& how) {
  if constexpr (requires { inner.make_cache(batch, capacity, how); }) {
    return inner.make_cache(batch, capacity, how);
  } else {
    TORCH_CHECK_NOT_IMPLEMENTED(false, who, ": the wrapped module has no make_cache");
  }
}

/// A wrapped module's cache of a context, likewise.
template <class M>
Cache inner_context_cache(const char* who, const M& inner, const torch::Tensor& context,
                          const torch::Tensor& key_padding_mask) {
  if constexpr (requires { inner.make_context_cache(context, key_padding_mask); }) {
    return inner.make_context_cache(context, key_padding_mask);
  } else {
    TORCH_CHECK_NOT_IMPLEMENTED(false, who, ": the wrapped module has no make_context_cache");
  }
}

/// The same module in a holder that is called with inputs in braces.
template <AttentionModule M>
Holder<M> as_holder(const torch::nn::ModuleHolder<M>& module) {
  if (module.is_empty()) return nullptr;
  return module.ptr();
}

/// What a wrapper around one module holds. The module is shared with whoever gave it.
template <class OptionsType, AttentionModule Inner>
struct WrapsOne {
  /// Everything to build the wrapper again, the inner module included.
  struct Config {
    typename Inner::Config attn;
    OptionsType options = {};
  };

  /// Features of the output.
  int64_t d_model() const { return attn->d_model(); }
  /// Features of x.
  int64_t input_dim() const { return attn->input_dim(); }
  /// What the inner module takes.
  TakenInputs takes() const { return attn->takes(); }
  /// What builds this wrapper again, every default filled in.
  Config get_config() const { return {attn->get_config(), options}; }

  OptionsType options;  ///< as they were given, every default filled in
  Holder<Inner> attn;   ///< the wrapped module

  WrapsOne(const torch::nn::ModuleHolder<Inner>& inner, const OptionsType& o)
      : options(o), attn(as_holder(inner)) {}

 protected:
  /// The wrapped module's cache: a wrapper needs nothing of its own.
  Cache new_cache(const char* who, int64_t batch, std::optional<int64_t> capacity,
                  const CacheOptions& how) const {
    return inner_cache(who, *attn, batch, capacity, how);
  }
  Cache new_context_cache(const char* who, const torch::Tensor& context,
                          const torch::Tensor& key_padding_mask) const {
    return inner_context_cache(who, *attn, context, key_padding_mask);
  }
  /// f(name, holder) for what is wrapped.
  template <class F>
  void for_each_inner(F&& f) {
    f("attn", attn);
  }
};

/// What a wrapper around two modules holds. They are shared with whoever gave them.
template <class OptionsType, AttentionModule A, AttentionModule B>
struct WrapsTwo {
  /// Everything to build the wrapper again, the inner modules included.
  struct Config {
    typename A::Config attn_a;
    typename B::Config attn_b;
    OptionsType options = {};
  };

  /// Features of the output.
  int64_t d_model() const { return attn_a->d_model(); }
  /// Features of x.
  int64_t input_dim() const { return attn_a->input_dim(); }
  /// global_attention and positions if one of the modules does, the others if both do.
  TakenInputs takes() const {
    const TakenInputs a = attn_a->takes(), b = attn_b->takes();
    return {.mask = a.mask && b.mask,
            .global_attention = a.global_attention || b.global_attention,
            .positions = a.positions || b.positions,
            .context = a.context && b.context,
            .later = a.later && b.later,
            .causal = a.causal && b.causal};
  }
  /// What builds this wrapper again, every default filled in.
  Config get_config() const { return {attn_a->get_config(), attn_b->get_config(), options}; }

  OptionsType options;  ///< as they were given, every default filled in
  Holder<A> attn_a;     ///< the first wrapped module
  Holder<B> attn_b;     ///< the second

  WrapsTwo(const torch::nn::ModuleHolder<A>& a, const torch::nn::ModuleHolder<B>& b,
           const OptionsType& o)
      : options(o), attn_a(as_holder(a)), attn_b(as_holder(b)) {}

 protected:
  /// Both modules' caches as one.
  Cache new_cache(const char* who, int64_t batch, std::optional<int64_t> capacity,
                  const CacheOptions& how) const {
    return join_caches(who, identity_,
                       {inner_cache(who, *attn_a, batch, capacity, how),
                        inner_cache(who, *attn_b, batch, capacity, how)});
  }
  Cache new_context_cache(const char* who, const torch::Tensor& context,
                          const torch::Tensor& key_padding_mask) const {
    return join_caches(who, identity_,
                       {inner_context_cache(who, *attn_a, context, key_padding_mask),
                        inner_context_cache(who, *attn_b, context, key_padding_mask)});
  }
  /// The caches of the call's cache, null without one. Throws c10::ValueError as check_cache().
  JoinedCache* caches_of(const char* who, const AttentionInputs& inputs,
                         const torch::Tensor& x) const {
    if (!inputs.cache.defined()) return nullptr;
    check_cache(who, identity_, inputs.cache, x);
    return static_cast<JoinedCache*>(&inputs.cache.state());
  }
  /// f(name, holder) for what is wrapped.
  template <class F>
  void for_each_inner(F&& f) {
    f("attn_a", attn_a);
    f("attn_b", attn_b);
  }

  Identity identity_;  // of which caches are
};

/// A new module with this configuration.
template <AttentionModule M>
torch::nn::ModuleHolder<M> build(const typename M::Config& config) {
  return torch::nn::ModuleHolder<M>(std::make_shared<M>(config));
}

/// Base of every wrapper. Held is WrapsOne or WrapsTwo; Derived has kName and register_layers().
/// Its constructor calls make_layers(), its forward() begins with check_call().
template <class Derived, class Held>
class Wrapper : public CallableModule<Derived>, public Held {
 public:
  /// For clone(): puts copies in the place of the shared modules, and new layers beside them.
  void reset() override {
    this->for_each_inner([](const char*, auto& module) {
      using M = typename std::remove_cvref_t<decltype(module)>::ContainedType;
      module = std::dynamic_pointer_cast<M>(module->clone());
    });
    register_layers();
  }

  /// What the wrapped modules need of the tokens before; see MakesCache and Cache.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& how = {}) const override {
    return this->new_cache(Derived::kName, batch, capacity, how);
  }
  /// A context's keys and values, as the wrapped modules project them; see MakesCache.
  Cache make_context_cache(const torch::Tensor& context,
                           const torch::Tensor& key_padding_mask = {}) const override {
    return this->new_context_cache(Derived::kName, context, key_padding_mask);
  }

 protected:
  /// Throws c10::ValueError for an empty holder.
  explicit Wrapper(Held held) : Held(std::move(held)) {
    this->for_each_inner([](const char* name, const auto& module) {
      TORCH_CHECK_VALUE(!module.is_empty(), Derived::kName, ": ", name,
                        " must hold a module, got an empty holder");
    });
  }

  /// Registers the inner modules and makes the wrapper's own layers, in the order of the state.
  virtual void register_layers() = 0;
  /// The same for a new wrapper, whose options are settled by this.
  void make_layers() {
    made_ = this->options;
    register_layers();
  }

  /// Throws c10::ValueError for options that were settled and are others now, and for a cache where
  /// something learns.
  void check_call(const torch::Tensor& x, const AttentionInputs& inputs) const {
    check_settled(Derived::kName, made_, this->options);
    if (inputs.cache.defined()) check_no_gradients(Derived::kName, *this, x);
  }

 private:
  decltype(Held::options) made_;  // the options when the module was made
};

}  // namespace core
}  // namespace attzoo
