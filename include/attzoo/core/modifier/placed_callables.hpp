#pragma once
/// \file
/// Masks and score modifiers made of a user's callable that counts in documents: its q and kv are
/// places in the sequence that a token belongs to.

#include <attzoo/core/modifier/callable_modifiers.hpp>
#include <attzoo/core/modifier/token_places.hpp>

#include <utility>

namespace attzoo::core {

/// f(b, h, q, kv) of the places of q and kv, which are numbers of keys.
template <class F>
struct MaskOfPlaces {
  explicit MaskOfPlaces(F of) : f(std::move(of)) {}
  F f;
  TokenPlaces places;
  template <class B, class H, class Q, class K>
  ATTZOO_ALWAYS_INLINE auto operator()(B b, H h, Q q, K kv) const {
    return f(b, h, places(b, q), places(b, kv));
  }
};

/// f(score, b, h, q, kv) of the same.
template <class F>
struct ScoreOfPlaces {
  explicit ScoreOfPlaces(F of) : f(std::move(of)) {}
  F f;
  TokenPlaces places;
  template <class S, class B, class H, class Q, class K>
  ATTZOO_ALWAYS_INLINE auto operator()(S s, B b, H h, Q q, K kv) const {
    return f(s, b, h, places(b, q), places(b, kv));
  }
};

/// What both have besides MaskFunction or ScoreFunction, `Base`, of the above.
template <class Self, class Base>
struct Placed : Base {
  explicit Placed(Base base) : Base(std::move(base)) {}
  /// Whether it has still to be told where tokens stand.
  bool asks_places() const { return !this->f.places.defined(); }
  /// With the places of all keys, int64 [1 or B, S].
  Self placed(const torch::Tensor& places) const {
    Base copy = *this;
    copy.f.places = TokenPlaces(places);
    return Self(std::move(copy));
  }
  bool fits_kernel() const { return this->f.places.fit(); }

 protected:
  Base with_numbers(const Shape& n) const {
    Base copy = *this;
    if (asks_places()) copy.f.places = TokenPlaces::numbers(n);
    return copy;
  }
};

/// MaskCallable comes first: its errors are about the user's own callable.
template <class F>
struct PlacedMask : MaskCallable<F>, Placed<PlacedMask<F>, MaskFunction<MaskOfPlaces<F>>> {
  using Base = MaskFunction<MaskOfPlaces<F>>;
  explicit PlacedMask(Base base) : Placed<PlacedMask, Base>(std::move(base)) {}
  auto bind(const Shape& n) const { return this->with_numbers(n).bind(n); }
};

template <class F>
struct PlacedScore : ScoreCallable<F>, Placed<PlacedScore<F>, ScoreFunction<ScoreOfPlaces<F>>> {
  using Base = ScoreFunction<ScoreOfPlaces<F>>;
  explicit PlacedScore(Base base) : Placed<PlacedScore, Base>(std::move(base)) {}
  PlacedScore resolve(const Shape& n) const { return PlacedScore(Base::resolve(n)); }
  template <class T>
  auto bind(const Shape& n) const {
    return this->with_numbers(n).template bind<T>(n);
  }
};

}  // namespace attzoo::core
