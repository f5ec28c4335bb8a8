#pragma once
/// \file
/// The recurrence that forgets nothing, of causal linear attention.

#include <attzoo/config.hpp>
#include <attzoo/core/recurrence/backend.hpp>

namespace attzoo::core {

/// Its gradients are three such recurrences, two of which go the other way through time:
/// ```
/// dq = run(dO, v, k; S^T)    dk = reversed run(v, dO, q; dS^T)    dv = reversed run(k, q, dO; dS)
/// ```
/// and the gradient of the first state is the last of dv's. `run(x, with_state)` gives a Recurred.
template <class Run>
Recurrence plain_gradients(const Recurrence& x, const Recurred& grad, Run&& run) {
  const auto turned = [](const torch::Tensor& t) { return t.defined() ? t.transpose(-2, -1) : t; };
  const auto dq = run(Recurrence{grad.out, x.v, x.k, turned(x.state), x.reverse}, false);
  const auto dk = run(Recurrence{x.v, grad.out, x.q, turned(grad.state), !x.reverse}, false);
  const auto dv = run(Recurrence{x.k, x.q, grad.out, grad.state, !x.reverse}, x.state.defined());
  return {dq.out, dk.out, dv.out, dv.state};
}

/// All that there is to it, given its sums from a state of zeros.
class PlainRecurrence : public RecurrenceBackend {
 public:
  Recurred run(const Recurrence& x, bool with_state) const override;
  Recurrence run_backward(const Recurrence& x, const Recurred& grad) const override;
  Recurred step(const Recurrence& x, bool with_state) const override;

 protected:
  /// out_i = sum over j <= i of (q_i . k_j) v_j; reverse: over j >= i.
  virtual torch::Tensor scan(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                             bool reverse) const = 0;
};

/// By tensor operations, for any device: O(n F E) time, O(n F E / chunk) memory. Takes everything.
class ChunkedScan final : public PlainRecurrence {
 public:
  bool takes(const Recurrence&) const override { return true; }
  /// Differentiable by autograd, as it is made of its operations.
  torch::Tensor scan(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                     bool reverse) const override;
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/recurrence/plain.ipp>
#endif
