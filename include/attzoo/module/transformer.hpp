#pragma once
/// \file
/// A transformer block around any attention module, so that a working stack is a few lines.
///
/// Pre-norm (Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020,
/// arXiv:2002.04745):
/// ```
/// h = x + Attn(LayerNorm(x))
/// y = h + W_2 GELU(W_1 LayerNorm(h))
/// ```
/// Shapes: x [B, L, d_model] -> output [B, L, d_model]; weights and lse are the attention's.
/// Cost: that of the attention, and O(L d_model mlp_hidden) time, O(L mlp_hidden) memory.

#include <attzoo/module/checks.hpp>
#include <attzoo/module/wrapper.hpp>

#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <optional>

namespace attzoo {

/// Options of TransformerBlock.
struct TransformerBlockOptions {
  std::optional<int64_t> mlp_hidden = std::nullopt;  ///< features inside the MLP; default 4 d_model
  double dropout = 0.0;  ///< of both branches before they are added, while training
};

/// See the file's head. A block is an attention module itself, so it can be wrapped too.
template <AttentionModule Attention>
class TransformerBlockImpl
    : public core::Wrapper<TransformerBlockImpl<Attention>,
                           core::WrapsOne<TransformerBlockOptions, Attention>> {
  using Base =
      core::Wrapper<TransformerBlockImpl, core::WrapsOne<TransformerBlockOptions, Attention>>;

 public:
  static constexpr const char* kName = "TransformerBlock";
  using Base::attn, Base::options, Base::d_model;
  using typename Base::Config;

  /// Throws c10::ValueError for an empty holder, an attention whose input_dim is not its d_model,
  /// and options out of range.
  explicit TransformerBlockImpl(torch::nn::ModuleHolder<Attention> attention,
                                const TransformerBlockOptions& o = {})
      : Base({std::move(attention), o}) {
    TORCH_CHECK_VALUE(attn->input_dim() == d_model(), kName,
                      ": attn must have input_dim == d_model for the residual, got input_dim=",
                      attn->input_dim(), " d_model=", d_model());
    if (!options.mlp_hidden) options.mlp_hidden = 4 * d_model();
    TORCH_CHECK_VALUE(*options.mlp_hidden > 0, kName, ": mlp_hidden must be > 0, got ",
                      *options.mlp_hidden);
    core::check_dropout(kName, options.dropout);
    core::check_layer(kName, "mlp_in", d_model(), *options.mlp_hidden,
                      c10::str(" mlp_hidden=", *options.mlp_hidden, " d_model=", d_model()));
    register_layers();
  }
  /// Builds the attention, too.
  explicit TransformerBlockImpl(const Config& config)
      : TransformerBlockImpl(core::build<Attention>(config.attn), config.options) {}

  /// x [B, L, d_model] -> output [B, L, d_model], with the attention's weights and lse; inputs are
  /// passed to the attention, which says what it throws. Throws c10::ValueError and c10::TypeError
  /// for an x of another shape, device, dtype or layout.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    core::check_tokens(x, kName, "x", d_model(), mlp_in->weight);
    const auto drop = [this](const torch::Tensor& t) {
      return torch::dropout(t, options.dropout, this->is_training());
    };
    auto result = attn->forward(norm_attn(x), inputs);
    const auto h = x + drop(result.output);
    result.output = h + drop(mlp_out(torch::gelu(mlp_in(norm_mlp(h)))));
    return result;
  }

  /// Prints the block with its options.
  void pretty_print(std::ostream& stream) const override {
    stream << "attzoo::" << kName << "(d_model=" << d_model()
           << ", mlp_hidden=" << *options.mlp_hidden << ", dropout=" << options.dropout << ")";
  }

  torch::nn::LayerNorm norm_attn{nullptr}, norm_mlp{nullptr};  ///< before either branch
  torch::nn::Linear mlp_in{nullptr}, mlp_out{nullptr};         ///< W_1 and W_2, with biases

 private:
  void register_layers() override {
    using namespace torch::nn;
    const int64_t d = d_model(), hidden = *options.mlp_hidden;
    norm_attn = this->register_module("norm_attn", LayerNorm(LayerNormOptions({d})));
    this->register_module("attn", attn);
    norm_mlp = this->register_module("norm_mlp", LayerNorm(LayerNormOptions({d})));
    mlp_in = this->register_module("mlp_in", Linear(d, hidden));
    mlp_out = this->register_module("mlp_out", Linear(hidden, d));
  }
};

/// Holds one; `transformer_block(attn, options)` makes it from any attention module. A holder that
/// is built from one of its own kind is a copy that shares the module, as everywhere in LibTorch.
template <AttentionModule Attention>
class TransformerBlock : public Holder<TransformerBlockImpl<Attention>> {
 public:
  using Holder<TransformerBlockImpl<Attention>>::Holder;
  /// A new block around `attn`, which is shared; see TransformerBlockImpl.
  explicit TransformerBlock(const torch::nn::ModuleHolder<Attention>& attn,
                            const TransformerBlockOptions& options = {})
      : Holder<TransformerBlockImpl<Attention>>(
            std::make_shared<TransformerBlockImpl<Attention>>(attn, options)) {}
};

/// A block around any attention module, which is shared, not copied; throws as
/// TransformerBlockImpl's constructor. Example:
/// ```
/// auto block = transformer_block(LocalSelfAttention({.d_model = 256}), {.dropout = 0.1});
/// auto y = block(x, {.causal = true}).output;
/// ```
template <AttentionModule Attention>
TransformerBlock<Attention> transformer_block(const torch::nn::ModuleHolder<Attention>& attn,
                                              const TransformerBlockOptions& options = {}) {
  return TransformerBlock<Attention>(attn, options);
}

}  // namespace attzoo
