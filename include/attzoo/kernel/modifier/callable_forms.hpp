#pragma once
/// \file
/// Callables of the user's program as masks and as changes of scores (lane.hpp).

#include <attzoo/kernel/modifier/lane.hpp>
#include <attzoo/kernel/modifier/make_modifier.hpp>

#include <type_traits>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Nothing is known about it, so all pairs are visited. `shift`: what is added to q.
template <class F>
struct CallableMask {
  F f;
  int shift;
  ATTZOO_ALWAYS_INLINE bool operator()(int b, int h, int q, int kv) const {
    return static_cast<bool>(f(Index{b}, Index{h}, Index{q + shift}, Index{kv}));
  }
  void reach(const Rows& r, Segments& out) const { append(out, 0, r.S, Cover::kPartial, r.S); }
};
template <class F>
CallableMask(F, int) -> CallableMask<F>;
template <class F>
constexpr bool kIsCallable<CallableMask<F>> = true;

/// May hold tables (TableView). `shift`: what is added to q. The gradient of all tables that learn
/// is one tensor.
template <class F>
struct CallableScore {
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
        Lookup& lookup = Lookup::current();
        lookup = {wanted};
        const Dual<double, Traced> score(static_cast<double>(s), 0);
        const auto index = [](int i) { return TracedIndex{i}; };
        const Dual<double, Traced> y(
            f(score, index(b.v), index(h.v), index(q.v + shift), index(kv.v)));
        seen = lookup.seen;
        if (seen > 0) to->data[lookup.place] += change(static_cast<T>(y.d), g);
      }
    }
    return (*this)(Dual<T>(s, g), b, h, q, kv).d;
  }
};
template <class F>
CallableScore(F, int) -> CallableScore<F>;
/// A callable without captures holds no table.
template <class F>
constexpr int kTensors<CallableScore<F>> = std::is_empty_v<F> ? 0 : 1;
template <class F>
constexpr bool kIsCallable<CallableScore<F>> = true;

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
