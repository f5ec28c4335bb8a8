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
  Norm norm_cross = nullptr;     ///< DecoderBlock only: of the cross attention, as norm_attn
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

  /// Makes norms and layers, and registers them with `module`, `attn` and `cross`, if there is one,
  /// among them.
  ATTZOO_API void register_parts(torch::nn::Module& module,
                                 const std::shared_ptr<torch::nn::Module>& attn, int64_t d_model,
                                 const TransformerBlockOptions& o,
                                 const std::shared_ptr<torch::nn::Module>& cross = nullptr);

  /// What the attention reads: x, or its norm.
  ATTZOO_API torch::Tensor before_attention(const torch::Tensor& x,
                                            const TransformerBlockOptions& o);
  /// What a branch reads under kPre or kPost: x, or its norm.
  ATTZOO_API torch::Tensor before_branch(Norm& norm, const torch::Tensor& x,
                                         const TransformerBlockOptions& o);
  /// x and what the branch gave, under kPre or kPost.
  ATTZOO_API torch::Tensor after_branch(Norm& norm, const torch::Tensor& x,
                                        const torch::Tensor& given,
                                        const TransformerBlockOptions& o, bool training);
  /// The block's output from x, what the attention read and what it gave.
  ATTZOO_API torch::Tensor after_attention(const torch::Tensor& x, const torch::Tensor& read,
                                           const torch::Tensor& given,
                                           const TransformerBlockOptions& o, bool training);

  /// Prints ", name=value" for each option.
  ATTZOO_API static void print(std::ostream& stream, const TransformerBlockOptions& o);

  /// The MLP's output, before it is added.
  ATTZOO_API torch::Tensor mlp(const torch::Tensor& x, const TransformerBlockOptions& o);
};

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/module/checks.hpp>

#include <ATen/ops/dropout.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>

#include <cmath>
#include <ostream>

namespace attzoo::core {

namespace block_names {

/// For print; null for a value that the type does not have.
inline const char* of(NormKind kind) {
  switch (kind) {
    case NormKind::kLayerNorm:
      return "layer_norm";
    case NormKind::kRMSNorm:
      return "rms_norm";
  }
  return nullptr;
}
inline const char* of(NormPlacement placement) {
  switch (placement) {
    case NormPlacement::kPre:
      return "pre";
    case NormPlacement::kPost:
      return "post";
    case NormPlacement::kParallel:
      return "parallel";
    case NormPlacement::kSandwich:
      return "sandwich";
  }
  return nullptr;
}
inline const char* of(Activation activation) {
  switch (activation) {
    case Activation::kGelu:
      return "gelu";
    case Activation::kGeluTanh:
      return "gelu_tanh";
    case Activation::kRelu:
      return "relu";
    case Activation::kSilu:
      return "silu";
  }
  return nullptr;
}

/// Throws c10::ValueError for such a value.
template <class T>
void check(const char* name, const char* option, T value) {
  TORCH_CHECK_VALUE(of(value), name, ": ", option, " must be one of its type, got ",
                    static_cast<int>(value));
}

}  // namespace block_names

ATTZOO_API void BlockParts::settle(const char* name, int64_t d_model, TransformerBlockOptions& o) {
  if (!o.mlp_hidden) o.mlp_hidden = 4 * d_model;
  TORCH_CHECK_VALUE(*o.mlp_hidden > 0, name, ": mlp_hidden must be > 0, got ", *o.mlp_hidden);
  check_options(name, o);
  check_layer(name, "mlp_in", d_model, *o.mlp_hidden,
              c10::str(" mlp_hidden=", *o.mlp_hidden, " d_model=", d_model));
  TORCH_CHECK_VALUE(o.norm_eps >= 0 && std::isfinite(o.norm_eps), name,
                    ": norm_eps must be >= 0 and finite, got ", o.norm_eps);
  block_names::check(name, "norm", o.norm);
  block_names::check(name, "norm_placement", o.norm_placement);
}

ATTZOO_API void BlockParts::check_options(const char* name, const TransformerBlockOptions& o) {
  check_dropout(name, o.dropout);
  block_names::check(name, "activation", o.activation);
}

ATTZOO_API void BlockParts::register_parts(torch::nn::Module& module,
                                           const std::shared_ptr<torch::nn::Module>& attn,
                                           int64_t d_model, const TransformerBlockOptions& o,
                                           const std::shared_ptr<torch::nn::Module>& cross) {
  const auto norm = [&](const char* name) {
    Norm made(o.norm, d_model, o.norm_eps);
    module.register_module(name, made.ptr());
    return made;
  };
  const auto layer = [&](const char* name, int64_t from, int64_t to) {
    return module.register_module(name, make_linear(from, to, o.mlp_bias));
  };
  const bool sandwich = o.norm_placement == NormPlacement::kSandwich;
  norm_attn = norm("norm_attn");
  module.register_module("attn", attn);
  if (sandwich) norm_attn_out = norm("norm_attn_out");
  if (cross) {
    norm_cross = norm("norm_cross");
    module.register_module("cross", cross);
  }
  if (o.norm_placement != NormPlacement::kParallel) norm_mlp = norm("norm_mlp");
  mlp_in = layer("mlp_in", d_model, *o.mlp_hidden);
  if (o.mlp_gated) mlp_gate = layer("mlp_gate", d_model, *o.mlp_hidden);
  mlp_out = layer("mlp_out", *o.mlp_hidden, d_model);
  if (sandwich) norm_mlp_out = norm("norm_mlp_out");
}

ATTZOO_API torch::Tensor BlockParts::mlp(const torch::Tensor& x, const TransformerBlockOptions& o) {
  const auto h = o.mlp_gated ? linear_each(x, {mlp_gate, mlp_in}) : linear_each(x, {mlp_in});
  if (o.mlp_gated && o.activation == Activation::kSilu) return linear(swiglu(h[0], h[1]), mlp_out);
  const auto activated = [&] {
    switch (o.activation) {
      case Activation::kRelu:
        return at::relu(h[0]);
      case Activation::kSilu:
        return at::silu(h[0]);
      case Activation::kGeluTanh:
        return at::gelu(h[0], "tanh");
      default:
        return core::gelu(h[0]);
    }
  }();
  return linear(o.mlp_gated ? activated * h[1] : activated, mlp_out);
}

ATTZOO_API torch::Tensor BlockParts::before_branch(Norm& norm, const torch::Tensor& x,
                                                   const TransformerBlockOptions& o) {
  return o.norm_placement == NormPlacement::kPost ? x : norm(x);
}

ATTZOO_API torch::Tensor BlockParts::after_branch(Norm& norm, const torch::Tensor& x,
                                                  const torch::Tensor& given,
                                                  const TransformerBlockOptions& o, bool training) {
  const auto sum = plus(x, training ? at::dropout(given, o.dropout, training) : given);
  return o.norm_placement == NormPlacement::kPost ? norm(sum) : sum;
}

ATTZOO_API torch::Tensor BlockParts::before_attention(const torch::Tensor& x,
                                                      const TransformerBlockOptions& o) {
  return before_branch(norm_attn, x, o);
}

ATTZOO_API torch::Tensor BlockParts::after_attention(const torch::Tensor& x,
                                                     const torch::Tensor& read,
                                                     const torch::Tensor& given,
                                                     const TransformerBlockOptions& o,
                                                     bool training) {
  const auto drop = [&](const torch::Tensor& t) {
    return training ? at::dropout(t, o.dropout, training) : t;
  };
  switch (o.norm_placement) {
    case NormPlacement::kParallel:
      return plus(plus(x, drop(given)), drop(mlp(read, o)));
    case NormPlacement::kSandwich: {
      const auto h = plus(x, drop(norm_attn_out(given)));
      return plus(h, drop(norm_mlp_out(mlp(norm_mlp(h), o))));
    }
    default: {
      const auto h = after_branch(norm_attn, x, given, o, training);
      return after_branch(norm_mlp, h, mlp(before_branch(norm_mlp, h, o), o), o, training);
    }
  }
}

ATTZOO_API void BlockParts::print(std::ostream& stream, const TransformerBlockOptions& o) {
  stream << ", mlp_hidden=" << *o.mlp_hidden << ", dropout=" << o.dropout
         << ", norm=" << block_names::of(o.norm) << ", norm_eps=" << o.norm_eps
         << ", norm_placement=" << block_names::of(o.norm_placement)
         << ", activation=" << block_names::of(o.activation) << std::boolalpha
         << ", mlp_gated=" << o.mlp_gated << ", mlp_bias=" << o.mlp_bias << std::noboolalpha;
}

}  // namespace attzoo::core

#endif
