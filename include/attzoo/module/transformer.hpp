#pragma once
/// \file
/// A transformer block around any attention module, so that a working stack is a few lines.
///
/// Pre-norm (Xiong et al., "On Layer Normalization in the Transformer Architecture", 2020,
/// arXiv:2002.04745):
///
///     h = x + Attn(LayerNorm(x))
///     y = h + W_2 GELU(W_1 LayerNorm(h))

#include <attzoo/module/self_attention.hpp>

#include <torch/nn/modules/normalization.h>

namespace attzoo {

struct TransformerBlockOptions {
  std::optional<int64_t> mlp_hidden = std::nullopt;  ///< features inside the MLP; default 4 d_model
  double dropout = 0.0;  ///< of both branches before they are added, while training
};

template <AttentionModule Attention>
class TransformerBlockImpl : public torch::nn::Cloneable<TransformerBlockImpl<Attention>> {
 public:
  static constexpr const char* kName = "TransformerBlock";

  /// Everything to build the module again, the attention included.
  struct Config {
    typename Attention::Config attn;
    TransformerBlockOptions options = {};
  };

  explicit TransformerBlockImpl(torch::nn::ModuleHolder<Attention> attention,
                                const TransformerBlockOptions& o = {})
      : options(o), attn(std::move(attention)) {
    TORCH_CHECK_VALUE(!attn.is_empty(), kName, ": attn must hold a module, got an empty holder");
    TORCH_CHECK_VALUE(attn->input_dim() == attn->d_model(), kName,
                      ": attn must have input_dim == d_model for the residual, got input_dim=",
                      attn->input_dim(), " d_model=", attn->d_model());
    if (!options.mlp_hidden) options.mlp_hidden = 4 * d_model();
    TORCH_CHECK_VALUE(*options.mlp_hidden > 0, kName, ": mlp_hidden must be > 0, got ",
                      *options.mlp_hidden);
    TORCH_CHECK_VALUE(options.dropout >= 0 && options.dropout <= 1, kName,
                      ": dropout must be in [0, 1], got ", options.dropout);
    core::check_layer(kName, "mlp_in", d_model(), *options.mlp_hidden,
                      c10::str(" mlp_hidden=", *options.mlp_hidden, " d_model=", d_model()));
    register_layers();
  }
  explicit TransformerBlockImpl(const Config& config)
      : TransformerBlockImpl(
            torch::nn::ModuleHolder<Attention>(std::make_shared<Attention>(config.attn)),
            config.options) {}

  void reset() override {
    attn = core::own_copy(attn);
    register_layers();
  }

  /// x [B, L, d_model] -> output [B, L, d_model], with the attention's weights and lse; inputs are
  /// passed to the attention. A block is an attention module itself, so it can be wrapped too.
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

  void pretty_print(std::ostream& stream) const override {
    stream << "attzoo::" << kName << "(d_model=" << d_model()
           << ", mlp_hidden=" << *options.mlp_hidden << ", dropout=" << options.dropout << ")";
  }

  /// What the attention takes.
  TakenInputs takes() const { return attn->takes(); }
  int64_t d_model() const { return attn->d_model(); }
  int64_t input_dim() const { return attn->input_dim(); }
  Config get_config() const { return {attn->get_config(), options}; }

  TransformerBlockOptions options;
  torch::nn::ModuleHolder<Attention> attn;
  torch::nn::LayerNorm norm_attn{nullptr}, norm_mlp{nullptr};
  torch::nn::Linear mlp_in{nullptr}, mlp_out{nullptr};

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(AttentionInputs())})

 private:
  void register_layers() {
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
  explicit TransformerBlock(const torch::nn::ModuleHolder<Attention>& attn,
                            const TransformerBlockOptions& options = {})
      : Holder<TransformerBlockImpl<Attention>>(
            std::make_shared<TransformerBlockImpl<Attention>>(attn, options)) {}
};

/// Example: `auto block = transformer_block(LocalSelfAttention({.d_model = 256}), {.dropout =
/// 0.1});` `auto y = block(x, {.causal = true}).output;` The attention is shared, not copied.
template <AttentionModule Attention>
TransformerBlock<Attention> transformer_block(const torch::nn::ModuleHolder<Attention>& attn,
                                              const TransformerBlockOptions& options = {}) {
  return TransformerBlock<Attention>(attn, options);
}

}  // namespace attzoo
