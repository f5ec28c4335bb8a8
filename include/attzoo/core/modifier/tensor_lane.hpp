#pragma once
/// \file
/// The last form of a modifier's arguments: whole tensors. A callable that is written once for
/// scalars runs on these in the eager reference, so they have the operators and functions of a
/// number, `&&`, `||` and `!` included, and give what kernel/modifier/lane.hpp gives: whole numbers
/// are int64 and wrap around, `/` and `%` of them truncate and never trap, and what is no score is
/// computed in float64.
///
/// A callable meets this form first. What cannot be written in it does not compile, and the error
/// says what to write instead.

#include <attzoo/kernel/modifier/lane_list.hpp>

#include <torch/types.h>

#include <concepts>
#include <type_traits>
#include <utility>

namespace attzoo::core {

#define ATTZOO_NO_PLAIN_NUMBER                                                                    \
  "attzoo: write exp(s), tanh(s), pow(s, 2) without std:: in a modifier: attzoo's own functions " \
  "are found; and write auto for double: q / 2.0 is computed in double"

/// A tensor in the place of one number or truth value. A literal becomes a 0-dim tensor, which
/// takes part in type promotion without widening: `20.0 * s` keeps the dtype of s.
struct TensorLane {
  torch::Tensor t;
  bool whole;  // integers, truth values, and entries of an integer table, which are float64

  TensorLane(torch::Tensor tensor) : TensorLane(std::move(tensor), false) {}  // NOLINT: implicit
  TensorLane(torch::Tensor tensor, bool whole_numbers)
      : t(std::move(tensor)), whole(whole_numbers || !t.is_floating_point()) {}
  template <class T>
  requires std::is_arithmetic_v<T> TensorLane(T value)  // NOLINT: implicit by design
      : TensorLane(literal(value)) {}

  // Conversions that exist to be refused with a sentence.
  template <class B>
  requires std::same_as<B, bool>
  operator B() const {
    static_assert(!sizeof(B),
                  "attzoo: a modifier works on whole tensors too and has no bool, no if and no ?: "
                  "in it: write auto ok = q == kv, where(condition, a, b), and min, max and clamp "
                  "without std::");
    return false;
  }
  template <class I>
  requires(std::integral<I> && !std::same_as<I, bool>) operator I() const {
    static_assert(!sizeof(I),
                  "attzoo: an index of a modifier is no plain integer: write auto d = q - kv; to "
                  "look something up, capture auto t = attzoo::table(tensor) and write "
                  "t(h, q - kv)");
    return 0;
  }
  template <class D>
  requires std::same_as<D, double>
  operator D() const {
    static_assert(!sizeof(D), ATTZOO_NO_PLAIN_NUMBER);
    return 0;
  }
  template <class F>  // explicit: else std::exp(s) would find exp(float) as good as exp(double)
  requires std::same_as<F, float>
  explicit operator F() const {
    static_assert(!sizeof(F), ATTZOO_NO_PLAIN_NUMBER);
    return 0;
  }

#define ATTZOO_TENSOR_LANE_OPERATOR(op, function)                           \
  friend TensorLane operator op(const TensorLane& a, const TensorLane& b) { \
    return {torch::function(number(a), number(b)), a.whole && b.whole};     \
  }
  ATTZOO_TENSOR_LANE_OPERATOR(+, add)
  ATTZOO_TENSOR_LANE_OPERATOR(-, sub)
  ATTZOO_TENSOR_LANE_OPERATOR(*, mul)
  ATTZOO_LANE_COMPARISONS(ATTZOO_TENSOR_LANE_OPERATOR)
  ATTZOO_LANE_SHIFTS(ATTZOO_TENSOR_LANE_OPERATOR)
#undef ATTZOO_TENSOR_LANE_OPERATOR

  // Of truth values a truth value.
#define ATTZOO_TENSOR_LANE_BIT(op, function)                                \
  friend TensorLane operator op(const TensorLane& a, const TensorLane& b) { \
    if (a.is_truth() && b.is_truth()) return torch::function(a.t, b.t);     \
    return {torch::function(number(a), number(b)), a.whole && b.whole};     \
  }
  ATTZOO_LANE_BITS(ATTZOO_TENSOR_LANE_BIT)
#undef ATTZOO_TENSOR_LANE_BIT
  friend TensorLane operator~(const TensorLane& a) { return torch::bitwise_not(a.t); }

#define ATTZOO_TENSOR_LANE_LOGIC(op, function)                              \
  friend TensorLane operator op(const TensorLane& a, const TensorLane& b) { \
    return torch::function(a.t, b.t);                                       \
  }
  ATTZOO_LANE_LOGIC(ATTZOO_TENSOR_LANE_LOGIC)
#undef ATTZOO_TENSOR_LANE_LOGIC
  friend TensorLane operator!(const TensorLane& a) { return torch::logical_not(a.t); }
  friend TensorLane operator-(const TensorLane& a) { return {torch::neg(number(a)), a.whole}; }
  friend TensorLane operator+(const TensorLane& a) { return a; }

  /// Of whole numbers truncated, and 0 if divided by 0.
  friend TensorLane operator/(const TensorLane& a, const TensorLane& b) {
    const auto x = number(a), y = number(b);
    if (!a.whole || !b.whole) return torch::div(x, y);
    const auto zero = y == 0;
    if (x.is_floating_point() || y.is_floating_point()) {
      return {torch::trunc(torch::div(x, y)).masked_fill(zero, 0), true};
    }
    const auto minus_one = y == -1;  // the lowest number has no negative, and would trap
    const auto quotient = torch::div(x, y.masked_fill(zero.logical_or(minus_one), 1), "trunc");
    return torch::where(minus_one, x.neg(), quotient).masked_fill(zero, 0);
  }
  /// The remainder of that quotient: a, if divided by 0.
  friend TensorLane operator%(const TensorLane& a, const TensorLane& b) {
    const auto x = number(a), y = number(b);
    const auto zero = y == 0;
    if (x.is_floating_point() || y.is_floating_point()) {
      return {x - torch::trunc(torch::div(x, y)).masked_fill(zero, 0) * y, a.whole && b.whole};
    }
    return torch::where(zero, x, torch::fmod(x, y.masked_fill(zero.logical_or(y == -1), 1)));
  }

#define ATTZOO_TENSOR_LANE_FUNCTION(name, ...) \
  friend TensorLane name(const TensorLane& a) { return torch::name(real(a)); }
  ATTZOO_LANE_FUNCTIONS(ATTZOO_TENSOR_LANE_FUNCTION)
#undef ATTZOO_TENSOR_LANE_FUNCTION
  friend TensorLane pow(const TensorLane& a, const TensorLane& b) {
    return torch::pow(real(a), real(b));
  }

  friend TensorLane abs(const TensorLane& a) { return {torch::abs(number(a)), a.whole}; }
  friend TensorLane relu(const TensorLane& a) { return {torch::relu(number(a)), a.whole}; }
  friend TensorLane floor(const TensorLane& a) { return {torch::floor(number(a)), a.whole}; }
  friend TensorLane min(const TensorLane& a, const TensorLane& b) {
    return {torch::minimum(number(a), number(b)), a.whole && b.whole};
  }
  friend TensorLane max(const TensorLane& a, const TensorLane& b) {
    return {torch::maximum(number(a), number(b)), a.whole && b.whole};
  }
  friend TensorLane clamp(const TensorLane& x, const TensorLane& low, const TensorLane& high) {
    return {torch::clamp(number(x), number(low), number(high)), x.whole && low.whole && high.whole};
  }
  /// `condition ? a : b`, which C++ cannot overload.
  friend TensorLane where(const TensorLane& condition, const TensorLane& a, const TensorLane& b) {
    const auto truth = condition.t.to(torch::kBool);
    if (a.is_truth() && b.is_truth()) return torch::where(truth, a.t, b.t);
    return {torch::where(truth, number(a), number(b)), a.whole && b.whole};
  }

#define ATTZOO_TENSOR_LANE_ASSIGNMENT(op, _) \
  friend TensorLane& operator op##=(TensorLane& a, const TensorLane& b) { return a = a op b; }
  ATTZOO_LANE_ASSIGNMENTS(ATTZOO_TENSOR_LANE_ASSIGNMENT)
#undef ATTZOO_TENSOR_LANE_ASSIGNMENT

 private:
  bool is_truth() const { return t.scalar_type() == torch::kBool; }
  template <class T>
  static torch::Tensor literal(T value) {
    if constexpr (std::is_same_v<T, bool>) {
      return torch::scalar_tensor(value, torch::kBool);
    } else if constexpr (std::is_floating_point_v<T>) {
      return torch::scalar_tensor(static_cast<double>(value), torch::kFloat64);
    } else {
      return torch::scalar_tensor(static_cast<int64_t>(value), torch::kInt64);
    }
  }
  /// Truth values as 0 and 1, which C++ takes them for.
  static torch::Tensor number(const TensorLane& a) {
    return a.is_truth() ? a.t.to(torch::kInt64) : a.t;
  }
  /// For functions whose values are not whole.
  static torch::Tensor real(const TensorLane& a) {
    return a.t.is_floating_point() ? a.t : a.t.to(torch::kFloat64);
  }
};

template <class A, class B>
concept TensorLaneAndNumber = (std::same_as<A, TensorLane> && std::is_arithmetic_v<B>) ||
                              (std::is_arithmetic_v<A> && std::same_as<B, TensorLane>);

// Of exactly these types. Without them clang hesitates between an operator above, for which the
// number is converted, and the numbers' own, for which the lane is, by a conversion to be refused.
#define ATTZOO_TENSOR_LANE_AND_NUMBER(op, _)                                          \
  template <class A, class B>                                                         \
  requires TensorLaneAndNumber<A, B> TensorLane operator op(const A& a, const B& b) { \
    return TensorLane(a) op TensorLane(b);                                            \
  }
ATTZOO_LANE_OPERATORS(ATTZOO_TENSOR_LANE_AND_NUMBER)
#undef ATTZOO_TENSOR_LANE_AND_NUMBER

// More constrained than what follows, and so taken after `using std::min`.
template <class A, class B>
requires TensorLaneAndNumber<A, B> && true TensorLane min(const A& a, const B& b) {
  return min(TensorLane(a), TensorLane(b));
}
template <class A, class B>
requires TensorLaneAndNumber<A, B> && true TensorLane max(const A& a, const B& b) {
  return max(TensorLane(a), TensorLane(b));
}

/// Of exactly these types, so that the C library's pow(double, double) is no match.
template <class A, class B>
requires TensorLaneAndNumber<A, B> TensorLane pow(const A& a, const B& b) {
  return pow(TensorLane(a), TensorLane(b));
}

#undef ATTZOO_NO_PLAIN_NUMBER

}  // namespace attzoo::core

// std::min(q - kv, 8) has two types and finds no std::min at all, std::abs(q - kv) as many as there
// are; these find it, and say what to write. They take part in nothing that compiles.
namespace std {
template <same_as<attzoo::core::TensorLane> A>
A abs(const A&) {
  static_assert(!sizeof(A), "attzoo: write abs(x) without std:: in a modifier");
}
template <class A, class B>
requires attzoo::core::TensorLaneAndNumber<A, B> A min(const A&, const B&) {
  static_assert(!sizeof(A), "attzoo: write min(a, b) without std:: in a modifier");
}
template <class A, class B>
requires attzoo::core::TensorLaneAndNumber<A, B> A max(const A&, const B&) {
  static_assert(!sizeof(A), "attzoo: write max(a, b) without std:: in a modifier");
}
}  // namespace std
