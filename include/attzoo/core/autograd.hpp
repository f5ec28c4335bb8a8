#pragma once
/// \file
/// Functions of tensors with a backward pass of their own.

#include <attzoo/config.hpp>

#include <torch/types.h>

#include <vector>

namespace attzoo::core {

using Tensors = std::vector<torch::Tensor>;

/// Such a function, and what it holds from the forward to the backward pass. All are one type to
/// autograd: LibTorch's template for them takes seconds to compile for each.
class Differentiable : public torch::CustomClassHolder {
 public:
  /// Runs without grad mode.
  virtual Tensors forward(const Tensors& inputs) = 0;
  /// The gradients of the inputs, in their order, from those of the outputs; undefined ones are
  /// zero. `saved` are the inputs if saves_inputs(), and then the outputs if saves_outputs():
  /// autograd notices if they were changed in place. Grad mode is on where a graph of the gradients
  /// is asked for.
  virtual Tensors backward(const Tensors& saved, const Tensors& grads) = 0;
  virtual bool saves_inputs() const { return true; }
  virtual bool saves_outputs() const { return false; }
};

/// Whether anybody may ask for a derivative of what is computed from these now.
ATTZOO_API bool is_recorded(const Tensors& inputs);

/// Runs f once under autograd; throws c10::NotImplementedError under Python's compiled autograd.
ATTZOO_API Tensors differentiable(c10::intrusive_ptr<Differentiable> f, const Tensors& inputs);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <torch/csrc/autograd/custom_function.h>
#include <torch/version.h>

#include <algorithm>

namespace attzoo::core {
struct AutogradFunction;
}  // namespace attzoo::core

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 15
/// What CppNode<> has for compiled autograd takes seconds to compile, and these functions cannot be
/// traced.
namespace torch::autograd {

template <>
ATTZOO_API void CppNode<attzoo::core::AutogradFunction>::compiled_args(CompiledNodeArgs&) const {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "attzoo: compiled autograd is not supported");
}
template <>
ATTZOO_API variable_list CppNode<attzoo::core::AutogradFunction>::apply_with_saved(
    const variable_list&, SwapSavedVariables&) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "attzoo: compiled autograd is not supported");
}

}  // namespace torch::autograd
#endif

namespace attzoo::core {

struct AutogradFunction : torch::autograd::Function<AutogradFunction> {
  using Context = torch::autograd::AutogradContext;

  static Tensors forward(Context* context, const c10::intrusive_ptr<Differentiable>& f,
                         at::TensorList inputs) {
    auto saved = inputs.vec();
    auto outputs = f->forward(saved);
    if (!f->saves_inputs()) saved.clear();
    if (f->saves_outputs()) saved.insert(saved.end(), outputs.begin(), outputs.end());
    context->save_for_backward(std::move(saved));
    context->set_materialize_grads(false);
    context->saved_data["f"] = torch::IValue::make_capsule(f);
    return outputs;
  }

  static Tensors backward(Context* context, const Tensors& grads) {
    const auto f =
        c10::static_intrusive_pointer_cast<Differentiable>(context->saved_data["f"].toCapsule());
    auto result = f->backward(context->get_saved_variables(), grads);
    result.insert(result.begin(), torch::Tensor());  // f has no gradient
    return result;
  }
};

ATTZOO_API bool is_recorded(const Tensors& inputs) {
  const auto is_dual = [](const torch::Tensor& t) {
    return t.defined() && t._fw_grad(0).defined();
  };
  return torch::GradMode::is_enabled() || std::any_of(inputs.begin(), inputs.end(), is_dual);
}

ATTZOO_API Tensors differentiable(c10::intrusive_ptr<Differentiable> f, const Tensors& inputs) {
  if (!is_recorded(inputs)) return f->forward(inputs);
  return AutogradFunction::apply(f, at::TensorList(inputs));
}

}  // namespace attzoo::core

#endif
