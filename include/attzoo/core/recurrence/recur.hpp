#pragma once
/// \file
/// Linear recurrences, by the best way that their device has.

#include <attzoo/config.hpp>
#include <attzoo/core/recurrence/backend.hpp>

namespace attzoo::core {

/// Differentiable any number of times: O(n F E) time and O(n (F + E)) memory, the states inside of
/// chunks computed again for the gradients. By definition while eager_reference() holds. Sums and
/// states are float32, of float64 tensors float64.
ATTZOO_API Recurred recur(const Recurrence& x);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/autograd.hpp>
#include <attzoo/core/choose.hpp>
#include <attzoo/core/cpu/recurrence.hpp>
#include <attzoo/core/recurrence/by_tensors.hpp>

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

namespace attzoo::core {

/// The first backend that takes it, or null: chunks of tensors.
ATTZOO_API const RecurrenceBackend* backend_of(const Recurrence& x) {
  static const CpuRecurrence cpu;
  const std::array<const RecurrenceBackend*, 1> in_order{&cpu};
  return choose(in_order, x);
}

/// Inputs q, k, v and the state, then those of decay, p, beta, a and b that there are.
class Recur final : public Differentiable {
 public:
  explicit Recur(const Recurrence& x) : like_(x) {
    like_.state = x.v;  // there is always one
    for (auto* t : like_.tensors()) *t = t->defined() ? torch::empty({0}) : torch::Tensor();
  }
  static Tensors inputs(Recurrence x) {
    x.state = by_tensors::first_state(x);
    return inputs_of(x);
  }

  Tensors forward(const Tensors& tensors) override {
    const auto x = of(tensors);
    if (const auto* backend = backend_of(x)) {
      auto y = backend->run(x);
      return {y.out, y.state};
    }
    const auto y = by_tensors::Chunks(x).run(&states_);
    return {y.out.to(x.v.scalar_type()), y.state};
  }

  Tensors backward(const Tensors& tensors, const Tensors& grads) override {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    if (!grads[0].defined() && !grads[1].defined()) return Tensors(tensors.size());
    const auto x = of(tensors);
    if (is_recorded({}))
      return gradients(by_tensors::Chunks(x).run(), grads, tensors, /*recorded=*/true);
    if (const auto* backend = backend_of(x)) {
      return inputs_of(backend->run_backward(x, {grads[0], grads[1]}));
    }
    const by_tensors::Chunks chunks(x);
    if (states_.empty()) chunks.run(&states_);
    std::vector<Tensors> parts(tensors.size());  // of each input, the last chunk first
    auto of_state = grads[1];
    for (int64_t i = chunks.count() - 1; i >= 0; --i) {
      const torch::AutoGradMode recording(true);
      auto leaves = inputs(chunks.of(i, states_[static_cast<size_t>(i)]));
      for (auto& t : leaves) t = t.detach().requires_grad_();
      auto its = of(leaves);
      its.run = chunks.of(i, {}).run;
      const auto y = by_tensors::chunk(its, chunks.document(i));
      const int64_t begin = i * chunks.size();
      const auto of_out =
          grads[0].defined() ? grads[0].slice(2, begin, begin + y.out.size(2)) : grads[0];
      const auto d = gradients(y, {of_out, of_state}, leaves, /*recorded=*/false);
      for (size_t input = 0; input < d.size(); ++input) parts[input].push_back(d[input]);
      of_state = d[kState];
    }
    Tensors result;
    for (auto& of_chunks : parts) {
      std::reverse(of_chunks.begin(), of_chunks.end());
      result.push_back(torch::cat(of_chunks, 2));
    }
    result[kState] = of_state;
    return result;
  }

 private:
  static constexpr size_t kState = 3;

  static Tensors inputs_of(Recurrence x) {
    Tensors all;
    for (const auto* t : x.tensors()) {
      if (t->defined()) all.push_back(*t);
    }
    return all;
  }
  Recurrence of(const Tensors& from) const {
    auto x = like_;
    size_t next = 0;
    for (auto* t : x.tensors()) {
      if (t->defined()) *t = from[next++];
    }
    return x;
  }
  /// Of all inputs, zeros where nothing depends on one.
  static Tensors gradients(const Recurred& y, const Tensors& grads, const Tensors& inputs,
                           bool recorded) {
    Tensors outputs, of_outputs, wanted;
    for (const auto& [t, g] : {std::pair{y.out, grads[0]}, {y.state, grads[1]}}) {
      if (!g.defined()) continue;
      outputs.push_back(t.to(g.scalar_type()));
      of_outputs.push_back(g);
    }
    for (const auto& t : inputs) {
      if (t.requires_grad()) wanted.push_back(t);
    }
    const auto found = torch::autograd::grad(outputs, wanted, of_outputs, std::nullopt, recorded,
                                             /*allow_unused=*/true);
    Tensors all;
    size_t next = 0;
    for (const auto& t : inputs) {
      auto g = t.requires_grad() ? found[next++] : torch::Tensor();
      all.push_back(g.defined() ? g : torch::zeros_like(t));
    }
    return all;
  }

  Recurrence like_;  // which tensors there are, and all that is none of them
  std::vector<torch::Tensor> states_;
};

ATTZOO_API Recurred recur(const Recurrence& x) {
  constexpr int64_t kFew = 4;
  const bool few = x.q.size(2) <= kFew && !backend_of(x);
  if (eager_reference() || few || x.q.numel() == 0 || x.v.numel() == 0) {
    const auto y = by_tensors::run_by_tokens(x);
    return {y.out.to(x.v.scalar_type()), y.state};
  }
  const auto y = differentiable(c10::make_intrusive<Recur>(x), Recur::inputs(x));
  return {y[0], y[1]};
}

}  // namespace attzoo::core

#endif
