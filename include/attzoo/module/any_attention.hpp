#pragma once
/// \file
/// Attention modules of any type by one type.

#include <attzoo/module/holder.hpp>
#include <attzoo/module/wrapper.hpp>

#include <functional>
#include <memory>
#include <optional>
#include <utility>

namespace attzoo {

/// What AnyAttention holds: every mechanism, wrapper and block, and modules of your own that have
/// these four. make_cache() (as in MakesCache), clone() and get_config() are needed only where they
/// are called.
template <class M>
concept AttentionBlock = std::derived_from<M, torch::nn::Module> &&
    requires(M& m, const torch::Tensor& x, const AttentionInputs& inputs) {
  { m.forward(x, inputs) } -> std::same_as<AttentionResult>;
  { m.d_model() } -> std::convertible_to<int64_t>;
  { m.input_dim() } -> std::convertible_to<int64_t>;
  { m.takes() } -> std::convertible_to<TakenInputs>;
};

/// Any mechanism, wrapper or block, what LibTorch's AnyModule is for all modules. Copies share the
/// module, as copies of any holder do, and so does a member of this type, or a vector of it, in a
/// copy that LibTorch's clone() makes of a model: it is the original's. A model holds its blocks in
/// a Stack, which is cloned with it.
/// ```
/// AnyAttention attn = LocalSelfAttention({.d_model = 256, .causal = true});
/// if (dense) attn = MultiHeadSelfAttention({.d_model = 256, .num_heads = 8, .causal = true});
/// auto y = attn(x, {.key_padding_mask = real}).output;
/// ```
class AnyAttention {
 public:
  /// Makes another module with the same options, and parameters of its own.
  using Config = std::function<AnyAttention()>;

  /// The module that a holder holds, which is shared. Throws c10::ValueError if there is none.
  template <class M>
  AnyAttention(const torch::nn::ModuleHolder<M>& attn)  // NOLINT: any of them is one
      : AnyAttention(attn.is_empty() ? nullptr : attn.ptr()) {}
  /// The same without a holder.
  template <class M>
  AnyAttention(std::shared_ptr<M> attn) {  // NOLINT
    static_assert(AttentionBlock<M>,
                  "attzoo: a block needs AttentionResult forward(const torch::Tensor&, const "
                  "AttentionInputs&), int64_t d_model() const, int64_t input_dim() const and "
                  "TakenInputs takes() const");
    TORCH_CHECK_VALUE(attn, "AnyAttention: expected a module, got an empty holder");
    held_ = std::make_shared<Held<M>>(std::move(attn));
  }

  /// The module's forward(): x [B, L, input_dim] -> output [B, L, d_model].
  AttentionResult operator()(const torch::Tensor& x, const AttentionInputs& inputs = {}) const {
    return held_->forward(x, inputs);
  }
  /// The module's make_cache(), see MakesCache. Throws c10::NotImplementedError if it has none.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& options = {}) const {
    return held_->make_cache(batch, capacity, options);
  }
  /// The module's make_context_cache(), see MakesCache. Throws c10::NotImplementedError if it has
  /// none.
  Cache make_context_cache(const torch::Tensor& context,
                           const torch::Tensor& key_padding_mask = {}) const {
    return held_->make_context_cache(context, key_padding_mask);
  }
  /// Features of the output.
  int64_t d_model() const { return held_->d_model(); }
  /// Features of x.
  int64_t input_dim() const { return held_->input_dim(); }
  /// Which inputs the module takes.
  TakenInputs takes() const { return held_->takes(); }

  /// A copy of the module that shares nothing with it, by default on its device. Throws c10::Error
  /// for a module of your own that is no torch::nn::Cloneable.
  AnyAttention clone(const std::optional<torch::Device>& device = std::nullopt) const {
    return held_->clone(device);
  }
  /// What makes another one. Throws c10::NotImplementedError for a module of your own that has no
  /// get_config() and no constructor from what that returns.
  Config get_config() const { return held_->get_config(); }

  /// The module, to register it.
  std::shared_ptr<torch::nn::Module> ptr() const { return held_->module(); }
  /// The same: `attn->parameters()`, `attn->as<attzoo::LocalSelfAttentionImpl>()`.
  torch::nn::Module* operator->() const { return ptr().get(); }

 private:
  struct AnyHeld {
    virtual ~AnyHeld() = default;
    virtual AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs) = 0;
    virtual Cache make_cache(int64_t batch, std::optional<int64_t> capacity,
                             const CacheOptions& options) const = 0;
    virtual Cache make_context_cache(const torch::Tensor& context,
                                     const torch::Tensor& key_padding_mask) const = 0;
    virtual int64_t d_model() const = 0;
    virtual int64_t input_dim() const = 0;
    virtual TakenInputs takes() const = 0;
    virtual AnyAttention clone(const std::optional<torch::Device>& device) const = 0;
    virtual Config get_config() const = 0;
    virtual std::shared_ptr<torch::nn::Module> module() const = 0;
  };

  template <class M>
  struct Held final : AnyHeld {
    explicit Held(std::shared_ptr<M> attn) : m(std::move(attn)) {}
    AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs) override {
      return m->forward(x, inputs);
    }
    Cache make_cache(int64_t batch, std::optional<int64_t> capacity,
                     const CacheOptions& options) const override {
      return core::inner_cache("AnyAttention", *m, batch, capacity, options);
    }
    Cache make_context_cache(const torch::Tensor& context,
                             const torch::Tensor& key_padding_mask) const override {
      return core::inner_context_cache("AnyAttention", *m, context, key_padding_mask);
    }
    int64_t d_model() const override { return m->d_model(); }
    int64_t input_dim() const override { return m->input_dim(); }
    TakenInputs takes() const override { return m->takes(); }
    AnyAttention clone(const std::optional<torch::Device>& device) const override {
      return std::dynamic_pointer_cast<M>(m->clone(device));
    }
    Config get_config() const override {
      if constexpr (AttentionModule<M>) {
        return [config = m->get_config()]() -> AnyAttention { return std::make_shared<M>(config); };
      } else {
        TORCH_CHECK_NOT_IMPLEMENTED(false, "AnyAttention: ", m->name(),
                                    " has no get_config(), and no constructor from it");
      }
    }
    std::shared_ptr<torch::nn::Module> module() const override { return m; }

    std::shared_ptr<M> m;
  };

  std::shared_ptr<AnyHeld> held_;
};

}  // namespace attzoo
