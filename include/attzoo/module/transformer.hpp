#pragma once
/// \file
/// A transformer block around any attention module, so that a working stack is a few lines:
/// ```
/// h = x + Attn(Norm(x))
/// y = h + MLP(Norm(h)),   MLP(x) = W_out GELU(W_in x)
/// ```
/// Options place the norms elsewhere, and change norm and MLP, so that the blocks of GPT-2, BERT,
/// Llama, Qwen, Mistral and Gemma 2 are this one:
/// ```
/// auto block = transformer_block(GroupedSelfAttention({.d_model = 512, ..., .causal = true}),
///                                {.mlp_hidden = 1376,
///                                 .norm = NormKind::kRMSNorm,
///                                 .activation = Activation::kSilu,
///                                 .mlp_gated = true,
///                                 .mlp_bias = false});  // Llama's
/// ```
/// Shapes: x [B, L, d_model] -> output [B, L, d_model]; weights and lse are the attention's.
/// Cost: that of the attention, and O(L d_model mlp_hidden) time, O(L mlp_hidden) memory.

#include <attzoo/module/block_parts.hpp>
#include <attzoo/module/checks.hpp>
#include <attzoo/module/wrapper.hpp>

namespace attzoo {

/// See the file's head. A block is an attention module itself, so it can be wrapped too.
template <AttentionModule Attention>
class TransformerBlockImpl
    : public core::Wrapper<TransformerBlockImpl<Attention>,
                           core::WrapsOne<TransformerBlockOptions, Attention>>,
      public core::BlockParts {
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
    this->settle(kName, d_model(), options);
    this->make_layers();
  }
  /// Builds the attention, too.
  explicit TransformerBlockImpl(const Config& config)
      : TransformerBlockImpl(core::build<Attention>(config.attn), config.options) {}

  /// x [B, L, d_model] -> output [B, L, d_model], with the attention's weights and lse; inputs are
  /// passed to the attention, which says what it throws. Throws c10::ValueError and c10::TypeError
  /// for an x of another shape, device, dtype or layout.
  AttentionResult forward(const torch::Tensor& x, const AttentionInputs& inputs = {}) {
    this->check_call(x, inputs);
    this->check_options(kName, options);
    core::check_tokens(x, kName, "x", d_model(), mlp_in->weight);
    const auto read = this->before_attention(x, options);
    auto result = attn->forward(read, inputs);
    result.output = this->after_attention(x, read, result.output, options, this->is_training());
    return result;
  }

  /// Prints the block with its options.
  void pretty_print(std::ostream& stream) const override {
    stream << "attzoo::" << kName << "(d_model=" << d_model();
    this->print(stream, options);
    stream << ")";
  }

 private:
  void register_layers() override { this->register_parts(*this, attn.ptr(), d_model(), options); }
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

/// Options of other names or types do not compile.
template <class Options = core::MisspeltBlockOptions>
auto transformer_block(const core::AnyHolder&, const core::MisspeltBlockOptions&) {
  static_assert(
      !sizeof(Options),
      "attzoo: a transformer block's options are .mlp_hidden, .dropout, .norm, .norm_eps, "
      ".norm_placement, .activation, .mlp_gated, .mlp_bias, in this order");
}

}  // namespace attzoo
