#pragma once
/// \file
/// What one holds a module by.

#include <attzoo/functional/result.hpp>
#include <attzoo/module/inputs.hpp>
#include <attzoo/module/misspelt.hpp>

#include <torch/nn/pimpl.h>

#include <memory>
#include <type_traits>

namespace attzoo {

/// A module holder, as LibTorch's, that also takes the options as designated initialisers:
/// `MultiHeadSelfAttention attn({.d_model = 128, .num_heads = 8});`
/// It is constructed as well from the module's positional arguments, from nullptr (then it holds
/// nothing) and from a shared_ptr. Copies share the module. Construction throws what the module's
/// constructor does.
template <class Impl>
class Holder : public torch::nn::ModuleHolder<Impl> {
 public:
  using torch::nn::ModuleHolder<Impl>::ModuleHolder;
  /// A new module with these options.
  explicit Holder(const typename Impl::Config& config);

  /// Options of other names or types do not compile.
  template <class Config = typename Impl::Config>
  requires requires(Config& config) { config.d_model; }
  explicit Holder(const core::MisspeltOptions&) {
    static_assert(
        !sizeof(Config),
        "attzoo: an option has a name or a type that this module does not know. Options are "
        "d_model, num_heads, the module's own, input_dim, dropout, bias, temperature, rope, causal "
        "and those on its page, in this order; write the type before the brace, as in "
        "MultiHeadSelfAttention("
        "attzoo::MultiHeadSelfAttentionOptions{.d_model = 64}), and the compiler says which it is");
  }

  /// The module's forward(): x [B, L, input_dim] -> output [B, L, d_model]. It is no template, as
  /// LibTorch's is, so that the inputs can be written in braces: `attn(x, {.causal = true})`.
  /// Throws c10::Error if it holds no module.
  AttentionResult operator()(const torch::Tensor& x, const AttentionInputs& inputs = {});

  /// Inputs of other names or types do not compile.
  template <class Inputs = core::MisspeltInputs>
  AttentionResult operator()(const torch::Tensor&, const core::MisspeltInputs&) {
    static_assert(
        !sizeof(Inputs),
        "attzoo: an input has a name or a type that no module knows. Inputs are .mask, "
        ".key_padding_mask, .causal, .context, .position_offset, .global_attention, .documents, "
        ".cache, .positions, .context_padding_mask, .pattern, .score, in this order; .mask is "
        "a tensor: for causal() write .causal = true, for another mask or a lambda .pattern = "
        "mask_mod(f), for a change of the scores .score = score_mod(f)");
    return {};
  }

  /// Further tensors, as LibTorch's modules take them, do not compile: each input has a name.
  template <class Other, class... More>
  requires std::is_convertible_v<Other, torch::Tensor> AttentionResult
  operator()(const torch::Tensor&, const Other&, const More&...) {
    static_assert(
        !sizeof(Other),
        "attzoo: a module is called with x and named inputs: attn(x), attn(x, {.mask = "
        "m}), attn(x, {.context = c}) for keys and values of c; q, k and v of your own are "
        "for attzoo::attention(q, k, v)");
    return {};
  }
};

// Outside of the class, or else they are inline, and compiled by programs that link them, too.

template <class Impl>
Holder<Impl>::Holder(const typename Impl::Config& config)
    : torch::nn::ModuleHolder<Impl>(std::make_shared<Impl>(config)) {}

template <class Impl>
AttentionResult Holder<Impl>::operator()(const torch::Tensor& x, const AttentionInputs& inputs) {
  return this->get()->forward(x, inputs);
}

}  // namespace attzoo
