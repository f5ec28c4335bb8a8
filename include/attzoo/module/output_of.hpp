#pragma once
/// \file
/// Attention modules where LibTorch expects one tensor in and one out.

#include <attzoo/module/any_attention.hpp>

#include <torch/nn/cloneable.h>

#include <memory>
#include <optional>
#include <ostream>
#include <utility>

namespace attzoo {

/// The output alone of a mechanism, wrapper, block or stack; output_of() makes it.
class OutputOfImpl : public torch::nn::Cloneable<OutputOfImpl> {
 public:
  /// Registers the module, which is shared, as `attn`. `inputs` are those of every call.
  explicit OutputOfImpl(AnyAttention module, AttentionInputs in = {})
      : attn(std::move(module)), inputs(std::move(in)) {
    reset();
  }
  void reset() override { register_module("attn", attn.ptr()); }

  /// x [B, L, input_dim] -> output [B, L, d_model]. Throws what the module does.
  torch::Tensor forward(const torch::Tensor& x) { return attn(x, inputs).output; }

  /// A copy that shares no parameter with it.
  std::shared_ptr<torch::nn::Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override {
    auto copy = std::make_shared<OutputOfImpl>(attn.clone(device), inputs);
    copy->train(is_training());
    return copy;
  }
  void pretty_print(std::ostream& stream) const override { stream << "attzoo::OutputOf"; }

  AnyAttention attn;       ///< the module
  AttentionInputs inputs;  ///< of every call
};
TORCH_MODULE(OutputOf);

/// The output alone of an attention module, for torch::nn::Sequential and all else that calls a
/// module with a tensor and expects one. The module is shared and registered as `attn`:
/// ```
/// auto block = transformer_block(MultiHeadSelfAttention({.d_model = 64, .num_heads = 4}));
/// torch::nn::Sequential model(embed, output_of(block), torch::nn::Linear(64, 10));
/// auto logits = model->forward(tokens);  // parameters: 1.attn.attn.w_q.weight, ...
/// ```
/// Throws c10::ValueError for an empty holder.
inline OutputOf output_of(const AnyAttention& attn, const AttentionInputs& inputs = {}) {
  return OutputOf(std::make_shared<OutputOfImpl>(attn, inputs));
}

}  // namespace attzoo
