#pragma once
/// \file
/// ATen's own fused attention, for the problems where it computes exactly what is asked.

#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>
#include <attzoo/core/autograd.hpp>
#include <attzoo/core/reference.hpp>

#include <optional>

namespace attzoo::core {

/// How ATen spells a mask, if it can: `is_causal` false or true.
template <class Mask>
std::optional<bool> aten_causal(const Mask&, const Shape&) {
  return std::nullopt;
}
inline std::optional<bool> aten_causal(const FullMask&, const Shape&) { return false; }
inline std::optional<bool> aten_causal(const CausalMask& mask, const Shape& n) {
  if (!mask.enabled) return false;
  if (mask.offset(n) != 0) return std::nullopt;  // ATen aligns the diagonal to the top left
  return true;
}

/// ATen's CPU flash attention takes any float dtype, needs equal heads and head dims, and cannot
/// represent a problem without elements.
inline bool aten_cpu_fits(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) {
  return q.device().is_cpu() && q.size(1) == k.size(1) && q.size(3) == v.size(3) && q.numel() > 0 &&
         k.numel() > 0 && q.stride(3) == 1 && k.stride(3) == 1 && v.stride(3) == 1;
}

class AtenCpuKernel final : public AttentionKernel {
 public:
  AtenCpuKernel(bool causal, double scale) : causal_(causal), scale_(scale) {}

  OutputAndLse forward(const torch::Tensor& q, const torch::Tensor& k,
                       const torch::Tensor& v) const override {
    auto [output, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal_,
                                                                         std::nullopt, scale_);
    return {output, lse};
  }

  torch::autograd::variable_list backward(const torch::Tensor& q, const torch::Tensor& k,
                                          const torch::Tensor& v, const OutputAndLse& result,
                                          const torch::Tensor& grad_output,
                                          const torch::Tensor& grad_lse) const override {
    if (grad_lse.defined()) return reference_backward(*this, {q, k, v}, grad_output, grad_lse);
    auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        grad_output, q, k, v, result.output, result.lse, 0.0, causal_, std::nullopt, scale_);
    return {dq, dk, dv};
  }

  OutputAndLse reference(const torch::Tensor& q, const torch::Tensor& k,
                         const torch::Tensor& v) const override {
    return core::reference(q, k, v, CausalMask{.enabled = causal_}, IdentityScore{}, scale_,
                           Dropout{});
  }

 private:
  bool causal_;
  double scale_;
};

}  // namespace attzoo::core
