#pragma once
/// \file
/// Views of tensors: where few tokens are computed, ATen's calls for them take longer than the
/// work.

#include <attzoo/config.hpp>

#include <torch/types.h>

namespace attzoo::core {

/// Whether a derivative with respect to t is asked for, in either mode of autograd.
ATTZOO_API bool is_differentiated(const torch::Tensor& t);

/// The first `length` rows of t [B, heads, rows, features] from row `first` on.
ATTZOO_API torch::Tensor view_rows(const torch::Tensor& t, int64_t first, int64_t length);

/// t [B, N, heads * size] -> [B, heads, N, size]. Throws c10::Error where no view of t is that.
ATTZOO_API torch::Tensor split_heads(const torch::Tensor& t, int64_t size);

/// The reverse: t [B, heads, N, size] -> [B, N, heads * size], a view where heads lie inside of
/// positions in memory.
ATTZOO_API torch::Tensor join_heads(const torch::Tensor& t);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/views.ipp>
#endif
