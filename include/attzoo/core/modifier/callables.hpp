#pragma once
/// \file
/// What is asked of a callable in mask_mod() and score_mod(): at compile time of its type, with
/// sentences for errors, and against a problem of its tables.

#include <attzoo/core/modifier/grid.hpp>
#include <attzoo/core/modifier/table.hpp>

#include <type_traits>

namespace attzoo::core {

/// Whether parameters are written with auto: there is no single operator() to point at.
template <class F>
inline constexpr bool kGeneric = std::is_class_v<F> && !requires {
  &F::operator();
};

template <class F, bool kAuto, class... Arguments>
inline constexpr bool kTakes = false;
template <class F, class... Arguments>
inline constexpr bool kTakes<F, true, Arguments...> = std::is_invocable_v<const F&, Arguments...>;

template <class F, class... Arguments>
using ResultOf = std::invoke_result_t<const F&, Arguments...>;

/// Does not compile for what is no f(b, h, q, kv) -> truth value.
template <class F>
struct MaskCallable {
  using L = TensorLane;
  static constexpr bool kFour = kTakes<F, kGeneric<F>, L, L, L, L>;
  static_assert(kFour,
                "attzoo::mask_mod: write the callable with four auto parameters, "
                "[=](auto b, auto h, auto q, auto kv) { return ...; }, auto alone for what you do "
                "not use");
  static constexpr bool returns_truth() {
    if constexpr (kFour) {
      using R = ResultOf<F, L, L, L, L>;
      static_assert(
          !std::is_same_v<std::remove_cvref_t<R>, torch::Tensor>,
          "attzoo::mask_mod: the callable returns a torch::Tensor: return a truth value of "
          "b, h, q, kv, with tensors as attzoo::table(tensor), or pass mask_tensor(tensor)");
      return std::is_convertible_v<R, TensorLane>;
    }
    return true;
  }
  static_assert(returns_truth(), "attzoo::mask_mod: the callable must return a truth value");
};

/// Does not compile for what is no f(score, b, h, q, kv) -> score.
template <class F>
struct ScoreCallable {
  using L = TensorLane;
  static constexpr bool kFive = kTakes<F, kGeneric<F>, L, L, L, L, L>;
  static_assert(
      kFive,
      "attzoo::score_mod: write the callable with five auto parameters, "
      "[=](auto s, auto b, auto h, auto q, auto kv) { return ...; }, auto alone for what you do "
      "not use");
  static constexpr bool returns_score() {
    if constexpr (kFive) {
      using R = ResultOf<F, L, L, L, L, L>;
      static_assert(
          !std::is_same_v<std::remove_cvref_t<R>, torch::Tensor>,
          "attzoo::score_mod: the callable returns a torch::Tensor: return a score of "
          "s, b, h, q, kv, with tensors as attzoo::table(tensor), or use bias_tensor(tensor)");
      return std::is_convertible_v<R, TensorLane>;
    }
    return true;
  }
  static_assert(returns_score(), "attzoo::score_mod: the callable must return a score");
};

/// f(b, h, q, kv) or f(score, b, h, q, kv) against a problem: its tables suit it, and all that it
/// reads of them lies within. `run` evaluates it on a grid.
template <class F, class Run>
void check_callable(const F& f, const Shape& n, const torch::Device& device, bool aligned,
                    Run run) {
  if (n.B == 0 || n.H == 0 || n.L == 0 || n.S == 0) return;
  const auto up_to = [](int64_t size) { return Interval(0, static_cast<double>(size - 1), true); };
  const auto b = up_to(n.B), h = up_to(n.H), kv = up_to(n.S);
  const auto q = aligned ? up_to(n.L) + Interval(n.S - n.L) : up_to(n.L);
  const bool evident = check_tables(f, device, [&](const F& copy) {
    if constexpr (std::is_invocable_v<const F&, Interval, Interval, Interval, Interval, Interval>) {
      copy(Interval::any(), b, h, q, kv);
    } else {
      copy(b, h, q, kv);
    }
  });
  if (!evident) for_each_grid(n, device, run);
}

}  // namespace attzoo::core
