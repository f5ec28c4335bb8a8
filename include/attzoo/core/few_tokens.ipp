#pragma once
// Definitions of few_tokens.hpp.

#include <attzoo/core/checks.hpp>
#include <attzoo/core/few_tokens.hpp>
#include <attzoo/kernel/inner_product.hpp>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linear.h>

#include <cmath>

namespace attzoo::core {

ATTZOO_API bool plain_numbers(const torch::Tensor& x, const torch::Tensor& weight) {
  const auto dtype = x.scalar_type();
  return x.device().is_cpu() && weight.device().is_cpu() && weight.scalar_type() == dtype &&
         (dtype == torch::kFloat64 ||
          (dtype == torch::kFloat32 && !at::autocast::is_autocast_enabled(at::kCPU))) &&
         !(torch::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad())) &&
         !x._fw_grad(0).defined() && !weight._fw_grad(0).defined();
}

ATTZOO_API torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight,
                                const torch::Tensor& bias) {
  constexpr int64_t kFew = 4;
  const int64_t from = weight.size(1), to = weight.size(0);
  const bool fits = x.dim() > 0 && x.size(-1) == from && x.numel() > 0 && x.numel() <= kFew * from;
  if (!fits || !weight.is_contiguous() || !plain_numbers(x, weight) ||
      (bias.defined() && !plain_numbers(x, bias))) {
    return at::linear(x, weight, bias);
  }
  const auto tokens = plain(x).contiguous(), w = plain(weight);
  const auto b = bias.defined() ? plain(bias).contiguous() : bias;
  auto sizes = x.sizes().vec();
  sizes.back() = to;
  auto y = at::empty(sizes, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "linear", [&] {
    const auto *token = tokens.const_data_ptr<scalar_t>(), *row = w.const_data_ptr<scalar_t>();
    const auto* add = b.defined() ? b.const_data_ptr<scalar_t>() : nullptr;
    auto* out = y.mutable_data_ptr<scalar_t>();
    const int64_t L = x.numel() / from;
    at::parallel_for(0, to, at::internal::GRAIN_SIZE / from + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t l = 0; l < L; ++l) {
          const auto product = kernel::inner_product(token + l * from, row + i * from, from);
          out[l * to + i] = add ? product + add[i] : product;
        }
      }
    });
  });
  return y;
}

ATTZOO_API torch::Tensor linear(const torch::Tensor& x, const torch::nn::Linear& layer) {
  return linear(x, layer->weight, layer->bias);
}

ATTZOO_API torch::Tensor rms_norm(const torch::Tensor& x, const torch::Tensor& weight, double eps) {
  const auto rows = plain(x).contiguous(), scale = plain(weight).contiguous();
  auto y = at::empty_like(rows);
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

}  // namespace attzoo::core
