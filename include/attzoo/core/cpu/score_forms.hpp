#pragma once
/// \file
/// The named score modifiers as the CPU's kernels take them, T = float or double.

#include <attzoo/core/cpu/mask_forms.hpp>
#include <attzoo/core/modifier/score_values.hpp>

namespace attzoo::core {

template <class T>
kernel::Score<T> cpu_form(const AlibiScore& m, const Shape& n, T);
template <class T>
kernel::Score<T> cpu_form(const SoftcapScore& m, const Shape& n, T);
template <class T>
kernel::Score<T> cpu_form(const TensorBias& m, const Shape& n, T);
template <class T>
kernel::Score<T> cpu_form(const DistanceScore& m, const Shape& n, T);
template <class T>
kernel::Score<T> cpu_form(const RelativeBiasScore& m, const Shape& n, T t) {
  return cpu_form(m.resolve(n), n, t);
}
template <class T>
kernel::Score<T> cpu_form(const SinkScore&, const Shape&, T) {
  return {};
}

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/cpu/score_forms.ipp>
#endif
