#pragma once
/// \file
/// The CPU's kernel for chosen keys (kernel/decode/chosen.hpp) on tensors. Calls are not recorded
/// by autograd.

#include <attzoo/core/attention/backend.hpp>
#include <attzoo/core/cpu/fused.hpp>

namespace attzoo::core {

/// Whether t is on the CPU, has something to compute, and sizes that the kernel takes, with M keys
/// for each query.
ATTZOO_API bool chosen_on_cpu_takes(const Qkv& t, int64_t M);

/// Softmax attention of q [B, H, L, D] to the keys that `chosen` numbers, int64 [1 or B, 1 or
/// units, L, M], -1 for none; units are Hkv or H.
ATTZOO_API OutputAndLse attend_chosen_on_cpu(const Qkv& t, const torch::Tensor& chosen,
                                             double scale);

/// The gradient of q from those of what attend_chosen_on_cpu() returned; sum_k and sum_v,
/// accumulator()s of k and v, are added to.
ATTZOO_API torch::Tensor chosen_gradients_on_cpu(const Qkv& t, const torch::Tensor& chosen,
                                                 double scale, const Cotangents& from,
                                                 const torch::Tensor& sum_k,
                                                 const torch::Tensor& sum_v);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/checks.hpp>
#include <attzoo/core/cpu/runtime.hpp>
#include <attzoo/core/isa.hpp>
#include <attzoo/kernel/decode/chosen.hpp>

#include <ATen/EmptyTensor.h>

namespace attzoo::core {

ATTZOO_API bool chosen_on_cpu_takes(const Qkv& t, int64_t M) {
  constexpr int64_t kMost = int64_t{1} << 30, kMostFeatures = int64_t{1} << 16;
  const auto n = t.shape();
  return t.q.device().is_cpu() && t.q.numel() > 0 && t.k.numel() > 0 && t.v.numel() > 0 && M > 0 &&
         n.S < kMost && product_at_most({n.B, n.H, M}, kMost) && t.q.size(3) <= kMostFeatures &&
         t.Dv() <= kMostFeatures;
}

/// Of plain() tensors, which must outlive it.
template <class T>
kernel::ChosenProblem<T> chosen_problem(const Qkv& t, const torch::Tensor& chosen,
                                        const OutputAndLse& result, double scale) {
  kernel::ChosenProblem<T> c{.p = problem<T>(t, result, {.scale = scale})};
  const auto stride = [&](int64_t d) { return chosen.size(d) == 1 ? 0 : chosen.stride(d); };
  c.chosen = chosen.const_data_ptr<int64_t>();
  c.chosen_b = stride(0);
  c.chosen_u = stride(1);
  c.chosen_n = chosen.stride(2);
  c.units = static_cast<int>(std::max(chosen.size(1), t.k.size(1)));
  c.M = static_cast<int>(chosen.size(3));
  return c;
}

ATTZOO_API OutputAndLse attend_chosen_on_cpu(const Qkv& any, const torch::Tensor& chosen,
                                             double scale) {
  check_isa();
  const auto t = plain(any);
  const auto numbers = chosen.contiguous();
  const OutputAndLse result{
      empty_as(t.q, t.Dv(), t.q.scalar_type()),
      at::detail::empty_cpu({t.q.size(0), t.q.size(1), t.q.size(2)}, compute_dtype(t.q))};
  with_compute_type(t.q, [&]<class T>(T) {
    TorchRuntime runtime;
    kernel::attend_chosen(chosen_problem<T>(t, numbers, result, scale), runtime);
  });
  return result;
}

ATTZOO_API torch::Tensor chosen_gradients_on_cpu(const Qkv& any, const torch::Tensor& chosen,
                                                 double scale, const Cotangents& any_from,
                                                 const torch::Tensor& sum_k,
                                                 const torch::Tensor& sum_v) {
  const auto t = plain(any);
  const auto numbers = chosen.contiguous();
  const auto grad_q = empty_as(t.q, t.q.size(3), t.q.scalar_type());
  const OutputAndLse none{empty_as(t.q, t.v.size(3), t.q.scalar_type()),
                          at::detail::empty_cpu({0}, compute_dtype(t.q))};
  const auto from = plain(any_from, none.output);
  with_compute_type(t.q, [&]<class T>(T) {
    TorchRuntime runtime;
    kernel::attend_chosen_backward(chosen_problem<T>(t, numbers, none, scale),
                                   kernel_gradients<T>(from, grad_q, sum_k, sum_v), runtime);
  });
  return grad_q;
}

}  // namespace attzoo::core

#endif
