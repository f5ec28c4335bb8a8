#pragma once
/// \file
/// The score modifiers as the kernel sees them. R is Real<T> or Dual<T>, I is Index. One that
/// holds a tensor says how a gradient reaches it: `gradient` takes that of the score after
/// modification, adds to the tensor's at `to`, and returns that of the score before.

#include <attzoo/kernel/lane.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// The gradient of a captured tensor, by the strides of [B, H, L, S]; data is null if nobody asks.
template <class T>
struct TensorGradient {
  T* data = nullptr;
  int64_t b = 0, h = 0, q = 0, kv = 0;
};

/// How many tensors a modifier holds.
template <class Score>
constexpr int kTensors = 0;

/// Whether a modifier does anything; one without its tensor does not.
template <class Score>
bool changes(const Score& f) {
  if constexpr (requires { f.changes(); }) return f.changes();
  return true;
}

template <class Score, class T, class I>
ATTZOO_ALWAYS_INLINE T backpropagate(const Score& f, T s, T g, I b, I h, I q, I kv,
                                     const TensorGradient<T>* to) {
  if constexpr (requires { f.gradient(s, g, b, h, q, kv, to); }) {
    return f.gradient(s, g, b, h, q, kv, to);
  } else {
    return g * f(Dual<T>(s, 1), b, h, q, kv).d;
  }
}

struct IdentityScore {
  ATTZOO_ALWAYS_INLINE bool changes() const { return false; }
  template <class R, class I>
  ATTZOO_ALWAYS_INLINE R operator()(R s, I, I, I, I) const {
    return s;
  }
};

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

/// A tensor [B, H, L, S] by strides, added; null: nothing.
template <class T>
struct Bias {
  const T* data = nullptr;
  int64_t b = 0, h = 0, q = 0, kv = 0;
  ATTZOO_ALWAYS_INLINE bool changes() const { return data != nullptr; }
  template <class R, class I>
  ATTZOO_ALWAYS_INLINE R operator()(R s, I ib, I ih, I iq, I ikv) const {
    return data ? s + R(Real<T>(data[ib.v * b + ih.v * h + iq.v * q + ikv.v * kv])) : s;
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

/// Any callable, which may hold tables (TableView). `shift`: what is added to q. The gradient of
/// all tables that learn is one tensor.
template <class F>
struct ScoreFunction {
  F f;
  int shift;
  template <class R, class I>
  ATTZOO_ALWAYS_INLINE R operator()(R s, I b, I h, I q, I kv) const {
    return R(f(s, b, h, I{q.v + shift}, kv));
  }
  /// One call for each entry that f reads, in which that one has the derivative 1.
  template <class T>
  ATTZOO_ALWAYS_INLINE T gradient(T s, T g, Index b, Index h, Index q, Index kv,
                                  const TensorGradient<T>* to) const {
    if (to->data) {
      for (int wanted = 0, seen = 1; wanted < seen; ++wanted) {
        Lookup lookup{wanted};
        const auto traced = [&](int i) { return TracedIndex{i, {&lookup}}; };
        const Dual<double> y(f(Dual<double>(static_cast<double>(s), 0), traced(b.v), traced(h.v),
                               traced(q.v + shift), traced(kv.v)));
        seen = lookup.seen;
        if (seen > 0) to->data[lookup.place] += g * static_cast<T>(y.d);
      }
    }
    return g * (*this)(Dual<T>(s, 1), b, h, q, kv).d;
  }
};
/// A callable without captures holds no table.
template <class F>
constexpr int kTensors<ScoreFunction<F>> = std::is_empty_v<F> ? 0 : 1;

template <class A, class B>
struct Chain {
  A a;
  B b;
  ATTZOO_ALWAYS_INLINE bool changes() const { return kernel::changes(a) || kernel::changes(b); }
  template <class R, class I>
  ATTZOO_ALWAYS_INLINE R operator()(R s, I ib, I ih, I iq, I ikv) const {
    return b(a(s, ib, ih, iq, ikv), ib, ih, iq, ikv);
  }
  template <class T, class I>
  ATTZOO_ALWAYS_INLINE T gradient(T s, T g, I ib, I ih, I iq, I ikv,
                                  const TensorGradient<T>* to) const {
    const T between = a(Real<T>(s), ib, ih, iq, ikv).v;
    g = backpropagate(b, between, g, ib, ih, iq, ikv, to + kTensors<A>);
    return backpropagate(a, s, g, ib, ih, iq, ikv, to);
  }
};
template <class A, class B>
Chain(A, B) -> Chain<A, B>;
template <class A, class B>
constexpr int kTensors<Chain<A, B>> = kTensors<A> + kTensors<B>;

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
