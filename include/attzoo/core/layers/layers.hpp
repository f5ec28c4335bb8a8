#pragma once
/// \file
/// What stands around attention, for a few tokens, as in decoding: layers without a gradient.

#include <attzoo/config.hpp>

#include <torch/nn/modules/linear.h>

#include <vector>

namespace attzoo::core {

/// Whether no derivative of these is asked for, and they lie on the CPU as float32 or float64, both
/// the same and not cast by autocast: what a plain loop may compute.
ATTZOO_API bool plain_numbers(const torch::Tensor& x, const torch::Tensor& weight);

/// x [..., from] -> x W^T [+ bias] [..., to]. With at most 4 tokens the time is that of reading W,
/// which at::linear does on one core where its BLAS has a serial matrix-vector product; here all
/// threads read. Results do not depend on how many there are. Otherwise it is at::linear.
ATTZOO_API torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight,
                                const torch::Tensor& bias = {});
/// The same for a layer.
ATTZOO_API torch::Tensor linear(const torch::Tensor& x, const torch::nn::Linear& layer);
/// The same for several layers of one x: the threads meet once and not for each.
ATTZOO_API std::vector<torch::Tensor> linear_each(const torch::Tensor& x,
                                                  const std::vector<torch::nn::Linear>& layers);

/// x / sqrt(mean(x^2) + eps) * weight over the last dimension, of plain_numbers(). ATen has it as
/// ten small operators, whose calls take longer than the work where there is one token.
ATTZOO_API torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps);

/// a + b, as a residual: for few plain_numbers() without ATen's operator, whose call takes longer.
ATTZOO_API torch::Tensor plus(const torch::Tensor& a, const torch::Tensor& b);

/// at::gelu(x), exact. oneDNN, which computes that, takes ten times the work's time to begin, so
/// few plain_numbers() get the same formula from operators that do not.
ATTZOO_API torch::Tensor gelu(const torch::Tensor& x);

/// silu(gate) * in, inside a gated MLP (Shazeer, 2020, arXiv:2002.05202): for few plain_numbers()
/// one loop.
ATTZOO_API torch::Tensor swiglu(const torch::Tensor& gate, const torch::Tensor& in);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/layers/layers.ipp>
#endif
