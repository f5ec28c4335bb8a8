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

#ifdef ATTZOO_DEFINE_CORE

#include <ATen/ops/as_strided_native.h>

namespace attzoo::core {

ATTZOO_API bool is_differentiated(const torch::Tensor& t) {
  return (torch::GradMode::is_enabled() && t.requires_grad()) || t._fw_grad(0).defined();
}

/// Whether viewed() may be used: nobody but the numbers' owner has to know of the view.
inline bool needs_no_call(const torch::Tensor& t) {
  return t.device().is_cpu() && t.layout() == torch::kStrided && t.has_storage() &&
         !is_differentiated(t);
}

/// What t.as_strided(sizes, strides, offset) does when it is called.
inline torch::Tensor viewed(const torch::Tensor& t, torch::IntArrayRef sizes,
                            torch::IntArrayRef strides, int64_t offset) {
  auto view = at::native::as_strided_tensorimpl(t, sizes, strides, offset);
  view.unsafeGetTensorImpl()->set_version_counter(t.unsafeGetTensorImpl()->version_counter());
  return view;
}

ATTZOO_API torch::Tensor view_rows(const torch::Tensor& t, int64_t first, int64_t length) {
  if (!needs_no_call(t)) return t.narrow(2, first, length);
  return viewed(t, {t.size(0), t.size(1), length, t.size(3)}, t.strides(),
                t.storage_offset() + first * t.stride(2));
}

ATTZOO_API torch::Tensor split_heads(const torch::Tensor& t, int64_t size) {
  const int64_t B = t.size(0), N = t.size(1), heads = t.size(2) / size;
  if (!needs_no_call(t)) return t.view({B, N, heads, size}).transpose(1, 2);
  const int64_t step = t.stride(2);
  return viewed(t, {B, heads, N, size}, {t.stride(0), size * step, t.stride(1), step},
                t.storage_offset());
}

ATTZOO_API torch::Tensor join_heads(const torch::Tensor& t) {
  const int64_t size = t.size(3);
  if (!needs_no_call(t) || t.stride(1) != size * t.stride(3)) return t.transpose(1, 2).flatten(2);
  return viewed(t, {t.size(0), t.size(2), t.size(1) * size},
                {t.stride(0), t.stride(2), t.stride(3)}, t.storage_offset());
}

}  // namespace attzoo::core

#endif
