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
  /// Whether this problem is one that it runs, exactly, and better than by definition.
  virtual bool takes(const Qkv& t, const Call& call) const = 0;
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

#ifndef ATTZOO_COMPILED
#include <attzoo/core/attention/backend.ipp>
#endif
