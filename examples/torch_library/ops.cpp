// attzoo as operators of PyTorch, for Python and for programs made by AOTInductor: a shared library
// that torch.ops.load_library() takes. Two of them, attention with a window and the gated delta
// rule, with what torch.compile asks for: kernels, shapes without numbers (Meta), and derivatives
// that are operators, too. More go the same way.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <attzoo/functional/attention.hpp>
#include <attzoo/functional/modifiers.hpp>
#include <attzoo/functional/recurrence.hpp>

#include <array>
#include <optional>
#include <tuple>

namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class Signature>
auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

/// Gradients of `inputs` by a call of f on leaves, whose outputs have the cotangents `grads`: what
/// an operator needs of its forward pass it computes again.
template <size_t N, class F>
auto gradients(std::array<Tensor, N> inputs, const variable_list& grads, const F& f) {
  torch::AutoGradMode enable(true);
  for (auto& t : inputs) t = t.detach().requires_grad_();
  const auto found = torch::autograd::grad(f(inputs), {inputs.begin(), inputs.end()}, grads);
  std::array<Tensor, N> result;
  std::copy(found.begin(), found.end(), result.begin());
  return std::apply([](auto... t) { return std::make_tuple(t...); }, result);
}

// ---- attention with a window
// ---------------------------------------------------------------------

using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Two window_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t left,
                     int64_t right) {
  const auto r = attzoo::attention(q, k, v, attzoo::window(left, right));
  return {r.output, r.lse};
}

Three window_attention_backward(const Tensor& grad_output, const Tensor& grad_lse, const Tensor& q,
                                const Tensor& k, const Tensor& v, int64_t left, int64_t right) {
  return gradients<3>({q, k, v}, {grad_output, grad_lse}, [&](const auto& x) {
    const auto [output, lse] = window_attention(x[0], x[1], x[2], left, right);
    return variable_list{output, lse};
  });
}

/// What lse and states are computed in.
at::ScalarType wide(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// The sizes that a result will have.
Two window_attention_meta(const Tensor& q, const Tensor&, const Tensor& v, int64_t, int64_t) {
  auto sizes = q.sym_sizes().vec();
  const auto lse = at::empty_symint({sizes[0], sizes[1], sizes[2]}, q.options().dtype(wide(q)));
  sizes[3] = v.sym_size(3);
  return {at::empty_symint(sizes, q.options()), lse};
}

Three window_attention_backward_meta(const Tensor&, const Tensor&, const Tensor& q, const Tensor& k,
                                     const Tensor& v, int64_t, int64_t) {
  return {at::empty_like(q), at::empty_like(k), at::empty_like(v)};
}

struct WindowAttention : torch::autograd::Function<WindowAttention> {
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k,
                               const Tensor& v, int64_t left, int64_t right) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({q, k, v});
    context->saved_data["left"] = left;
    context->saved_data["right"] = right;
    static const auto call = op<decltype(window_attention)>("attzoo::window_attention");
    const auto [output, lse] = call.call(q, k, v, left, right);
    return {output, lse};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    static const auto call =
        op<decltype(window_attention_backward)>("attzoo::window_attention_backward");
    const auto x = context->get_saved_variables();
    const auto [q, k, v] =
        call.call(grads[0], grads[1], x[0], x[1], x[2], context->saved_data["left"].toInt(),
                  context->saved_data["right"].toInt());
    return {q, k, v, {}, {}};
  }
};

Two window_attention_autograd(const Tensor& q, const Tensor& k, const Tensor& v, int64_t left,
                              int64_t right) {
  const auto r = WindowAttention::apply(q, k, v, left, right);
  return {r[0], r[1]};
}

// ---- the gated delta rule
// ------------------------------------------------------------------------

Two gated_delta_rule(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& decay,
                     const Tensor& beta) {
  const auto r = attzoo::recurrence(q, k, v, {.decay = decay, .beta = beta});
  return {r.output, r.state};
}

Five gated_delta_rule_backward(const Tensor& grad_output, const Tensor& grad_state, const Tensor& q,
                               const Tensor& k, const Tensor& v, const Tensor& decay,
                               const Tensor& beta) {
  return gradients<5>({q, k, v, decay, beta}, {grad_output, grad_state}, [](const auto& x) {
    const auto [output, state] = gated_delta_rule(x[0], x[1], x[2], x[3], x[4]);
    return variable_list{output, state};
  });
}

Two gated_delta_rule_meta(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor&,
                          const Tensor&) {
  const auto state = {v.sym_size(0), v.sym_size(1), k.sym_size(3), v.sym_size(3)};
  return {at::empty_symint(v.sym_sizes(), q.options()),
          at::empty_symint(state, q.options().dtype(wide(q)))};
}

Five gated_delta_rule_backward_meta(const Tensor&, const Tensor&, const Tensor& q, const Tensor& k,
                                    const Tensor& v, const Tensor& decay, const Tensor& beta) {
  return {at::empty_like(q), at::empty_like(k), at::empty_like(v), at::empty_like(decay),
          at::empty_like(beta)};
}

struct GatedDeltaRule : torch::autograd::Function<GatedDeltaRule> {
  static variable_list forward(AutogradContext* context, const Tensor& q, const Tensor& k,
                               const Tensor& v, const Tensor& decay, const Tensor& beta) {
    const at::AutoDispatchBelowADInplaceOrView below;
    context->save_for_backward({q, k, v, decay, beta});
    static const auto call = op<decltype(gated_delta_rule)>("attzoo::gated_delta_rule");
    const auto [output, state] = call.call(q, k, v, decay, beta);
    return {output, state};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    static const auto call =
        op<decltype(gated_delta_rule_backward)>("attzoo::gated_delta_rule_backward");
    const auto x = context->get_saved_variables();
    const auto [q, k, v, decay, beta] = call.call(grads[0], grads[1], x[0], x[1], x[2], x[3], x[4]);
    return {q, k, v, decay, beta};
  }
};

Two gated_delta_rule_autograd(const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& decay, const Tensor& beta) {
  const auto r = GatedDeltaRule::apply(q, k, v, decay, beta);
  return {r[0], r[1]};
}

}  // namespace

TORCH_LIBRARY(attzoo, m) {
  m.def("window_attention(Tensor q, Tensor k, Tensor v, int left, int right) -> (Tensor, Tensor)");
  m.def(
      "window_attention_backward(Tensor grad_output, Tensor grad_lse, Tensor q, Tensor k, Tensor "
      "v, "
      "int left, int right) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gated_delta_rule(Tensor q, Tensor k, Tensor v, Tensor decay, Tensor beta) -> (Tensor, "
      "Tensor)");
  m.def(
      "gated_delta_rule_backward(Tensor grad_output, Tensor grad_state, Tensor q, Tensor k, Tensor "
      "v, Tensor decay, Tensor beta) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

// On any device that has numbers.
TORCH_LIBRARY_IMPL(attzoo, CompositeExplicitAutograd, m) {
  m.impl("window_attention", window_attention);
  m.impl("window_attention_backward", window_attention_backward);
  m.impl("gated_delta_rule", gated_delta_rule);
  m.impl("gated_delta_rule_backward", gated_delta_rule_backward);
}
TORCH_LIBRARY_IMPL(attzoo, Meta, m) {
  m.impl("window_attention", window_attention_meta);
  m.impl("window_attention_backward", window_attention_backward_meta);
  m.impl("gated_delta_rule", gated_delta_rule_meta);
  m.impl("gated_delta_rule_backward", gated_delta_rule_backward_meta);
}
TORCH_LIBRARY_IMPL(attzoo, Autograd, m) {
  m.impl("window_attention", window_attention_autograd);
  m.impl("gated_delta_rule", gated_delta_rule_autograd);
}
