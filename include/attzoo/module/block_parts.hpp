#pragma once
/// \file
/// What a transformer block is but for its attention: options, norms, residuals and the MLP.

#include <attzoo/config.hpp>
#include <attzoo/module/norm.hpp>

#include <torch/nn/modules/linear.h>

#include <iosfwd>
#include <memory>
#include <optional>

namespace attzoo {

/// Where a block's norms stand. A and M are the attention and the MLP, N_1 ... its norms.
enum class NormPlacement {
  /// h = x + A(N_1 x), y = h + M(N_2 h). Xiong et al., 2020, arXiv:2002.04745; GPT-2, Llama, Qwen.
  kPre,
  /// h = N_1(x + A x), y = N_2(h + M h). Vaswani et al., 2017, arXiv:1706.03762; BERT.
  kPost,
  /// y = x + A(N_1 x) + M(N_1 x). GPT-J; PaLM (Chowdhery et al., 2022, arXiv:2204.02311).
  kParallel,
  /// h = x + N_2 A(N_1 x), y = h + N_4 M(N_3 h). Gemma 2 (Team Gemma, 2024, arXiv:2408.00118).
  kSandwich,
};

/// The function inside an MLP.
enum class Activation {
  kGelu,      ///< x Phi(x), Phi the normal distribution's (arXiv:1606.08415)
  kGeluTanh,  ///< its approximation by tanh: GPT-2's "gelu_new", Gemma's "gelu_pytorch_tanh"
  kRelu,      ///< max(x, 0)
  kSilu,      ///< x sigmoid(x); gated: SwiGLU
};

/// Options of TransformerBlock.
struct TransformerBlockOptions {
  std::optional<int64_t> mlp_hidden = std::nullopt;  ///< features inside the MLP; default 4 d_model
  double dropout = 0.0;                  ///< of both branches before they are added, while training
  NormKind norm = NormKind::kLayerNorm;  ///< of all norms
  double norm_eps = 1e-5;                ///< of all norms; >= 0 and finite
  NormPlacement norm_placement = NormPlacement::kPre;  ///< where the norms stand
  Activation activation = Activation::kGelu;           ///< of the MLP
  /// The MLP is W_out(activation(W_gate x) * W_in x) instead of W_out activation(W_in x) (Shazeer,
  /// "GLU Variants Improve Transformer", 2020, arXiv:2002.05202). With kSilu it is the paper's
  /// SwiGLU, of Llama and Qwen; with kGeluTanh the GeGLU of Gemma.
  bool mlp_gated = false;
  bool mlp_bias = true;  ///< of the MLP's layers
};

namespace core {

/// The base of TransformerBlockImpl that its attention does not change; it is compiled once.
class BlockParts {
 public:
  Norm norm_attn = nullptr;      ///< before the attention; with kPost behind the first sum
  Norm norm_attn_out = nullptr;  ///< kSandwich only: behind the attention
  Norm norm_mlp = nullptr;  ///< before the MLP; with kPost behind the second sum; not kParallel
  torch::nn::Linear mlp_in{nullptr};    ///< [mlp_hidden, d_model]
  torch::nn::Linear mlp_gate{nullptr};  ///< [mlp_hidden, d_model]; mlp_gated only
  torch::nn::Linear mlp_out{nullptr};   ///< [d_model, mlp_hidden]
  Norm norm_mlp_out = nullptr;          ///< kSandwich only: behind the MLP

 protected:
  /// Throws c10::ValueError for options out of range; fills in mlp_hidden.
  ATTZOO_API static void settle(const char* name, int64_t d_model, TransformerBlockOptions& o);
  /// The same for those that each call reads.
  ATTZOO_API static void check_options(const char* name, const TransformerBlockOptions& o);

  /// Makes norms and layers, and registers them with `module`, `attn` among them.
  ATTZOO_API void register_parts(torch::nn::Module& module,
                                 const std::shared_ptr<torch::nn::Module>& attn, int64_t d_model,
                                 const TransformerBlockOptions& o);

  /// What the attention reads: x, or its norm.
  ATTZOO_API torch::Tensor before_attention(const torch::Tensor& x,
                                            const TransformerBlockOptions& o);
  /// The block's output from x, what the attention read and what it gave.
  ATTZOO_API torch::Tensor after_attention(const torch::Tensor& x, const torch::Tensor& read,
                                           const torch::Tensor& given,
                                           const TransformerBlockOptions& o, bool training);

  /// Prints ", name=value" for each option.
  ATTZOO_API static void print(std::ostream& stream, const TransformerBlockOptions& o);

 private:
  ATTZOO_API torch::Tensor mlp(const torch::Tensor& x, const TransformerBlockOptions& o);
};

}  // namespace core
}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/module/block_parts.ipp>
#endif
