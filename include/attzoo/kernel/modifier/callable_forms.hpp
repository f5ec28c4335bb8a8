#pragma once
/// \file
/// Callables (lane.hpp), those of the user's program and those with names, as masks and as changes
/// of scores.

#include <attzoo/kernel/modifier/form.hpp>
#include <attzoo/kernel/modifier/lane.hpp>
#include <attzoo/kernel/modifier/masks.hpp>

#include <type_traits>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// A callable that says what places reach; of others nothing is known, so all pairs are visited.
template <class F>
concept Reaches = requires(const F& f, const Rows& rows, Segments& out) {
  f.reach(rows, out);
};

/// `shift`: what is added to q, S - L where F counts it among the keys.
template <class F>
struct CallableMask {
  F f;
  int shift;
  ATTZOO_ALWAYS_INLINE bool operator()(int b, int h, int q, int kv) const {
    return static_cast<bool>(f(Index{b}, Index{h}, Index{q + shift}, Index{kv}));
  }
  void reach(Rows r, Segments& out) const {
    if constexpr (Reaches<F>) {
      r.begin += shift;
      r.end += shift;
      f.reach(r, out);
    } else {
      append(out, 0, r.S, Cover::kPartial, r.S);
    }
  }
  int stride() const {
    if constexpr (requires { f.stride(); }) return f.stride();
    return 1;
  }
};
template <class F>
CallableMask(F, int) -> CallableMask<F>;
/// Those of the library itself (masks.hpp).
template <class F>
constexpr bool kIsNamed = false;
#define ATTZOO_NAMED_MASK(F) \
  template <>                \
  inline constexpr bool kIsNamed<F> = true;
ATTZOO_NAMED_MASKS(ATTZOO_NAMED_MASK)
#undef ATTZOO_NAMED_MASK
template <class F>
constexpr bool kIsCallable<CallableMask<F>> = !kIsNamed<F>;

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
