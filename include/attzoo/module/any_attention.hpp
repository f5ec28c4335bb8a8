#pragma once
/// \file
/// Attention modules of any type by one type, so that a stack may mix them.

#include <attzoo/module/holder.hpp>
#include <attzoo/module/wrapper.hpp>

#include <functional>
#include <memory>
#include <optional>

namespace attzoo {

/// Any mechanism, wrapper or block, what LibTorch's AnyModule is for all modules: one type for the
/// layers of a stack, with their caches. Copies share the module.
/// ```
/// std::vector<attzoo::AnyAttention> blocks{
///     transformer_block(LocalSelfAttention({.d_model = 256, .causal = true})),
///     transformer_block(MultiHeadSelfAttention({.d_model = 256, .num_heads = 8, .causal =
///     true}))};
/// for (auto& block : blocks) layers->push_back(block.ptr());  // a ModuleList that registers them
/// for (auto& block : blocks) x = block(x, {.key_padding_mask = real}).output;
/// ```
class AnyAttention {
 public:
  /// Of the module that a holder holds, which is shared. Throws c10::ValueError if there is none.
  template <AttentionModule M>
  AnyAttention(const torch::nn::ModuleHolder<M>& attn) {  // NOLINT: any of them is one
    TORCH_CHECK_VALUE(!attn.is_empty(), "AnyAttention: expected a module, got an empty holder");
    module_ = attn.ptr();
    forward_ = [m = attn.ptr().get()](const torch::Tensor& x, const AttentionInputs& inputs) {
      return m->forward(x, inputs);
    };
    make_cache_ = [m = attn.ptr().get()](int64_t batch, std::optional<int64_t> capacity,
                                         const CacheOptions& options) {
      return core::inner_cache("AnyAttention", *m, batch, capacity, options);
    };
  }

  /// The module's forward(): x [B, L, input_dim] -> output [B, L, d_model].
  AttentionResult operator()(const torch::Tensor& x, const AttentionInputs& inputs = {}) const {
    return forward_(x, inputs);
  }
  /// The module's make_cache(), see MakesCache. Throws c10::NotImplementedError if it has none.
  Cache make_cache(int64_t batch, std::optional<int64_t> capacity = std::nullopt,
                   const CacheOptions& options = {}) const {
    return make_cache_(batch, capacity, options);
  }
  /// The module, to register it.
  const std::shared_ptr<torch::nn::Module>& ptr() const { return module_; }

 private:
  std::shared_ptr<torch::nn::Module> module_;
  std::function<AttentionResult(const torch::Tensor&, const AttentionInputs&)> forward_;
  std::function<Cache(int64_t, std::optional<int64_t>, const CacheOptions&)> make_cache_;
};

}  // namespace attzoo
