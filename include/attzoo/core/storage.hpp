#pragma once
/// \file
/// Tensors that are no plain array of numbers: recognised before anything reads their memory.

#include <attzoo/kernel/compiler.hpp>

#include <torch/types.h>

#include <string>

namespace attzoo::core {

/// Why t is not a strided tensor whose numbers can be read, for an error; empty if it is one.
/// Named are undefined, nested, sparse and meta tensors, and those whose storage is missing or too
/// small for their sizes and strides.
ATTZOO_API std::string storage_problem(const torch::Tensor& t);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/storage.ipp>
#endif
