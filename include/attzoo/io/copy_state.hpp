#pragma once
/// \file
/// Numbers into the parameters and buffers of a module: what fits, and the copy, which cannot fail
/// halfway.

#include <attzoo/config.hpp>

#include <torch/types.h>

#include <map>
#include <string>

namespace attzoo::core {

/// What keeps the numbers of `numbers`, which were made of the tensor `given` or are it, from being
/// copied into `own`; empty if nothing does. With `convert`, a floating tensor may be given for one
/// of another floating dtype, unless a number would become infinite.
ATTZOO_API std::string cannot_copy(const torch::Tensor& own, const torch::Tensor& given,
                                   const torch::Tensor& numbers, bool convert = false);

/// Whether two tensors are the same memory in the same shape, as one parameter under two names is.
ATTZOO_API bool is_same_tensor(const torch::Tensor& a, const torch::Tensor& b);

/// One tensor under two names, as in a wrapper around the same module twice, cannot become two: a
/// line for each that should; empty if none.
ATTZOO_API std::string check_shared(const std::map<std::string, torch::Tensor>& own,
                                    const std::map<std::string, torch::Tensor>& state);

/// A line for an error where no tensor has a name of the module's: whose names they may be.
ATTZOO_API std::string no_name_fits(const std::map<std::string, torch::Tensor>& own,
                                    const std::map<std::string, torch::Tensor>& state);

/// Copies what fits: every source is ready before the first number changes, so nothing can fail
/// halfway, and no source changes because it is itself a part of the module.
ATTZOO_API void copy_state(const std::map<std::string, torch::Tensor>& own,
                           const std::map<std::string, torch::Tensor>& state);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/io/copy_state.ipp>
#endif
