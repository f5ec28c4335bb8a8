#pragma once
// Masks and changes of scores beside what they say of one pair.

#include <attzoo/kernel/modifier/callable_forms.hpp>
#include <attzoo/kernel/modifier/make_modifier.hpp>
#include <attzoo/kernel/modifier/mask_forms.hpp>
#include <attzoo/kernel/modifier/score_forms.hpp>

#include <functional>
#include <utility>

namespace attzoo::kernel {

struct AnyMask {
  Mask mask;
  std::function<bool(int b, int h, int q, int kv)> pair;
};

template <class M>
AnyMask mask_of(M form) {
  return {make_mask(form), form};
}
inline AnyMask everybody() {
  return {{}, [](int, int, int, int) { return true; }};
}
inline AnyMask operator&&(const AnyMask& x, const AnyMask& y) {
  return {all_of(x.mask, y.mask), [x = x.pair, y = y.pair](int b, int h, int q, int kv) {
            return x(b, h, q, kv) && y(b, h, q, kv);
          }};
}
inline AnyMask operator||(const AnyMask& x, const AnyMask& y) {
  return {any_of(x.mask, y.mask), [x = x.pair, y = y.pair](int b, int h, int q, int kv) {
            return x(b, h, q, kv) || y(b, h, q, kv);
          }};
}
inline AnyMask operator!(const AnyMask& x) {
  return {none_of(x.mask), [x = x.pair](int b, int h, int q, int kv) { return !x(b, h, q, kv); }};
}

template <class T>
struct AnyScore {
  Score<T> score;
  std::function<Dual<double>(Dual<double> s, Index b, Index h, Index q, Index kv)> pair;
};

/// `exact`: the same form where it computes in double.
template <class T, class S, class Exact>
AnyScore<T> score_of(S form, Exact exact) {
  return {make_score<T>(form), [exact](Dual<double> s, Index b, Index h, Index q, Index kv) {
            return exact(s, b, h, q, kv);
          }};
}
template <class T, class S>
AnyScore<T> score_of(S form) {
  return score_of<T>(form, form);
}
template <class T>
AnyScore<T> unchanged() {
  return {{}, [](Dual<double> s, Index, Index, Index, Index) { return s; }};
}
template <class T>
AnyScore<T> operator+(const AnyScore<T>& x, const AnyScore<T>& y) {
  return {chain(x.score, y.score),
          [x = x.pair, y = y.pair](Dual<double> s, Index b, Index h, Index q, Index kv) {
            return y(x(s, b, h, q, kv), b, h, q, kv);
          }};
}

}  // namespace attzoo::kernel
