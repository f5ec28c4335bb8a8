#pragma once
// Definitions of backend.hpp.

#include <attzoo/core/backend.hpp>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <iterator>

namespace attzoo::core {

ATTZOO_API Call::Call(Rule of) : rule(std::move(of)) {
  rule.score.learnable(tensors);
  for (auto& l : tensors) {
    if (!l.learns()) l.tensor = torch::Tensor();
  }
}

ATTZOO_API std::vector<torch::Tensor> Call::learning() const {
  std::vector<torch::Tensor> learning;
  for (const auto& l : tensors) {
    if (l.tensor.defined()) learning.push_back(l.tensor);
  }
  return learning;
}

/// What the node of a call holds. Between forward and backward its tensors must not change: the
/// backward pass reads them again. (Those of masks are not saved for backward, which refuses
/// inference tensors, and a mask may well be one.)
struct SavedCall : torch::CustomClassHolder {
  SavedCall(const Backend& with, const Rule& rule) : backend(with), call(rule) {
    if (!torch::GradMode::is_enabled()) return;
    Captured held;
    call.rule.mask.tensors(held);
    call.rule.score.tensors(held);
    unchanged = Unchanged(held);
  }
  const Backend& backend;
  Call call;
  Unchanged unchanged;
};

/// Gradients of q, k, v and the learning tensors by the eager reference.
ATTZOO_API torch::autograd::variable_list reference_backward(const Call& call, Qkv t,
                                                             const Cotangents& from) {
  const bool create_graph = torch::GradMode::is_enabled();
  torch::AutoGradMode enable(true);
  for (auto* x : {&t.q, &t.k, &t.v}) {
    if (!x->requires_grad()) *x = x->detach().requires_grad_();
  }
  const auto result = reference(t, call.rule);
  torch::autograd::variable_list outputs, grads, inputs{t.q, t.k, t.v};
  for (const auto& l : call.learning()) inputs.push_back(l);
  if (from.output.defined()) {
    outputs.push_back(result.output);
    grads.push_back(from.output);
  }
  if (from.lse.defined() && result.lse.requires_grad()) {  // scores may ignore q k^T
    outputs.push_back(result.lse);
    grads.push_back(from.lse);
  }
  if (outputs.empty()) return torch::autograd::variable_list(inputs.size());
  return torch::autograd::grad(outputs, inputs, grads, /*retain_graph=*/true, create_graph,
                               /*allow_unused=*/true);
}

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  using Saved = c10::intrusive_ptr<SavedCall>;

  /// `learning` are the call's tensors: autograd knows inputs only by arguments.
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Saved& saved, const torch::Tensor& q,
                                                const torch::Tensor& k, const torch::Tensor& v,
                                                at::TensorList learning) {
    const auto result = saved->backend.run({q, k, v}, saved->call);
    ctx->set_materialize_grads(false);
    ctx->saved_data["call"] = torch::IValue::make_capsule(saved);
    torch::autograd::variable_list tensors{q, k, v, result.output, result.lse};
    // Saved although the call holds them: autograd then notices changes in place.
    tensors.insert(tensors.end(), learning.begin(), learning.end());
    ctx->save_for_backward(tensors);
    return {result.output, result.lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto x = ctx->get_saved_variables();
    const auto saved =
        c10::static_intrusive_pointer_cast<SavedCall>(ctx->saved_data["call"].toCapsule());
    saved->unchanged.check("attention");
    const Qkv t{x[0], x[1], x[2]};
    const Cotangents from{grads[0], grads[1]};
    torch::autograd::variable_list result{torch::Tensor()};  // the first argument has no gradient
    if (torch::GradMode::is_enabled() || (!from.output.defined() && !from.lse.defined())) {
      const auto by_definition = reference_backward(saved->call, t, from);
      result.insert(result.end(), by_definition.begin(), by_definition.end());
    } else {
      const auto g = saved->backend.run_backward(t, saved->call, {x[3], x[4]}, from);
      result.insert(result.end(), {g.q, g.k, g.v});
      result.insert(result.end(), g.learning.begin(), g.learning.end());
    }
    return result;
  }
};

ATTZOO_API OutputAndLse run(const Backend& backend, const Qkv& t, const Rule& rule) {
  const auto saved = c10::make_intrusive<SavedCall>(backend, rule);
  const auto learning = saved->call.learning();
  const auto result = AttentionFunction::apply(saved, t.q, t.k, t.v, at::TensorList(learning));
  return {result[0], result[1]};
}

}  // namespace attzoo::core
