#pragma once
/// \file
/// The named masks as the CPU's kernels take them.

#include <attzoo/core/modifier/mask_values.hpp>
#include <attzoo/kernel/modifier/modifier.hpp>

namespace attzoo::core {

ATTZOO_API kernel::Mask cpu_form(const FullMask& m, const Shape& n);
ATTZOO_API kernel::Mask cpu_form(const CausalMask& m, const Shape& n);
ATTZOO_API kernel::Mask cpu_form(const WindowMask& m, const Shape& n);
ATTZOO_API kernel::Mask cpu_form(const DilatedMask& m, const Shape& n);
ATTZOO_API kernel::Mask cpu_form(const SameBlockMask& m, const Shape& n);
ATTZOO_API kernel::Mask cpu_form(const PrefixMask& m, const Shape& n);
ATTZOO_API kernel::Mask cpu_form(const DocumentsMask& m, const Shape& n);
ATTZOO_API kernel::Mask cpu_form(const GlobalTokensMask& m, const Shape& n);
ATTZOO_API kernel::Mask cpu_form(const TensorMask& m, const Shape& n);
ATTZOO_API kernel::Mask cpu_form(const BandMask& m, const Shape& n);

/// What takes a query to its place among the keys: the last query meets the last key.
inline int shift(const Shape& n) { return static_cast<int>(n.S - n.L); }

/// The stride of a dimension that may broadcast.
inline int64_t step(const torch::Tensor& t, int64_t d) { return t.size(d) == 1 ? 0 : t.stride(d); }

/// The same form, with the tensors that it points into.
template <class Form>
Form keeping(Form form, Captured tensors) {
  using Both = std::pair<std::shared_ptr<const void>, Captured>;
  const auto both = std::make_shared<const Both>(form.self, std::move(tensors));
  form.self = {both, both->first.get()};
  return form;
}

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/cpu/mask_forms.ipp>
#endif
