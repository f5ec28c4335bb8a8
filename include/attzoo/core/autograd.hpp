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

#ifndef ATTZOO_COMPILED
#include <attzoo/core/autograd.ipp>
#endif
