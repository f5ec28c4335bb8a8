#pragma once
/// \file
/// The fused CPU kernels as a backend: tensors to views, LibTorch's threads and memory to the
/// kernels'.

#include <attzoo/core/attention/backend.hpp>

namespace attzoo::core {

class FusedCpuBackend final : public Backend {
 public:
  const char* name() const override { return "the fused CPU kernels"; }
  const char* why_not(const Qkv& t, const Call& call) const override;
  OutputAndLse run(const Qkv& t, const Call& call) const override;
  Gradients run_backward(const Qkv& t, const Call& call, const OutputAndLse& result,
                         const Cotangents& from) const override;
};

/// Zeros [B, Hkv, S, features padded] to add gradients into, in the memory order of `like`.
ATTZOO_API torch::Tensor accumulator(const torch::Tensor& like);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/cpu/runtime.hpp>
#include <attzoo/core/isa.hpp>
#include <attzoo/kernel/attention/attention.hpp>

#include <ATen/EmptyTensor.h>

#include <algorithm>

namespace attzoo::core {

ATTZOO_API const char* FusedCpuBackend::why_not(const Qkv& t, const Call& call) const {
  constexpr int64_t kMost = int64_t{1} << 30, kMostFeatures = int64_t{1} << 16;
  const auto n = t.shape();
  if (!t.q.device().is_cpu()) return "the tensors are not on the CPU";
  if (t.q.numel() == 0 || t.k.numel() == 0 || t.v.numel() == 0)
    return "there is nothing to compute";
  if (n.L >= kMost || n.S >= kMost || !product_at_most({n.B, n.H}, kMost)) {
    return "a length, or batch times heads, is beyond 2^30, what its indices hold";
  }
  if (t.q.size(3) > kMostFeatures || t.Dv() > kMostFeatures) {
    return "more than 65536 features would fill its threads' scratch memory";
  }
  if (!call.rule.mask.has_form(typeid(kernel::Mask))) {
    return "the mask has no form for it (a bind() of its type), or numbers beyond 2^30";
  }
  if (!call.rule.score.has_form(typeid(kernel::Score<float>))) {
    return "the score modifier has no form for it (a bind() of its type), or numbers beyond 2^30";
  }
  return nullptr;
}

template <class T>
kernel::Modifiers<T> modifiers(const Call& call, const Shape& n) {
  return {call.rule.mask.form<kernel::Mask>(n), call.rule.score.form<kernel::Score<T>>(n)};
}

/// Of plain() tensors, which must outlive it.
template <class T>
kernel::Problem<T> problem(const Qkv& t, const OutputAndLse& result, const Rule& rule) {
  const auto n = [](int64_t size) { return static_cast<int>(size); };
  return {.q = view(t.q),
          .k = view(t.k),
          .v = view(t.v),
          .output = view(result.output),
          .lse = result.lse.template data_ptr<T>(),
          .max = result.softmax.defined() ? result.softmax.template data_ptr<T>() : nullptr,
          .log_sum = result.softmax.defined()
                         ? result.softmax.template data_ptr<T>() + result.lse.numel()
                         : nullptr,
          .B = n(t.q.size(0)),
          .H = n(t.q.size(1)),
          .Hkv = n(t.k.size(1)),
          .L = n(t.q.size(2)),
          .S = n(t.k.size(2)),
          .D = n(t.q.size(3)),
          .Dv = n(t.Dv()),
          .scale = static_cast<T>(rule.scale),
          .dropout = rule.dropout.p,
          .seed = rule.dropout.seed,
          .stick_breaking = rule.stick_breaking};
}

ATTZOO_API Qkv plain(const Qkv& t) { return {plain(t.q), plain(t.k), plain(t.v)}; }

ATTZOO_API OutputAndLse FusedCpuBackend::run(const Qkv& any, const Call& call) const {
  check_isa();
  const auto t = core::plain(any);
  const int64_t B = t.q.size(0), H = t.q.size(1), L = t.q.size(2);
  OutputAndLse result{empty_as(t.q, t.Dv(), call.rule.output_dtype(t.q)),
                      at::detail::empty_cpu({B, H, L}, compute_dtype(t.q))};
  if (call.learns) result.softmax = at::detail::empty_cpu({2, B, H, L}, compute_dtype(t.q));
  with_compute_type(t.q, [&]<class T>(T) {
    TorchRuntime runtime;
    kernel::attend(problem<T>(t, result, call.rule), modifiers<T>(call, t.shape()), runtime);
  });
  return result;
}

ATTZOO_API torch::Tensor accumulator(const torch::Tensor& like) {
  return empty_as(like, kernel::padded(static_cast<int>(like.size(3))), compute_dtype(like))
      .zero_();
}

/// As the kernels read them, of an output.
ATTZOO_API Cotangents plain(const Cotangents& from, const torch::Tensor& output) {
  // A gradient of lse alone: zeros of no size in memory.
  return {from.output.defined() ? plain(from.output).to(output.scalar_type())
                                : torch::zeros({}, output.options()).expand(output.sizes()),
          from.lse.defined() ? plain(from.lse).to(compute_dtype(output)).contiguous()
                             : torch::Tensor()};
}

/// Of plain() cotangents; all tensors must outlive it.
template <class T>
kernel::Gradients<T> kernel_gradients(const Cotangents& from, const torch::Tensor& grad_q,
                                      const torch::Tensor& grad_k, const torch::Tensor& grad_v) {
  return {.grad_output = view(from.output),
          .grad_q = view(grad_q),
          .grad_lse = from.lse.defined() ? from.lse.template const_data_ptr<T>() : nullptr,
          .grad_k = view(grad_k),
          .grad_v = view(grad_v)};
}

/// Copies of the gradients that are summed at the end, so many threads can add: a large tensor, as
/// a table with an entry for each pair, has few.
ATTZOO_API int gradient_slots(const std::vector<Learnable>& tensors, int most) {
  constexpr int64_t kMostNumbers = int64_t{1} << 24;
  int64_t in_slots = 1;
  for (const auto& l : tensors) {
    in_slots += l.tensor.defined() && !l.is_by_query() ? l.tensor.numel() : 0;
  }
  return static_cast<int>(std::clamp<int64_t>(kMostNumbers / in_slots, 1, most));
}

/// Gradients of Call::learning().
template <class T>
std::vector<torch::Tensor> learning_gradients(const Call& call, const kernel::Problem<T>& p,
                                              const kernel::Modifiers<T>& m,
                                              const kernel::Gradients<T>& gradients,
                                              kernel::Runtime& runtime) {
  std::vector<torch::Tensor> sums;  // [slots or 1, the tensor's sizes]
  kernel::TensorGradients<T> to;    // in step with call.tensors; nobody asks for the others
  to.slots = gradient_slots(call.tensors, to.kMostSlots);
  for (const auto& l : call.tensors) {
    to.tensors.emplace_back();
    to.slot_stride.push_back(0);
    if (!l.tensor.defined()) continue;
    auto sizes = l.tensor.sizes().vec();
    sizes.insert(sizes.begin(), l.is_by_query() ? 1 : to.slots);
    sums.push_back(torch::zeros(sizes, c10::CppTypeToScalarType<T>::value));
    const auto& sum = sums.back();
    const auto stride = [&](size_t d) {
      return l.dims[d] < 0 ? int64_t{0} : step(sum, l.dims[d] + 1);
    };
    to.tensors.back() = {sum.template data_ptr<T>(), stride(0), stride(1), stride(2), stride(3)};
    if (!l.is_by_query()) to.slot_stride.back() = sum.stride(0);
  }
  if (sums.empty()) return sums;
  kernel::attend_backward_tensors(p, m, gradients, to, runtime);
  const auto learning = call.learning();
  for (size_t i = 0; i < sums.size(); ++i) sums[i] = sums[i].sum(0).to(learning[i].scalar_type());
  return sums;
}

ATTZOO_API Gradients FusedCpuBackend::run_backward(const Qkv& any, const Call& call,
                                                   const OutputAndLse& result,
                                                   const Cotangents& from) const {
  const auto t = core::plain(any);
  const auto cotangents = plain(from, result.output);
  const auto grad_q = empty_as(t.q, t.q.size(3), t.q.scalar_type());
  const auto grad_k = accumulator(t.k), grad_v = accumulator(t.v);
  Gradients grads;
  with_compute_type(t.q, [&]<class T>(T) {
    TorchRuntime runtime;
    const auto gradients = kernel_gradients<T>(cotangents, grad_q, grad_k, grad_v);
    const auto p = problem<T>(t, result, call.rule);
    const auto m = modifiers<T>(call, t.shape());
    kernel::attend_backward(p, m, gradients, runtime);
    grads.learning = learning_gradients<T>(call, p, m, gradients, runtime);
  });
  grads.q = grad_q;
  grads.k = grad_k.slice(3, 0, t.k.size(3)).to(t.k.scalar_type());
  grads.v = grad_v.slice(3, 0, t.v.size(3)).to(t.v.scalar_type());
  return grads;
}

}  // namespace attzoo::core

#endif
