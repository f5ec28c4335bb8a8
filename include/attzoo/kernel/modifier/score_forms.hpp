#pragma once
/// \file
/// The changes of scores that have names, as the kernel sees them: plain numbers and pointers.

#include <attzoo/kernel/modifier/form.hpp>
#include <attzoo/kernel/modifier/lane.hpp>

#include <limits>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// s - slope(h) |q - kv|, of a query's place among the keys. Slope: what gives a head's.
template <class Slope>
struct Alibi {
  Slope slope;
  template <class S, class B, class H, class Q, class K>
  ATTZOO_ALWAYS_INLINE auto operator()(S s, B, H h, Q q, K kv) const {
    return s - slope(h) * abs(q - kv);
  }
};
/// cap tanh(s / cap)
struct Softcap {
  double cap;
  template <class S, class B, class H, class Q, class K>
  ATTZOO_ALWAYS_INLINE auto operator()(S s, B, H, Q, K) const {
    return cap * tanh(s / cap);
  }
};

// Tensors come with who owns their memory.

/// Slopes [H], `step` apart.
template <class T>
struct Slopes {
  const T* data;
  int64_t step;
  std::shared_ptr<const void> owner = nullptr;
  ATTZOO_ALWAYS_INLINE Real<T> operator()(Index h) const { return data[h.v * step]; }
};
template <class T>
struct AlibiOfTensor {
  Alibi<Slopes<T>> f;
  int shift;
  template <class R, class I>
  ATTZOO_ALWAYS_INLINE R operator()(R s, I b, I h, I q, I kv) const {
    return f(s, b, h, I{q.v + shift}, kv);
  }
  template <class I>
  ATTZOO_ALWAYS_INLINE T gradient(T, T g, I, I h, I q, I kv, const TensorGradient<T>* to) const {
    if (to->data) to->data[h.v * to->h] -= g * static_cast<T>(abs(I{q.v + shift} - kv).v);
    return g;
  }
};
template <class T>
constexpr int kTensors<AlibiOfTensor<T>> = 1;
template <class T>
constexpr bool kAdditive<AlibiOfTensor<T>> = true;

/// A tensor [B, H, L, S] by strides, added. Its -inf hides a pair, whatever the
/// score.
template <class T>
struct Bias {
  const T* data;
  int64_t b, h, q, kv;
  std::shared_ptr<const void> owner = nullptr;
  template <class R, class I>
  ATTZOO_ALWAYS_INLINE R operator()(R s, I ib, I ih, I iq, I ikv) const {
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
template <class T>
constexpr bool kAdditive<Bias<T>> = true;

/// A tensor [H, L + S - 1] added by distance: the place of kv - q = 0 is `zero`.
template <class T>
struct DistanceBias {
  const T* data;
  int64_t h;
  int zero;
  std::shared_ptr<const void> owner = nullptr;
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
template <class T>
constexpr bool kAdditive<DistanceBias<T>> = true;

/// What lies between query and key on a falling scale [B, H, S], added: of differences, and so of
/// doubles, since the scale itself falls without end.
template <class T>
struct Decay {
  const double* data;
  int64_t b, h, n;
  int shift;
  std::shared_ptr<const void> owner = nullptr;
  template <class R, class I>
  ATTZOO_ALWAYS_INLINE R operator()(R s, I ib, I ih, I iq, I ikv) const {
    const double* const row = data + ib.v * b + ih.v * h;
    const int q = iq.v + shift;
    const double passed = row[q * n] - row[ikv.v * n];
    return s + R(Real<T>(static_cast<T>(q >= ikv.v ? passed : -passed)));
  }
  template <class I>
  ATTZOO_ALWAYS_INLINE T gradient(T, T g, I ib, I ih, I iq, I ikv,
                                  const TensorGradient<T>* to) const {
    if (!to->data) return g;
    T* const row = to->data + ib.v * to->b + ih.v * to->h;
    const int q = iq.v + shift;
    row[q * to->kv] += q >= ikv.v ? g : -g;
    row[ikv.v * to->kv] -= q >= ikv.v ? g : -g;
    return g;
  }
};
template <class T>
constexpr int kTensors<Decay<T>> = 1;
template <class T>
constexpr bool kAdditive<Decay<T>> = true;

#ifdef ATTZOO_COMPILED
extern template Score<float> make_score<float>(AlibiOfTensor<float>);
extern template Score<float> make_score<float>(Softcap);
extern template Score<float> make_score<float>(Bias<float>);
extern template Score<float> make_score<float>(DistanceBias<float>);
extern template Score<float> make_score<float>(Decay<float>);
extern template Score<double> make_score<double>(AlibiOfTensor<double>);
extern template Score<double> make_score<double>(Softcap);
extern template Score<double> make_score<double>(Bias<double>);
extern template Score<double> make_score<double>(DistanceBias<double>);
extern template Score<double> make_score<double>(Decay<double>);
#endif

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/modifier/make_modifier.hpp>
#endif
