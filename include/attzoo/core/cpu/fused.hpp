#pragma once
/// \file
/// The fused CPU kernel (kernel/attention.hpp) as an AttentionKernel: tensors to views, LibTorch's
/// threads and memory to the kernel's.

#include <attzoo/core/autograd.hpp>
#include <attzoo/core/cpu/runtime.hpp>

#include <algorithm>

#if ATTZOO_HAS_FUSED_KERNEL
#include <attzoo/kernel/attention.hpp>

namespace attzoo::core {

template <MaskMod Mask, ScoreMod Score>
class FusedCpuKernel final : public AttentionKernel {
 public:
  FusedCpuKernel(Mask mask, Score score, double scale, Dropout dropout)
      : mask_(std::move(mask)), score_(std::move(score)), scale_(scale), dropout_(dropout) {
    core::learnable(score_, tensors_);
    for (auto& l : tensors_) {
      if (!l.learns()) l.tensor = torch::Tensor();
    }
  }

  /// Something to compute, sizes that the kernel's 32-bit indices hold, and features whose rows do
  /// not fill the threads' scratch memory.
  static bool fits(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) {
    constexpr int64_t kMost = int64_t{1} << 30, kMostFeatures = int64_t{1} << 16;
    return q.device().is_cpu() && q.numel() > 0 && k.numel() > 0 && v.numel() > 0 &&
           q.size(2) < kMost && k.size(2) < kMost &&
           product_at_most({q.size(0), q.size(1)}, kMost) && q.size(3) <= kMostFeatures &&
           v.size(3) <= kMostFeatures;
  }

  torch::autograd::variable_list learnable() const override {
    torch::autograd::variable_list learning;
    for (const auto& l : tensors_) {
      if (l.tensor.defined()) learning.push_back(l.tensor);
    }
    return learning;
  }

  Captured held() const override {
    Captured all;
    held_tensors(mask_, all);
    held_tensors(score_, all);
    return all;
  }

  OutputAndLse forward(const torch::Tensor& any_q, const torch::Tensor& any_k,
                       const torch::Tensor& any_v) const override {
    const auto q = plain(any_q), k = plain(any_k), v = plain(any_v);
    auto output = empty_as(q, v.size(3), q.scalar_type());
    auto lse = torch::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(compute_dtype(q)));
    with_compute_type(q, [&]<class T>(T) {
      Captured keep;
      TorchRuntime runtime;
      kernel::forward(problem<T>(q, k, v, {output, lse}), bind<T>(q, k, keep), runtime);
    });
    return {output, lse};
  }

  torch::autograd::variable_list backward(const torch::Tensor& any_q, const torch::Tensor& any_k,
                                          const torch::Tensor& any_v, const OutputAndLse& result,
                                          const torch::Tensor& any_grad_output,
                                          const torch::Tensor& any_grad_lse) const override {
    const auto q = plain(any_q), k = plain(any_k), v = plain(any_v);
    // A gradient of lse alone: zeros of no size in memory.
    const auto grad_output = any_grad_output.defined()
                                 ? plain(any_grad_output).to(q.scalar_type())
                                 : torch::zeros({}, q.options()).expand(result.output.sizes());
    const auto grad_lse = any_grad_lse.defined()
                              ? plain(any_grad_lse).to(compute_dtype(q)).contiguous()
                              : torch::Tensor();
    auto grad_q = empty_as(q, q.size(3), q.scalar_type());
    auto grad_k = accumulator(k), grad_v = accumulator(v);
    torch::autograd::variable_list grads(3);
    with_compute_type(q, [&]<class T>(T) {
      Captured keep;
      TorchRuntime runtime;
      const kernel::Gradients<T> gradients{
          view(grad_output), view(grad_q),
          grad_lse.defined() ? grad_lse.template const_data_ptr<T>() : nullptr, view(grad_k),
          view(grad_v)};
      const auto p = problem<T>(q, k, v, result);
      const auto modifiers = bind<T>(q, k, keep);
      kernel::backward(p, modifiers, gradients, runtime);
      if constexpr (kernel::kTensors < decltype(modifiers.score) >> 0) {
        for (auto& g : learnable_gradients<T>(p, modifiers, gradients, runtime)) grads.push_back(g);
      }
    });
    grads[0] = grad_q;
    grads[1] = grad_k.slice(3, 0, k.size(3)).to(k.scalar_type());
    grads[2] = grad_v.slice(3, 0, v.size(3)).to(v.scalar_type());
    return grads;
  }

  OutputAndLse reference(const torch::Tensor& q, const torch::Tensor& k,
                         const torch::Tensor& v) const override {
    return core::reference(q, k, v, mask_, score_, scale_, dropout_);
  }

 private:
  template <class T>
  auto bind(const torch::Tensor& q, const torch::Tensor& k, Captured& keep) const {
    const Shape n{q.size(0), q.size(1), q.size(2), k.size(2)};
    return kernel::MaskAndScore{mask_.bind(n), score_.template bind<T>(n, keep)};
  }

  template <class T>
  kernel::Problem<T> problem(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                             const OutputAndLse& result) const {
    const auto n = [](int64_t size) { return static_cast<int>(size); };
    return {view(q),
            view(k),
            view(v),
            view(result.output),
            result.lse.template data_ptr<T>(),
            n(q.size(0)),
            n(q.size(1)),
            n(k.size(1)),
            n(q.size(2)),
            n(k.size(2)),
            n(q.size(3)),
            n(v.size(3)),
            static_cast<T>(scale_),
            dropout_.p,
            dropout_.seed};
  }

  /// Gradients of learnable().
  template <class T, class Modifiers>
  std::vector<torch::Tensor> learnable_gradients(const kernel::Problem<T>& p,
                                                 const Modifiers& modifiers,
                                                 const kernel::Gradients<T>& gradients,
                                                 kernel::Runtime& runtime) const {
    std::vector<torch::Tensor> sums;  // [slots or 1, the tensor's sizes]
    kernel::TensorGradients<T> to;    // in step with tensors_; nobody asks for the others
    const auto by_query = [](const Learnable& l) {
      return l.dims[2] >= 0 && l.tensor.size(l.dims[2]) > 1;
    };
    // A large tensor, as a table with an entry for each pair, has few copies, and few threads.
    int64_t in_slots = 1;
    for (const auto& l : tensors_) {
      in_slots += l.tensor.defined() && !by_query(l) ? l.tensor.numel() : 0;
    }
    constexpr int64_t kMostNumbers = int64_t{1} << 24;
    to.slots = static_cast<int>(std::clamp<int64_t>(kMostNumbers / in_slots, 1, to.kMostSlots));
    for (const auto& l : tensors_) {
      to.tensors.emplace_back();
      to.slot_stride.push_back(0);
      if (!l.tensor.defined()) continue;
      auto sizes = l.tensor.sizes().vec();
      sizes.insert(sizes.begin(), by_query(l) ? 1 : to.slots);
      sums.push_back(torch::zeros(sizes, c10::CppTypeToScalarType<T>::value));
      const auto& sum = sums.back();
      const auto stride = [&](size_t d) {
        return l.dims[d] < 0 ? int64_t{0} : step(sum, l.dims[d] + 1);
      };
      to.tensors.back() = {sum.template data_ptr<T>(), stride(0), stride(1), stride(2), stride(3)};
      if (!by_query(l)) to.slot_stride.back() = sum.stride(0);
    }
    if (sums.empty()) return sums;
    kernel::backward_tensors(p, modifiers, gradients, to, runtime);
    const auto learning = learnable();
    for (size_t i = 0; i < sums.size(); ++i) sums[i] = sums[i].sum(0).to(learning[i].scalar_type());
    return sums;
  }

  /// Zeros [B, Hkv, S, features padded] to add gradients into, in the memory order of `like`.
  static torch::Tensor accumulator(const torch::Tensor& like) {
    return empty_as(like, kernel::padded(static_cast<int>(like.size(3))), compute_dtype(like))
        .zero_();
  }

  Mask mask_;
  Score score_;
  double scale_;
  Dropout dropout_;
  std::vector<Learnable> tensors_;  // of the score modifier; undefined where no gradient is wanted
};

}  // namespace attzoo::core
#endif
