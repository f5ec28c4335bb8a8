#pragma once
/// \file
/// The changes of scores that have names, as the kernel sees them: plain numbers and pointers.

#include <attzoo/kernel/modifier/form.hpp>
#include <attzoo/kernel/modifier/lane.hpp>

#include <limits>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class T>
struct Alibi {
  int shift;
  const T* slopes;  // [H]
  int64_t step;
  template <class R, class I>
  ATTZOO_ALWAYS_INLINE R operator()(R s, I, I h, I q, I kv) const {
    return s - Real<T>(slopes[h.v * step]) * distance(q.v, kv.v);
  }
  template <class I>
  ATTZOO_ALWAYS_INLINE T gradient(T, T g, I, I h, I q, I kv, const TensorGradient<T>* to) const {
    if (to->data) to->data[h.v * to->h] -= g * static_cast<T>(distance(q.v, kv.v));
    return g;
  }

 private:
  ATTZOO_ALWAYS_INLINE int distance(int q, int kv) const {
    const int d = q + shift - kv;
    return d < 0 ? -d : d;
  }
};
template <class T>
constexpr int kTensors<Alibi<T>> = 1;

struct Softcap {
  double cap;
  template <class R, class I>
  ATTZOO_ALWAYS_INLINE R operator()(R s, I, I, I, I) const {
    return cap * tanh((1 / cap) * s);
  }
};

/// A tensor [B, H, L, S] by strides, added; null: nothing. Its -inf hides a pair, whatever the
/// score.
template <class T>
struct Bias {
  const T* data = nullptr;
  int64_t b = 0, h = 0, q = 0, kv = 0;
  ATTZOO_ALWAYS_INLINE bool changes() const { return data != nullptr; }
  template <class R, class I>
  ATTZOO_ALWAYS_INLINE R operator()(R s, I ib, I ih, I iq, I ikv) const {
    if (!data) return s;
    const T bias = data[ib.v * b + ih.v * h + iq.v * q + ikv.v * kv];
    const R added(Real<T>{bias});
    return where(bias == -std::numeric_limits<T>::infinity(), added, s + added);
  }
  template <class I>
  ATTZOO_ALWAYS_INLINE T gradient(T, T g, I ib, I ih, I iq, I ikv,
                                  const TensorGradient<T>* to) const {
    if (to->data) to->data[ib.v * to->b + ih.v * to->h + iq.v * to->q + ikv.v * to->kv] += g;
    return g;
  }
};
template <class T>
constexpr int kTensors<Bias<T>> = 1;

/// A tensor [H, L + S - 1] added by distance: the place of kv - q = 0 is `zero`.
template <class T>
struct DistanceBias {
  const T* data;
  int64_t h;
  int zero;
  template <class R, class I>
  ATTZOO_ALWAYS_INLINE R operator()(R s, I, I ih, I iq, I ikv) const {
    return s + R(Real<T>(data[ih.v * h + (ikv.v - iq.v + zero)]));
  }
  template <class I>
  ATTZOO_ALWAYS_INLINE T gradient(T, T g, I, I ih, I iq, I ikv, const TensorGradient<T>* to) const {
    if (to->data) to->data[ih.v * to->h + (ikv.v - iq.v + zero) * to->kv] += g;
    return g;
  }
};
template <class T>
constexpr int kTensors<DistanceBias<T>> = 1;

#ifdef ATTZOO_COMPILED
extern template Score<float> make_score<float>(Alibi<float>);
extern template Score<float> make_score<float>(Softcap);
extern template Score<float> make_score<float>(Bias<float>);
extern template Score<float> make_score<float>(DistanceBias<float>);
extern template Score<double> make_score<double>(Alibi<double>);
extern template Score<double> make_score<double>(Softcap);
extern template Score<double> make_score<double>(Bias<double>);
extern template Score<double> make_score<double>(DistanceBias<double>);
#endif

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/modifier/make_modifier.hpp>
#endif
