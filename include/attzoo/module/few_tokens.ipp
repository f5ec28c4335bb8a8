#pragma once
// Definitions of few_tokens.hpp.

#include <attzoo/core/checks.hpp>
#include <attzoo/module/few_tokens.hpp>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

#include <array>

namespace attzoo::core {

ATTZOO_API bool plain_numbers(const torch::Tensor& x, const torch::Tensor& weight) {
  const auto dtype = x.scalar_type();
  return x.device().is_cpu() && weight.device().is_cpu() && weight.scalar_type() == dtype &&
         (dtype == torch::kFloat64 ||
          (dtype == torch::kFloat32 && !at::autocast::is_autocast_enabled(at::kCPU))) &&
         !(torch::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad())) &&
         !x._fw_grad(0).defined() && !weight._fw_grad(0).defined();
}

/// The inner product of n numbers, summed in 16 parts, which a compiler can do at once.
template <class T>
T inner_product(const T* a, const T* b, int64_t n) {
  std::array<T, 16> parts{};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int64_t j = 0; j < 16; ++j) parts[static_cast<size_t>(j)] += a[i + j] * b[i + j];
  }
  T sum = 0;
  for (; i < n; ++i) sum += a[i] * b[i];
  for (const T part : parts) sum += part;
  return sum;
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
          const auto product = inner_product(token + l * from, row + i * from, from);
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

}  // namespace attzoo::core
