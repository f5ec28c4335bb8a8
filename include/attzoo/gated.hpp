#pragma once
/// \file
/// Gated self-attention: a learned gate mixes attention with a residual path, token by token.
///
/// The gate of highway networks (Srivastava et al., "Highway Networks", 2015, arXiv:1505.00387)
/// around any attention module:
///
///     y = g * Attn(x) + (1 - g) * R(x),   g = sigmoid(gate(x)) in (0, 1), one number a token
///
/// R is the identity where input_dim == d_model, else a linear layer with bias, `x_proj`.
///
/// Shapes: x [B, L, input_dim] -> output [B, L, d_model]; weights and lse are the inner module's.
/// Cost: that of the inner module, and O(L) more.

#include <attzoo/module/gate.hpp>

namespace attzoo {

/// Options of GatedSelfAttention; see GateOptions.
using GatedSelfAttentionOptions = GateOptions;

template <AttentionModule Inner>
class GatedSelfAttentionImpl : public torch::nn::Cloneable<GatedSelfAttentionImpl<Inner>> {
 public:
  static constexpr const char* kName = "GatedSelfAttention";

  /// Everything to build the module again, the inner one included.
  struct Config {
    typename Inner::Config attn;
    GatedSelfAttentionOptions options = {};
  };

  explicit GatedSelfAttentionImpl(torch::nn::ModuleHolder<Inner> inner,
                                  const GatedSelfAttentionOptions& o = {})
      : options(o), attn(std::move(inner)) {
    TORCH_CHECK_VALUE(!attn.is_empty(), kName, ": attn must hold a module, got an empty holder");
    core::check_gate_options(options, attn->input_dim(), kName);
    options.input_dim = attn->input_dim();
    register_layers();
  }
  explicit GatedSelfAttentionImpl(const Config& config)
      : GatedSelfAttentionImpl(torch::nn::ModuleHolder<Inner>(std::make_shared<Inner>(config.attn)),
                               config.options) {}

  void reset() override {
    attn = core::own_copy(attn);
    register_layers();
  }

  /// x [B, L, input_dim]; inputs are passed to the inner module.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    auto result = attn->forward(x, inputs);
    const auto g = gate->forward(x);  // [B, L, 1]
    const auto residual = x_proj.is_empty() ? x : x_proj(x);
    result.output = g * result.output + (1 - g) * residual;
    return result;
  }

  void pretty_print(std::ostream& stream) const override {
    stream << "attzoo::" << kName << "(d_model=" << d_model() << ", input_dim=" << input_dim();
    core::print_gate_options(stream, options);
  }

  /// What the inner module takes.
  TakenInputs takes() const { return attn->takes(); }
  int64_t d_model() const { return attn->d_model(); }
  int64_t input_dim() const { return *options.input_dim; }
  Config get_config() const { return {attn->get_config(), options}; }

  GatedSelfAttentionOptions options;
  torch::nn::ModuleHolder<Inner> attn;
  torch::nn::Sequential gate{nullptr};
  torch::nn::Linear x_proj{nullptr};  // empty where input_dim == d_model

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(AttentionInputs())})

 private:
  void register_layers() {
    this->register_module("attn", attn);
    gate = this->register_module("gate", core::make_gate(input_dim(), options));
    if (input_dim() != d_model()) {
      x_proj = this->register_module("x_proj", torch::nn::Linear(input_dim(), d_model()));
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
  explicit GatedSelfAttention(const torch::nn::ModuleHolder<Inner>& attn,
                              const GatedSelfAttentionOptions& options = {})
      : Holder<GatedSelfAttentionImpl<Inner>>(
            std::make_shared<GatedSelfAttentionImpl<Inner>>(attn, options)) {}
};

/// Example: `auto attn = gated(MultiHeadSelfAttention(64, 4), {.gate_hidden = 16});`
/// Nests: `gated(gated(attn))`. The inner module is shared, not copied.
template <AttentionModule Inner>
GatedSelfAttention<Inner> gated(const torch::nn::ModuleHolder<Inner>& attn,
                                const GatedSelfAttentionOptions& options = {}) {
  return GatedSelfAttention<Inner>(attn, options);
}

}  // namespace attzoo
