#pragma once
// Definitions of score_forms.hpp.

#include <attzoo/core/cpu/score_forms.hpp>
#include <attzoo/kernel/modifier/make_modifier.hpp>
#include <attzoo/kernel/modifier/score_forms.hpp>

namespace attzoo::core {

/// The numbers of a captured tensor in the type that the kernel computes in.
template <class T>
torch::Tensor in_type(const torch::Tensor& t) {
  return plain(t.detach()).to(c10::CppTypeToScalarType<T>::value);
}

template <class T>
kernel::Score<T> cpu_form(const AlibiScore& m, const Shape& n, T) {
  const auto slopes = in_type<T>(m.slopes);
  const kernel::Alibi<T> form{shift(n), slopes.template const_data_ptr<T>(), step(slopes, 0)};
  return keeping(kernel::make_score<T>(form), {slopes});
}

template <class T>
kernel::Score<T> cpu_form(const SoftcapScore& m, const Shape&, T) {
  return kernel::make_score<T>(kernel::Softcap{m.cap});
}

template <class T>
kernel::Score<T> cpu_form(const TensorBias& m, const Shape&, T) {
  const auto t = in_type<T>(m.bias);
  const kernel::Bias<T> form{t.template const_data_ptr<T>(), step(t, 0), step(t, 1), step(t, 2),
                             step(t, 3)};
  return keeping(kernel::make_score<T>(form), {t});
}

template <class T>
kernel::Score<T> cpu_form(const DistanceScore& m, const Shape& n, T) {
  const auto values = in_type<T>(m.values.contiguous());
  const kernel::DistanceBias<T> form{values.template const_data_ptr<T>(), step(values, 0),
                                     static_cast<int>(n.L) - 1};
  return keeping(kernel::make_score<T>(form), {values});
}

}  // namespace attzoo::core
