#pragma once
// Definitions of mask_forms.hpp. What says which keys are reached is copied to the CPU where it is
// not there: other devices ask for nothing else.

#include <attzoo/core/cpu/mask_forms.hpp>
#include <attzoo/kernel/modifier/make_modifier.hpp>
#include <attzoo/kernel/modifier/mask_forms.hpp>

#include <algorithm>
#include <memory>

namespace attzoo::core {

/// Sides, sizes and rates as the kernel's 32-bit numbers; 2^30 is beyond any length.
inline int to_int(int64_t n) { return static_cast<int>(std::min(n, int64_t{1} << 30)); }

/// A bool tensor [1 or B, S].
ATTZOO_API std::shared_ptr<const kernel::Flags> flags_of(const torch::Tensor& t) {
  const auto flags = t.cpu().contiguous();
  return std::make_shared<kernel::Flags>(flags.const_data_ptr<bool>(),
                                         static_cast<int>(flags.size(0)),
                                         static_cast<int>(flags.size(1)));
}

ATTZOO_API kernel::Mask cpu_form(const FullMask&, const Shape&) { return {}; }

ATTZOO_API kernel::Mask cpu_form(const CausalMask& m, const Shape& n) {
  return kernel::make_mask(kernel::Window{static_cast<int>(m.offset(n)), to_int(kUnbounded), 0});
}

ATTZOO_API kernel::Mask cpu_form(const WindowMask& m, const Shape& n) {
  return kernel::make_mask(kernel::Window{shift(n), to_int(m.left), to_int(m.right)});
}

ATTZOO_API kernel::Mask cpu_form(const DilatedMask& m, const Shape& n) {
  // A rate beyond the lengths leaves the same pairs, and the kernel walks rate residues.
  const int64_t rate = std::min(m.rate, std::max<int64_t>({n.L, n.S, 1}));
  return kernel::make_mask(kernel::Dilated{shift(n), static_cast<int>(rate)});
}

ATTZOO_API kernel::Mask cpu_form(const SameBlockMask& m, const Shape& n) {
  return kernel::make_mask(
      kernel::Blocks{shift(n), to_int(m.size), to_int(m.period), to_int(m.offset), to_int(m.end)});
}

ATTZOO_API kernel::Mask cpu_form(const PrefixMask& m, const Shape& n) {
  return kernel::make_mask(kernel::Prefix{static_cast<int>(std::min(m.length, n.S))});
}

ATTZOO_API kernel::Mask cpu_form(const DocumentsMask& m, const Shape& n) {
  const auto of = document_ids(m.documents).cpu().contiguous();
  return kernel::make_mask(kernel::Documents{
      shift(n),
      std::make_shared<kernel::DocumentTable>(
          of.const_data_ptr<int64_t>(), static_cast<int>(of.size(0)), static_cast<int>(n.S))});
}

ATTZOO_API kernel::Mask cpu_form(const GlobalTokensMask& m, const Shape& n) {
  return kernel::make_mask(
      kernel::GlobalTokens{shift(n), flags_of(m.is_global), m.queries, m.keys});
}

ATTZOO_API kernel::Mask cpu_form(const TensorMask& m, const Shape&) {
  const auto mask = plain(m.mask);
  kernel::DenseMask form;
  form.data = mask.const_data_ptr<bool>();
  form.b = step(mask, 0);
  form.h = step(mask, 1);
  form.q = step(mask, 2);
  form.kv = step(mask, 3);
  // The same keys for all queries and heads, as key padding: what is forbidden is not reached.
  if (mask.size(1) == 1 && mask.size(2) == 1 && mask.size(3) > 1) {
    form.keys = flags_of(mask.flatten(1));
  }
  return keeping(kernel::make_mask(form), {mask});
}

ATTZOO_API kernel::Mask cpu_form(const BandMask& m, const Shape&) {
  const auto begin = m.begin.cpu(), end = m.end.cpu();
  return keeping(
      kernel::make_mask(kernel::Bands{begin.const_data_ptr<int>(), end.const_data_ptr<int>(),
                                      begin.stride(0), begin.stride(1)}),
      {begin, end});
}

}  // namespace attzoo::core
