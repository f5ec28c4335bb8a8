#pragma once
/// \file
/// The third form of a modifier's arguments: whole tensors. A callable that is written once for
/// scalars runs on these in the eager reference, so they have the operators and functions of a
/// number, `&&`, `||` and `!` included, with C++'s meaning (`/` and `%` of integers truncate).

#include <torch/types.h>

#include <type_traits>
#include <utility>

namespace attzoo::core {

/// A tensor in the place of one number or truth value. A literal becomes a 0-dim tensor, which
/// takes part in type promotion without widening: `20.0 * s` keeps the dtype of s.
struct TensorLane {
  torch::Tensor t;

  TensorLane(torch::Tensor tensor) : t(std::move(tensor)) {}  // NOLINT: implicit by design
  template <class T>
  requires std::is_arithmetic_v<T> TensorLane(T value)  // NOLINT: implicit by design
      : t(torch::scalar_tensor(value, std::is_same_v<T, bool>       ? torch::kBool
                                      : std::is_floating_point_v<T> ? torch::kFloat64
                                                                    : torch::kInt64)) {}

#define ATTZOO_TENSOR_LANE_OPERATOR(op, function)                           \
  friend TensorLane operator op(const TensorLane& a, const TensorLane& b) { \
    return torch::function(a.t, b.t);                                       \
  }
  ATTZOO_TENSOR_LANE_OPERATOR(+, add)
  ATTZOO_TENSOR_LANE_OPERATOR(-, sub)
  ATTZOO_TENSOR_LANE_OPERATOR(*, mul)
  ATTZOO_TENSOR_LANE_OPERATOR(%, fmod)
  ATTZOO_TENSOR_LANE_OPERATOR(<, lt)
  ATTZOO_TENSOR_LANE_OPERATOR(<=, le)
  ATTZOO_TENSOR_LANE_OPERATOR(>, gt)
  ATTZOO_TENSOR_LANE_OPERATOR(>=, ge)
  ATTZOO_TENSOR_LANE_OPERATOR(==, eq)
  ATTZOO_TENSOR_LANE_OPERATOR(!=, ne)
  ATTZOO_TENSOR_LANE_OPERATOR(&, bitwise_and)
  ATTZOO_TENSOR_LANE_OPERATOR(|, bitwise_or)
  ATTZOO_TENSOR_LANE_OPERATOR(^, bitwise_xor)
  ATTZOO_TENSOR_LANE_OPERATOR(>>, bitwise_right_shift)
  ATTZOO_TENSOR_LANE_OPERATOR(<<, bitwise_left_shift)
  ATTZOO_TENSOR_LANE_OPERATOR(&&, logical_and)
  ATTZOO_TENSOR_LANE_OPERATOR(||, logical_or)
#undef ATTZOO_TENSOR_LANE_OPERATOR

  friend TensorLane operator/(const TensorLane& a, const TensorLane& b) {
    if (a.t.is_floating_point() || b.t.is_floating_point()) return torch::div(a.t, b.t);
    return torch::div(a.t, b.t, "trunc");
  }
  friend TensorLane operator-(const TensorLane& a) { return torch::neg(a.t); }
  friend TensorLane operator!(const TensorLane& a) { return torch::logical_not(a.t); }

#define ATTZOO_TENSOR_LANE_FUNCTION(name) \
  friend TensorLane name(const TensorLane& a) { return torch::name(a.t); }
  ATTZOO_TENSOR_LANE_FUNCTION(abs)
  ATTZOO_TENSOR_LANE_FUNCTION(exp)
  ATTZOO_TENSOR_LANE_FUNCTION(log)
  ATTZOO_TENSOR_LANE_FUNCTION(sqrt)
  ATTZOO_TENSOR_LANE_FUNCTION(tanh)
  ATTZOO_TENSOR_LANE_FUNCTION(sigmoid)
#undef ATTZOO_TENSOR_LANE_FUNCTION
  friend TensorLane min(const TensorLane& a, const TensorLane& b) {
    return torch::minimum(a.t, b.t);
  }
  friend TensorLane max(const TensorLane& a, const TensorLane& b) {
    return torch::maximum(a.t, b.t);
  }
  /// `condition ? a : b`, which C++ cannot overload.
  friend TensorLane where(const TensorLane& condition, const TensorLane& a, const TensorLane& b) {
    return torch::where(condition.t, a.t, b.t);
  }
};

}  // namespace attzoo::core
