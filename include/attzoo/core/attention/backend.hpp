#pragma once
/// \file
/// A way to run attention, forward and backward, and its place in autograd: first derivatives run
/// by it, derivatives of derivatives (create_graph) through the eager reference.

#include <attzoo/core/attention/reference.hpp>

#include <memory>
#include <vector>

namespace attzoo::core {

/// One attention problem but for its tensors, and what its backward pass needs beyond them.
struct Call {
  Rule rule;
  std::vector<Learnable> tensors;  // of the score modifier; undefined where no gradient is wanted
  bool learns = false;             // whether a backward pass may follow
  mutable std::shared_ptr<const void> plan = nullptr;  // what the backend that takes it found out

  explicit Call(Rule of);
  /// The tensors that gradients flow to.
  std::vector<torch::Tensor> learning() const;
};

/// Gradients with respect to q, k, v and, in their order, to Call::learning().
struct Gradients {
  torch::Tensor q, k, v;
  std::vector<torch::Tensor> learning = {};
};

/// Those of the results that came in: one of them may be undefined.
struct Cotangents {
  torch::Tensor output, lse;
};

/// Stateless; backends are chosen in dispatch.hpp.
class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;
  /// Why it does not run this problem; null: it does, exactly, and better than by definition.
  virtual const char* why_not(const Qkv& t, const Call& call) const = 0;
  bool takes(const Qkv& t, const Call& call) const { return !why_not(t, call); }
  virtual OutputAndLse run(const Qkv& t, const Call& call) const = 0;
  virtual Gradients run_backward(const Qkv& t, const Call& call, const OutputAndLse& result,
                                 const Cotangents& from) const = 0;
};

/// Runs a problem by a backend, under autograd.
ATTZOO_API OutputAndLse run(const Backend& backend, const Qkv& t, Call call);
inline OutputAndLse run(const Backend& backend, const Qkv& t, const Rule& rule) {
  return run(backend, t, Call(rule));
}

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/autograd.hpp>

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <utility>

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

/// Gradients of q, k, v and the learning tensors by the eager reference.
ATTZOO_API Tensors reference_backward(const Call& call, Qkv t, const Cotangents& from) {
  const bool create_graph = torch::GradMode::is_enabled();
  torch::AutoGradMode enable(true);
  for (auto* x : {&t.q, &t.k, &t.v}) {
    if (!x->requires_grad()) *x = x->detach().requires_grad_();
  }
  const auto result = reference(t, call.rule);
  Tensors outputs, grads, inputs{t.q, t.k, t.v};
  for (const auto& l : call.learning()) inputs.push_back(l);
  if (from.output.defined()) {
    outputs.push_back(result.output);
    grads.push_back(from.output);
  }
  if (from.lse.defined() && result.lse.requires_grad()) {  // scores may ignore q k^T
    outputs.push_back(result.lse);
    grads.push_back(from.lse);
  }
  if (outputs.empty()) return Tensors(inputs.size());
  return torch::autograd::grad(outputs, inputs, grads, /*retain_graph=*/true, create_graph,
                               /*allow_unused=*/true);
}

/// A call under autograd: of q, k, v and the tensors that learn. The latter are inputs although the
/// call holds them: autograd knows of no others, and notices changes in place by them. Those of
/// masks are not saved, because autograd refuses inference tensors, and a mask may well be one.
class AttentionFunction final : public Differentiable {
 public:
  AttentionFunction(const Backend& backend, Call call) : backend_(backend), call_(std::move(call)) {
    if (!torch::GradMode::is_enabled()) return;
    Captured held;
    call_.rule.mask.tensors(held);
    call_.rule.score.tensors(held);
    unchanged_ = Unchanged(held);
  }

  Tensors forward(const Tensors& x) override {
    const auto result = backend_.run({x[0], x[1], x[2]}, call_);
    Tensors outputs{result.output, result.lse};
    if (result.softmax.defined()) outputs.push_back(result.softmax);
    return outputs;
  }

  Tensors backward(const Tensors& x, const Tensors& grads) override {
    unchanged_.check("attention");
    const Qkv t{x[0], x[1], x[2]};
    const Cotangents from{grads[0], grads[1]};
    if (torch::GradMode::is_enabled() || (!from.output.defined() && !from.lse.defined())) {
      return reference_backward(call_, t, from);
    }
    const auto output = x.begin() + 3 + static_cast<int64_t>(call_.learning().size());
    const OutputAndLse result{output[0], output[1],
                              x.end() - output > 2 ? output[2] : torch::Tensor()};
    const auto g = backend_.run_backward(t, call_, result, from);
    Tensors grads_in{g.q, g.k, g.v};
    grads_in.insert(grads_in.end(), g.learning.begin(), g.learning.end());
    return grads_in;
  }

  bool saves_outputs() const override { return true; }

 private:
  const Backend& backend_;
  Call call_;
  Unchanged unchanged_;
};

ATTZOO_API OutputAndLse run(const Backend& backend, const Qkv& t, Call call) {
  Tensors inputs{t.q, t.k, t.v};
  for (const auto& l : call.learning()) inputs.push_back(l);
  call.learns = torch::GradMode::is_enabled() &&
                std::any_of(inputs.begin(), inputs.end(),
                            [](const torch::Tensor& x) { return x.requires_grad(); });
  const auto result =
      differentiable(c10::make_intrusive<AttentionFunction>(backend, std::move(call)), inputs);
  return {result[0], result[1]};
}

}  // namespace attzoo::core

#endif
