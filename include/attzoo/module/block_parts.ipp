#pragma once
// Definitions of block_parts.hpp.

#include <attzoo/core/layers/layers.hpp>
#include <attzoo/module/block_parts.hpp>
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
                                           int64_t d_model, const TransformerBlockOptions& o) {
  const auto norm = [&](const char* name) {
    Norm made(o.norm, d_model, o.norm_eps);
    module.register_module(name, made.ptr());
    return made;
  };
  const auto layer = [&](const char* name, int64_t from, int64_t to) {
    return module.register_module(
        name, torch::nn::Linear(torch::nn::LinearOptions(from, to).bias(o.mlp_bias)));
  };
  const bool sandwich = o.norm_placement == NormPlacement::kSandwich;
  norm_attn = norm("norm_attn");
  module.register_module("attn", attn);
  if (sandwich) norm_attn_out = norm("norm_attn_out");
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

ATTZOO_API torch::Tensor BlockParts::before_attention(const torch::Tensor& x,
                                                      const TransformerBlockOptions& o) {
  return o.norm_placement == NormPlacement::kPost ? x : norm_attn(x);
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
    case NormPlacement::kPost: {
      const auto h = norm_attn(plus(x, drop(given)));
      return norm_mlp(plus(h, drop(mlp(h, o))));
    }
    case NormPlacement::kParallel:
      return plus(plus(x, drop(given)), drop(mlp(read, o)));
    case NormPlacement::kSandwich: {
      const auto h = plus(x, drop(norm_attn_out(given)));
      return plus(h, drop(norm_mlp_out(mlp(norm_mlp(h), o))));
    }
    default: {
      const auto h = plus(x, drop(given));
      return plus(h, drop(mlp(norm_mlp(h), o)));
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
