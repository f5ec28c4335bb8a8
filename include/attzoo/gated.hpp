#pragma once
/// \file
/// Gated self-attention: a learned gate mixes attention with a residual path, token by token.
///
/// The gate of highway networks (Srivastava et al., "Highway Networks", 2015, arXiv:1505.00387)
/// around any attention module:
/// ```
/// y = g * Attn(x) + (1 - g) * R(x),   g = sigmoid(gate(x)) in (0, 1), one number a token
/// ```
/// R is the identity where input_dim == d_model, else a linear layer with bias, `x_proj`.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model]; weights and lse are the inner module's.
/// Cost: that of the inner module, and O(L) more.

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/module/gate.hpp>

#include <torch/nn/modules/linear.h>

namespace attzoo {

/// Options of GatedSelfAttention; see GateOptions.
using GatedSelfAttentionOptions = GateOptions;

/// See the file's head. It is an attention module itself, so it can be wrapped too.
template <AttentionModule Inner>
class GatedSelfAttentionImpl
    : public core::Wrapper<GatedSelfAttentionImpl<Inner>, core::WrapsOne<GateOptions, Inner>> {
  using Base = core::Wrapper<GatedSelfAttentionImpl, core::WrapsOne<GateOptions, Inner>>;

 public:
  static constexpr const char* kName = "GatedSelfAttention";
  using Base::attn, Base::options, Base::d_model, Base::input_dim;
  using typename Base::Config;

  /// Throws c10::ValueError for an empty holder and for options out of range.
  explicit GatedSelfAttentionImpl(torch::nn::ModuleHolder<Inner> inner,
                                  const GatedSelfAttentionOptions& o = {})
      : Base({std::move(inner), o}) {
    core::check_gate_options(options, input_dim(), kName);
    options.input_dim = input_dim();
    this->make_layers();
  }
  /// Builds the inner module, too.
  explicit GatedSelfAttentionImpl(const Config& config)
      : GatedSelfAttentionImpl(core::build<Inner>(config.attn), config.options) {}

  /// x [B, L, input_dim] -> output [B, L, d_model]; inputs are passed to the inner module, which
  /// says what it throws.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    this->check_call(x, inputs);
    auto result = attn->forward(x, inputs);
    result.output =
        core::mix(gate, x, result.output, x_proj.is_empty() ? x : core::linear(x, x_proj));
    return result;
  }

  /// Prints the module with its options.
  void pretty_print(std::ostream& stream) const override {
    core::print_gated(stream, kName, d_model(), options);
  }

  torch::nn::Sequential gate{nullptr};  ///< [B, L, input_dim] -> [B, L, 1]
  torch::nn::Linear x_proj{nullptr};    ///< empty where input_dim == d_model

 private:
  void register_layers() override {
    this->register_module("attn", attn);
    gate = this->register_module("gate", core::make_gate(input_dim(), options));
    if (input_dim() != d_model()) {
      x_proj = this->register_module("x_proj", core::make_linear(input_dim(), d_model()));
    }
  }
};

/// Holds one; `gated(attn, options)` makes it from any attention module. A holder that is built
/// from one of its own kind is a copy that shares the module, as everywhere in LibTorch, and gates
/// nothing again.
template <AttentionModule Inner>
class GatedSelfAttention : public Holder<GatedSelfAttentionImpl<Inner>> {
 public:
  using Holder<GatedSelfAttentionImpl<Inner>>::Holder;
  /// A new gate around `attn`, which is shared; see GatedSelfAttentionImpl.
  explicit GatedSelfAttention(const torch::nn::ModuleHolder<Inner>& attn,
                              const GatedSelfAttentionOptions& options = {})
      : Holder<GatedSelfAttentionImpl<Inner>>(
            std::make_shared<GatedSelfAttentionImpl<Inner>>(attn, options)) {}
};

/// A gate around any attention module, which is shared, not copied; nests: `gated(gated(attn))`.
/// Throws as GatedSelfAttentionImpl's constructor.
/// Example: `auto attn = gated(MultiHeadSelfAttention(64, 4), {.gate_hidden = 16});`
template <AttentionModule Inner>
GatedSelfAttention<Inner> gated(const torch::nn::ModuleHolder<Inner>& attn,
                                const GatedSelfAttentionOptions& options = {}) {
  return GatedSelfAttention<Inner>(attn, options);
}

}  // namespace attzoo
