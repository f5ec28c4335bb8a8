#pragma once
/// \file
/// The short causal convolution of each channel with the latest tokens, which stands before many
/// recurrences.

#include <attzoo/config.hpp>
#include <attzoo/core/recurrence/convolution.hpp>

namespace attzoo::core {

/// The output [B, n, C] in x's dtype, summed in float32 or float64, by the best way that the device
/// has; by tensors while eager_reference() holds. Differentiable any number of times.
ATTZOO_API torch::Tensor convolve(const Convolution& c);

/// The latest K - 1 tokens, [B, K - 1, C]: of the last document alone, zeros before it.
ATTZOO_API torch::Tensor state_behind(const Convolution& c);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/autograd.hpp>
#include <attzoo/core/checks.hpp>
#include <attzoo/core/choose.hpp>
#include <attzoo/core/cpu/short_convolution.hpp>

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/autograd.h>

#include <optional>

namespace attzoo::core {

namespace convolution {

/// The tokens [first, first + length), counted from the state's first one on.
inline torch::Tensor tokens(const Convolution& c, int64_t first, int64_t length) {
  const int64_t before = c.before();
  if (first >= before) return c.x.narrow(1, first - before, length);
  const auto state =
      c.state.defined() ? c.state : torch::zeros({c.x.size(0), before, c.x.size(2)}, c.x.options());
  if (first + length <= before) return state.narrow(1, first, length);
  return torch::cat({state.slice(1, first), c.x.narrow(1, 0, first + length - before)}, 1);
}

/// t where the tokens [first, first + length(t)) have the document `run` [1 or B, . or 1], else 0.
inline torch::Tensor of_document(const Convolution& c, const torch::Tensor& t, int64_t first,
                                 const torch::Tensor& run) {
  const auto before = torch::zeros({c.run.size(0), c.before()}, c.run.options());
  const auto its = torch::cat({before, c.run}, 1).narrow(1, first, t.size(1));
  return torch::where((its == run).unsqueeze(-1), t, torch::zeros({}, t.options()));
}

/// The definition, on any device.
inline torch::Tensor by_definition(const Convolution& c) {
  const auto dtype = compute_dtype(c.x);
  const auto weight = c.weight.to(dtype);
  torch::Tensor sum;
  for (int64_t tap = 0; tap <= c.before(); ++tap) {
    auto x = tokens(c, tap, c.x.size(1));
    if (c.run.defined() && tap < c.before()) x = of_document(c, x, tap, c.run);
    const auto term = x.to(dtype) * weight.select(1, tap);
    sum = sum.defined() ? sum + term : term;
  }
  if (c.bias.defined()) sum = sum + c.bias.to(dtype);
  return (c.silu ? torch::silu(sum) : sum).to(c.x.scalar_type());
}

/// Inputs x and weight, and bias and state where there are such.
class Convolve final : public Differentiable {
 public:
  explicit Convolve(const Convolution& c)
      : biased_(c.bias.defined()), goes_on_(c.state.defined()), run_(c.run), silu_(c.silu) {}

  Tensors forward(const Tensors& tensors) override { return {convolve_on_cpu(of(tensors))}; }

  Tensors backward(const Tensors& tensors, const Tensors& grads) override {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    if (!grads[0].defined()) return Tensors(tensors.size());
    if (is_recorded({})) return recorded_gradients(tensors, grads[0]);
    return inputs(gradients_on_cpu(of(tensors), grads[0]));
  }

  static Tensors inputs(const Convolution& c) {
    Tensors all{c.x, c.weight};
    for (const auto& t : {c.bias, c.state}) {
      if (t.defined()) all.push_back(t);
    }
    return all;
  }

 private:
  Convolution of(const Tensors& t) const {
    return {t[0], t[1], biased_ ? t[2] : torch::Tensor(), goes_on_ ? t.back() : torch::Tensor(),
            run_, silu_};
  }
  Tensors recorded_gradients(const Tensors& tensors, const torch::Tensor& grad) const {
    Tensors wanted;
    for (const auto& t : tensors) {
      if (t.requires_grad()) wanted.push_back(t);
    }
    const auto found =
        torch::autograd::grad({by_definition(of(tensors))}, wanted, {grad}, std::nullopt,
                              /*create_graph=*/true, /*allow_unused=*/true);
    Tensors all;
    size_t next = 0;
    for (const auto& t : tensors) {
      all.push_back(t.requires_grad() ? found[next++] : torch::Tensor());
    }
    return all;
  }

  bool biased_, goes_on_;
  torch::Tensor run_;
  bool silu_;
};

}  // namespace convolution

ATTZOO_API torch::Tensor convolve(const Convolution& c) {
  if (eager_reference() || !takes_on_cpu(c)) return convolution::by_definition(c);
  using convolution::Convolve;
  return differentiable(c10::make_intrusive<Convolve>(c), Convolve::inputs(c))[0];
}

ATTZOO_API torch::Tensor state_behind(const Convolution& c) {
  const int64_t n = c.x.size(1);
  auto latest = convolution::tokens(c, n, c.before());
  if (!c.run.defined() || n == 0) {
    const bool is_new = 0 < n && n < c.before();  // else a view of what may change
    return is_new ? latest : latest.clone();
  }
  return convolution::of_document(c, latest, n, c.run.narrow(1, n - 1, 1));
}

}  // namespace attzoo::core

#endif
