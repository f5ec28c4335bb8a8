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

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/pair_products.hpp>

namespace attzoo::core {

/// What the state before adds to the sums over the tokens, and what they leave behind.
ATTZOO_API Recurred with_states(const Recurrence& x, torch::Tensor sums, bool with_state) {
  Recurred y{std::move(sums)};
  if (x.state.defined()) y.out = y.out + torch::matmul(x.q, x.state);
  if (!with_state) return y;
  y.state = torch::matmul(x.k.transpose(-2, -1), x.v);
  if (x.state.defined()) y.state = x.state + y.state;
  return y;
}

ATTZOO_API Recurred PlainRecurrence::run(const Recurrence& x, bool with_state) const {
  return with_states(x, scan(x.q, x.k, x.v, x.reverse), with_state);
}

ATTZOO_API Recurred PlainRecurrence::step(const Recurrence& x, bool with_state) const {
  const auto score = torch::matmul(x.q, x.k.transpose(-2, -1));
  return with_states(x, torch::matmul(score, x.v), with_state);
}

ATTZOO_API Recurrence PlainRecurrence::run_backward(const Recurrence& x,
                                                    const Recurred& grad) const {
  return plain_gradients(
      x, grad, [this](const Recurrence& part, bool with_state) { return run(part, with_state); });
}

// Within chunks by scores, from the chunks before by the running sum of their k^T v.
ATTZOO_API torch::Tensor ChunkedScan::scan(const torch::Tensor& q, const torch::Tensor& k,
                                           const torch::Tensor& v, bool reverse) const {
  constexpr int64_t kChunk = 128;
  if (q.numel() == 0 || v.numel() == 0) {
    return torch::zeros({q.size(0), q.size(1), q.size(2), v.size(3)}, v.options());
  }
  const int64_t n = q.size(2), chunks = (n + kChunk - 1) / kChunk;
  const auto split = [&](const torch::Tensor& t) {  // [B, H, chunks, kChunk, features]
    return torch::constant_pad_nd(t, {0, 0, 0, chunks * kChunk - n}).unflatten(2, {chunks, kChunk});
  };
  const auto qc = split(q), kc = split(k), vc = split(v);
  const auto square = torch::ones({kChunk, kChunk}, q.options().dtype(torch::kBool));
  const auto visible = reverse ? square.triu() : square.tril();
  const auto flat = [](const torch::Tensor& t) { return t.flatten(1, 2); };  // chunks are heads
  const auto near = sum_over_pairs(pair_products(flat(qc), flat(kc), visible), flat(vc), visible)
                        .unflatten(1, {q.size(1), chunks});
  auto sums = torch::matmul(kc.transpose(-2, -1), vc);  // [B, H, chunks, F, E]
  if (reverse) sums = sums.flip(2);
  // The chunks before, moved on by one: nothing is added and taken away again.
  auto before = torch::constant_pad_nd(sums.slice(2, 0, chunks - 1), {0, 0, 0, 0, 1, 0}).cumsum(2);
  if (reverse) before = before.flip(2);
  return (near + torch::matmul(qc, before)).flatten(2, 3).slice(2, 0, n);
}

}  // namespace attzoo::core

#endif
