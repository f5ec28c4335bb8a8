#pragma once
/// \file
/// Masks and changes of scores from their forms (form.hpp): the loops over a tile, for each
/// instruction set. The named forms need nothing of this where the library attzoo::compiled has
/// them.

#include <attzoo/kernel/isa/isa.hpp>
#include <attzoo/kernel/modifier/form.hpp>
#include <attzoo/kernel/modifier/lane.hpp>

#include <limits>
#include <utility>

namespace attzoo::kernel {
/// Lanes in a loop of fixed length.
inline constexpr int kLaneBlock = 16;
}  // namespace attzoo::kernel

#define ATTZOO_BODY <attzoo/kernel/modifier/modify.inc>
#include <attzoo/kernel/isa/each.inc>

namespace attzoo::kernel {

namespace detail {
template <class M>
auto forbid_of() -> decltype(Mask::forbid) {
  ATTZOO_ON_THIS_CPU(forbid_of<M>());
}
template <class T, class S>
auto modify_of() -> decltype(Score<T>::modify) {
  ATTZOO_ON_THIS_CPU(modify_of<T, S>());
}
template <class T, class S>
auto collect_of() -> decltype(Score<T>::collect) {
  ATTZOO_ON_THIS_CPU(collect_of<T, S>());
}
}  // namespace detail

template <class M>
Mask make_mask(M form) {
  auto mask = reach_of(std::move(form));
  mask.forbid = detail::forbid_of<M>();
  return mask;
}

template <class T, class S>
Score<T> make_score(S form) {
  return {std::make_shared<const S>(std::move(form)), detail::modify_of<T, S>(),
          detail::collect_of<T, S>(), kTensors<S>, kAdditive<S>};
}

}  // namespace attzoo::kernel
