#pragma once
/// \file
/// The operators and functions of numbers in a modifier's callable (lane.hpp): every kind of lane
/// makes its own of these lists, so that none lacks one. The second argument is LibTorch's name.

#define ATTZOO_LANE_ARITHMETIC(X) X(+, add) X(-, sub) X(*, mul) X(/, div) X(%, fmod)
#define ATTZOO_LANE_BITS(X) X(&, bitwise_and) X(|, bitwise_or) X(^, bitwise_xor)
#define ATTZOO_LANE_SHIFTS(X) X(<<, bitwise_left_shift) X(>>, bitwise_right_shift)
#define ATTZOO_LANE_COMPARISONS(X) X(<, lt) X(<=, le) X(>, gt) X(>=, ge) X(==, eq) X(!=, ne)
#define ATTZOO_LANE_LOGIC(X) X(&&, logical_and) X(||, logical_or)
/// Those that have an assignment, as +=.
#define ATTZOO_LANE_ASSIGNMENTS(X) \
  ATTZOO_LANE_ARITHMETIC(X) ATTZOO_LANE_BITS(X) ATTZOO_LANE_SHIFTS(X)
#define ATTZOO_LANE_OPERATORS(X) \
  ATTZOO_LANE_ASSIGNMENTS(X) ATTZOO_LANE_COMPARISONS(X) ATTZOO_LANE_LOGIC(X)
/// Functions of one number whose values are not whole; X(name, value, derivative) of x, y being the
/// value. Derivatives are of any numbers that know sin, cos and exp.
#define ATTZOO_LANE_FUNCTIONS(X)                         \
  X(exp, kernel::exp(x), y)                              \
  X(exp2, kernel::exp2(x), y* kLn2)                      \
  X(tanh, kernel::tanh(x), 1 - y * y)                    \
  X(sigmoid, (1 + kernel::tanh(x / 2)) / 2, y * (1 - y)) \
  X(log, std::log(x), 1 / x)                             \
  X(log2, std::log2(x), 1 / (x * kLn2))                  \
  X(sqrt, std::sqrt(x), 1 / (2 * y))                     \
  X(sin, std::sin(x), cos(x))                            \
  X(cos, std::cos(x), -sin(x))                           \
  X(erf, std::erf(x), 1.1283791670955126 * exp(-x * x)) /* 2 / sqrt(pi) */
