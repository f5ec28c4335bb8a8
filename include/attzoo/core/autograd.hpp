#pragma once
/// \file
/// Ties a forward and a backward of one's own to autograd: first derivatives run by them,
/// derivatives of derivatives (create_graph) through the eager reference.

#include <attzoo/core/reference.hpp>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/types.h>

namespace attzoo::core {

/// One attention problem, all but q, k, v: how it runs, and what it means.
/// q [B, H, L, D], k [B, Hkv, S, D], v [B, Hkv, S, Dv], output [B, H, L, Dv], lse [B, H, L].
class AttentionKernel : public torch::CustomClassHolder {
 public:
  /// Tensors of the score modifier that required gradients when the kernel was made.
  virtual torch::autograd::variable_list learnable() const = 0;
  /// All tensors that the mask and the score modifier read.
  virtual Captured held() const = 0;
  virtual OutputAndLse forward(const torch::Tensor& q, const torch::Tensor& k,
                               const torch::Tensor& v) const = 0;
  /// Gradients of q, k, v and of the learnable tensors; one of grad_output and grad_lse may be
  /// undefined.
  virtual torch::autograd::variable_list backward(const torch::Tensor& q, const torch::Tensor& k,
                                                  const torch::Tensor& v,
                                                  const OutputAndLse& result,
                                                  const torch::Tensor& grad_output,
                                                  const torch::Tensor& grad_lse) const = 0;
  /// The same function by differentiable tensor operations.
  virtual OutputAndLse reference(const torch::Tensor& q, const torch::Tensor& k,
                                 const torch::Tensor& v) const = 0;

  /// Between these the tensors held must not change: the backward pass reads them again. (They are
  /// not saved for backward, which refuses inference tensors, and a mask may well be one.)
  void before_forward() { unchanged_ = Unchanged(held()); }
  void before_backward() const { unchanged_.check("attention"); }

 private:
  Unchanged unchanged_;
};

/// Gradients of `reference` with respect to q, k, v and the learnable tensors, differentiable again
/// if grad mode is on.
inline torch::autograd::variable_list reference_backward(const AttentionKernel& kernel,
                                                         torch::autograd::variable_list qkv,
                                                         const torch::Tensor& grad_output,
                                                         const torch::Tensor& grad_lse) {
  const bool create_graph = torch::GradMode::is_enabled();
  torch::AutoGradMode enable(true);
  for (auto& t : qkv) {
    if (!t.requires_grad()) t = t.detach().requires_grad_();
  }
  const auto result = kernel.reference(qkv[0], qkv[1], qkv[2]);
  torch::autograd::variable_list outputs, grads, inputs = std::move(qkv);
  for (const auto& t : kernel.learnable()) inputs.push_back(t);
  if (grad_output.defined()) {
    outputs.push_back(result.output);
    grads.push_back(grad_output);
  }
  if (grad_lse.defined() && result.lse.requires_grad()) {  // scores may ignore q k^T
    outputs.push_back(result.lse);
    grads.push_back(grad_lse);
  }
  if (outputs.empty()) return torch::autograd::variable_list(inputs.size());
  return torch::autograd::grad(outputs, inputs, grads, /*retain_graph=*/true, create_graph,
                               /*allow_unused=*/true);
}

struct KernelFunction : torch::autograd::Function<KernelFunction> {
  using Kernel = c10::intrusive_ptr<AttentionKernel>;

  /// `learnable` are kernel->learnable()'s tensors: autograd knows inputs only by arguments.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Kernel& kernel, const torch::Tensor& q,
                                                const torch::Tensor& k, const torch::Tensor& v,
                                                at::TensorList learnable) {
    auto result = kernel->forward(q, k, v);
    ctx->set_materialize_grads(false);
    ctx->saved_data["kernel"] = torch::IValue::make_capsule(kernel);
    torch::autograd::variable_list saved{q, k, v, result.output, result.lse};
    // Saved although the kernel holds them: autograd then notices changes in place.
    saved.insert(saved.end(), learnable.begin(), learnable.end());
    ctx->save_for_backward(saved);
    return {result.output, result.lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto kernel =
        c10::static_intrusive_pointer_cast<AttentionKernel>(ctx->saved_data["kernel"].toCapsule());
    kernel->before_backward();
    auto result =
        torch::GradMode::is_enabled() || (!grads[0].defined() && !grads[1].defined())
            ? reference_backward(*kernel, {saved[0], saved[1], saved[2]}, grads[0], grads[1])
            : kernel->backward(saved[0], saved[1], saved[2], {saved[3], saved[4]}, grads[0],
                               grads[1]);
    result.insert(result.begin(), torch::Tensor());  // the kernel argument has no gradient
    return result;
  }
};

/// Runs a kernel under autograd.
inline OutputAndLse run_kernel(const KernelFunction::Kernel& kernel, const torch::Tensor& q,
                               const torch::Tensor& k, const torch::Tensor& v) {
  if (torch::GradMode::is_enabled()) kernel->before_forward();
  const auto learnable = kernel->learnable();
  const auto result = KernelFunction::apply(kernel, q, k, v, at::TensorList(learnable));
  return {result[0], result[1]};
}

}  // namespace attzoo::core
