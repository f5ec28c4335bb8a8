#pragma once
/// \file
/// What stands around attention, for a few tokens, as in decoding: layers without a gradient.

#include <attzoo/config.hpp>
#include <attzoo/core/layers/adaptable_linear.hpp>

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
/// The same for a layer, with its LoRA if it has one.
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

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/checks.hpp>
#include <attzoo/core/isa.hpp>
#include <attzoo/core/views.hpp>
#include <attzoo/kernel/decode/layers.hpp>

#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/silu.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace attzoo::core {

ATTZOO_API bool plain_numbers(const torch::Tensor& x, const torch::Tensor& weight) {
  const auto dtype = x.scalar_type();
  return x.device().is_cpu() && weight.device().is_cpu() && weight.scalar_type() == dtype &&
         (dtype == torch::kFloat64 ||
          (dtype == torch::kFloat32 && !at::autocast::is_autocast_enabled(at::kCPU))) &&
         !is_differentiated(x) && !is_differentiated(weight);
}

/// Weight and bias of a layer; the latter may be undefined.
struct Affine {
  torch::Tensor weight, bias;
};

/// Whether a layer is computed here: for few tokens, each of as many numbers as a row has.
inline bool takes_few(const torch::Tensor& x, const Affine& layer) {
  constexpr int64_t kMost = kernel::FewTokens<float>::kMost;
  if (!x.defined() || !layer.weight.defined() || layer.weight.dim() != 2) return false;
  const int64_t to = layer.weight.size(0), from = layer.weight.size(1);
  return x.dim() > 0 && x.size(-1) == from && x.numel() > 0 && x.numel() <= kMost * from &&
         layer.weight.is_contiguous() && plain_numbers(x, layer.weight) &&
         (!layer.bias.defined() ||
          (layer.bias.sizes() == torch::IntArrayRef{to} && plain_numbers(x, layer.bias)));
}

inline std::vector<torch::Tensor> linear_each(const torch::Tensor& x, std::vector<Affine> layers) {
  std::vector<torch::Tensor> result;
  result.reserve(layers.size());
  if (!std::all_of(layers.begin(), layers.end(), [&](const auto& l) { return takes_few(x, l); })) {
    for (const auto& l : layers) result.push_back(at::linear(x, l.weight, l.bias));
    return result;
  }
  check_isa();
  const auto tokens = plain(x).contiguous();
  auto sizes = x.sizes().vec();
  const int64_t from = sizes.back(), L = x.numel() / from;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "linear", [&] {
    std::vector<kernel::FewTokens<scalar_t>> problems;
    problems.reserve(layers.size());
    int64_t rows = 0;  // of all layers, one after the other
    for (auto& l : layers) {
      l.weight = plain(l.weight);
      if (l.bias.defined()) l.bias = plain(l.bias).contiguous();
      const int64_t to = sizes.back() = l.weight.size(0);
      result.push_back(at::detail::empty_cpu(sizes, x.scalar_type()));
      problems.push_back({.tokens = tokens.const_data_ptr<scalar_t>(),
                          .weight = l.weight.const_data_ptr<scalar_t>(),
                          .bias = l.bias.defined() ? l.bias.const_data_ptr<scalar_t>() : nullptr,
                          .out = result.back().mutable_data_ptr<scalar_t>(),
                          .L = L,
                          .from = from,
                          .rows = to,
                          .step = to});
      rows += to;
    }
    const int64_t grain = at::internal::GRAIN_SIZE / from + 1;
    at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      for (const auto& p : problems) {
        const int64_t first = std::max<int64_t>(begin, 0), last = std::min(end, p.rows);
        if (first < last) kernel::multiply(p.part(first, last));
        begin -= p.rows;
        end -= p.rows;
      }
    });
  });
  return result;
}

ATTZOO_API torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight,
                                const torch::Tensor& bias) {
  return linear_each(x, {Affine{weight, bias}})[0];
}

/// What the layer gave for x, and its LoRA's part: y + scale (dropout(x) A^T) B^T.
inline torch::Tensor add_lora(const torch::Tensor& y, const torch::Tensor& x,
                              const AdaptableLinearImpl& layer) {
  const auto &A = layer.lora_A(), &B = layer.lora_B();
  const auto& lora = layer.lora();
  const double scale = lora.scale(layer.rank());
  const bool drops = layer.is_training() && lora.dropout > 0;
  const auto h = core::linear(drops ? at::dropout(x, lora.dropout, true) : x, A);  // [..., rank]
  if (takes_few(h, {B, {}})) return at::add(y, core::linear(h, B), scale);
  const int64_t tokens = h.numel() / A.size(0);
  return at::addmm(y.reshape({tokens, B.size(0)}), h.reshape({tokens, A.size(0)}), B.t(), 1, scale)
      .view(y.sizes());
}

/// The LoRA of a layer, which most have not.
inline const AdaptableLinearImpl* lora_of(const torch::nn::LinearImpl& layer) {
  const auto* own = adaptable(layer);
  return own && own->has_lora() ? own : nullptr;
}

ATTZOO_API torch::Tensor linear(const torch::Tensor& x, const torch::nn::Linear& layer) {
  auto y = linear(x, layer->weight, layer->bias);
  if (const auto* lora = lora_of(*layer)) y = add_lora(y, x, *lora);
  return y;
}

ATTZOO_API std::vector<torch::Tensor> linear_each(const torch::Tensor& x,
                                                  const std::vector<torch::nn::Linear>& layers) {
  std::vector<Affine> all;
  all.reserve(layers.size());
  for (const auto& layer : layers) all.push_back({layer->weight, layer->bias});
  auto result = linear_each(x, std::move(all));
  for (size_t i = 0; i < layers.size(); ++i) {
    if (const auto* lora = lora_of(*layers[i])) result[i] = add_lora(result[i], x, *lora);
  }
  return result;
}

ATTZOO_API torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  const auto rows = plain(x).contiguous(), scale = plain(weight).contiguous();
  auto y = at::detail::empty_cpu(rows.sizes(), rows.scalar_type());
  const int64_t n = rows.size(-1);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "RMSNorm", [&] {
    const auto *from = rows.const_data_ptr<scalar_t>(), *by = scale.const_data_ptr<scalar_t>();
    auto* to = y.mutable_data_ptr<scalar_t>();
    const auto norm_rows = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto* row = from + i * n;
        const double mean =
            static_cast<double>(kernel::inner_product(row, row, n)) / static_cast<double>(n);
        const auto factor = static_cast<scalar_t>(1 / std::sqrt(mean + eps));
        kernel::scale_by(row, factor, by, to + i * n, n);
      }
    };
    at::parallel_for(0, rows.numel() / n, at::internal::GRAIN_SIZE / n + 1, norm_rows);
  });
  return y;
}

/// Whether a loop over the numbers of both is all there is to do, and one thread's work.
inline bool are_few(const torch::Tensor& a, const torch::Tensor& b) {
  return a.sizes() == b.sizes() && a.numel() <= at::internal::GRAIN_SIZE && plain_numbers(a, b);
}

/// f(a, b, out, how many) on the numbers of both.
template <class F>
torch::Tensor each_number(const torch::Tensor& a, const torch::Tensor& b, const F& f) {
  check_isa();
  const auto x = plain(a).contiguous(), y = plain(b).contiguous();
  auto out = at::detail::empty_cpu(x.sizes(), x.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "few_tokens", [&] {
    f(x.const_data_ptr<scalar_t>(), y.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>(),
      x.numel());
  });
  return out;
}

ATTZOO_API torch::Tensor plus(const torch::Tensor& a, const torch::Tensor& b) {
  if (!are_few(a, b)) return at::add(a, b);
  return each_number(a, b, [](auto... p) { kernel::add(p...); });
}

ATTZOO_API torch::Tensor gelu(const torch::Tensor& x) {
  if (!are_few(x, x)) return at::gelu(x);
  return at::mul(x, std::numbers::sqrt2 / 2).erf_().add_(1).mul_(x).mul_(0.5);
}

ATTZOO_API torch::Tensor swiglu(const torch::Tensor& gate, const torch::Tensor& in) {
  if (!are_few(gate, in)) return at::silu(gate) * in;
  return each_number(gate, in, [](auto... p) { kernel::swiglu(p...); });
}

}  // namespace attzoo::core

#endif
