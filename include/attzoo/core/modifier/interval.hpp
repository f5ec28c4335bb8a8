#pragma once
/// \file
/// Between which bounds the numbers of a modifier's callable lie. It runs on intervals before a
/// kernel runs, to see that every index of a table lies within, and which keys a mask leaves out or
/// lets in for a whole range of queries. Bounds may be too wide, never too narrow: they are
/// computed in double as the numbers are (kernel/modifier/lane.hpp), and rounding keeps the order.

#include <attzoo/core/checks.hpp>
#include <attzoo/kernel/modifier/lane_list.hpp>
#include <attzoo/kernel/modifier/lane_types.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

namespace attzoo::core {

struct Interval {
  /// Whether numbers are whole, whether entries of tables are among what they are computed of, and
  /// whether they are truth values.
  struct Kind {
    bool whole, entry, truth;
    Kind(bool whole_numbers, bool of_entries = false,
         bool truth_values = false)  // NOLINT: implicit
        : whole(whole_numbers), entry(of_entries), truth(truth_values) {}
  };
  double low, high;
  Kind kind;

  Interval(double from, double to, Kind of) : low(from), high(to), kind(of) {
    constexpr double kExact = 9007199254740992.0;  // 2^53; beyond, whole numbers may wrap around
    if (kind.whole ? !(low >= -kExact && high <= kExact) : !(low <= high)) {  // or no number
      low = -std::numeric_limits<double>::infinity();
      high = std::numeric_limits<double>::infinity();
    }
  }
  template <class T>
  requires std::is_arithmetic_v<T> Interval(T value)  // NOLINT: literals mix with intervals
      : Interval(static_cast<double>(value), static_cast<double>(value),
                 {std::is_integral_v<T>, false, std::is_same_v<T, bool>}) {}

  Interval(const Interval&) = default;
  /// The kernel's whole numbers keep their type when they are assigned to, which holds those of an
  /// index's size (kernel::assign).
  Interval& operator=(const Interval& x) {
    TORCH_CHECK_VALUE(!x.kind.whole || x.kind.entry || x.magnitude() <= kernel::kMostIndex,
                      "mask_mod, score_mod: a whole number that is assigned to must remain below "
                      "2^30, got one of up to ",
                      x.magnitude(), ": write auto e = d * 2 for d *= 2");
    low = x.low;
    high = x.high;
    kind = x.kind;
    return *this;
  }

  static Interval any(Kind kind = false) {
    constexpr double kInf = std::numeric_limits<double>::infinity();
    return {-kInf, kInf, kind};
  }
  /// True, false, or unknown.
  static Interval truth(bool always, bool never) {
    return {always ? 1.0 : 0.0, never ? 0.0 : 1.0, {true, false, true}};
  }
  /// Whether it may be no number, which compares with none.
  bool may_be_nan() const { return !kind.whole && low < 0 && high > 0 && std::isinf(high - low); }
  /// Whether all its numbers are true, and whether none is.
  bool always() const { return low > 0 || high < 0; }
  bool never() const { return low == 0 && high == 0; }
  double magnitude() const { return std::max(std::abs(low), std::abs(high)); }

  friend Interval operator+(const Interval& a, const Interval& b) {
    return {a.low + b.low, a.high + b.high, both(a, b)};
  }
  friend Interval operator-(const Interval& a, const Interval& b) {
    return {a.low - b.high, a.high - b.low, both(a, b)};
  }
  friend Interval operator-(const Interval& a) { return {-a.high, -a.low, number(a)}; }
  friend Interval operator+(const Interval& a) { return a; }
  friend Interval operator*(const Interval& a, const Interval& b) {
    return of_corners(a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high, both(a, b));
  }
  friend Interval operator/(const Interval& a, const Interval& b) {
    const auto of = both(a, b);
    if (b.low > 0) {
      const auto q =
          of_corners(a.low / b.low, a.low / b.high, a.high / b.low, a.high / b.high, false);
      return of.whole ? Interval(std::trunc(q.low), std::trunc(q.high), of)
                      : Interval(q.low, q.high, of);
    }
    return of.whole ? Interval(-a.magnitude(), a.magnitude(), of) : any(of);
  }
  friend Interval operator%(const Interval& a, const Interval& b) {
    const auto of = both(a, b);
    if (!of.whole) return any(of);
    // All between two multiples of one divisor.
    if (a.low >= 0 && b.low > 0 && b.low == b.high &&
        std::floor(a.low / b.low) == std::floor(a.high / b.low)) {
      return {std::fmod(a.low, b.low), std::fmod(a.high, b.low), of};
    }
    const bool never_zero = b.low > 0 || b.high < 0;
    const double most = never_zero ? std::min(a.magnitude(), b.magnitude() - 1) : a.magnitude();
    return {a.low < 0 ? -most : 0, a.high > 0 ? most : 0, of};
  }
  friend Interval operator&(const Interval& a, const Interval& b) {
    if (a.kind.truth && b.kind.truth) return a && b;
    if (a.low < 0 && b.low < 0) return bits(a, b);
    const double bound = a.low < 0 ? b.high : b.low < 0 ? a.high : std::min(a.high, b.high);
    return {0, bound, true};
  }
  friend Interval operator|(const Interval& a, const Interval& b) {
    return a.kind.truth && b.kind.truth ? a || b : bits(a, b);
  }
  friend Interval operator^(const Interval& a, const Interval& b) {
    return a.kind.truth && b.kind.truth ? a != b : bits(a, b);
  }
  friend Interval operator>>(const Interval& a, const Interval&) {
    return {std::min(a.low, 0.0), std::max(a.high, 0.0), true};
  }
  friend Interval operator<<(const Interval& a, const Interval& b) {
    if (b.low < 0 || b.high > 62) return any(true);
    const double most = std::exp2(b.high);
    return {std::min(a.low, a.low * most), std::max(a.high, a.high * most), true};
  }
  /// Of a truth value its opposite, as of bool tensors.
  friend Interval operator~(const Interval& a) {
    return a.kind.truth ? !a : Interval(-a.high - 1, -a.low - 1, true);
  }

  friend Interval operator<(const Interval& a, const Interval& b) {
    return compared(a, b, a.high < b.low, a.low >= b.high);
  }
  friend Interval operator<=(const Interval& a, const Interval& b) {
    return compared(a, b, a.high <= b.low, a.low > b.high);
  }
  friend Interval operator>(const Interval& a, const Interval& b) { return b < a; }
  friend Interval operator>=(const Interval& a, const Interval& b) { return b <= a; }
  friend Interval operator==(const Interval& a, const Interval& b) {
    return compared(a, b, a.low == b.high && a.high == b.low, a.high < b.low || a.low > b.high);
  }
  friend Interval operator!=(const Interval& a, const Interval& b) { return !(a == b); }
  friend Interval operator&&(const Interval& a, const Interval& b) {
    return truth(a.always() && b.always(), a.never() || b.never());
  }
  friend Interval operator||(const Interval& a, const Interval& b) {
    return truth(a.always() || b.always(), a.never() && b.never());
  }
  friend Interval operator!(const Interval& a) { return truth(a.never(), a.always()); }

#define ATTZOO_INTERVAL_FUNCTION(name, ...) \
  friend Interval name(const Interval&) { return any(); }
  ATTZOO_LANE_FUNCTIONS(ATTZOO_INTERVAL_FUNCTION)
#undef ATTZOO_INTERVAL_FUNCTION
  friend Interval pow(const Interval&, const Interval&) { return any(); }

  friend Interval min(const Interval& a, const Interval& b) {
    if (a.may_be_nan() || b.may_be_nan()) return any(both(a, b));
    return {std::min(a.low, b.low), std::min(a.high, b.high), both(a, b)};
  }
  friend Interval max(const Interval& a, const Interval& b) {
    if (a.may_be_nan() || b.may_be_nan()) return any(both(a, b));
    return {std::max(a.low, b.low), std::max(a.high, b.high), both(a, b)};
  }
  friend Interval clamp(const Interval& x, const Interval& from, const Interval& to) {
    return min(max(x, from), to);
  }
  friend Interval where(const Interval& condition, const Interval& a, const Interval& b) {
    auto of = both(a, b);
    of.truth = a.kind.truth && b.kind.truth;
    if (condition.always()) return {a.low, a.high, of};
    if (condition.never()) return {b.low, b.high, of};
    if (a.may_be_nan() || b.may_be_nan()) return any(of);
    return {std::min(a.low, b.low), std::max(a.high, b.high), of};
  }
  friend Interval abs(const Interval& a) {
    if (a.may_be_nan()) return a;
    const double least = a.low > 0 ? a.low : a.high < 0 ? -a.high : 0;
    return {least, a.magnitude(), number(a)};
  }
  friend Interval relu(const Interval& a) { return max(a, Interval(0, 0, a.kind)); }
  friend Interval floor(const Interval& a) {
    return {std::floor(a.low), std::floor(a.high), number(a)};
  }

#define ATTZOO_INTERVAL_ASSIGNMENT(op, _) \
  friend Interval& operator op##=(Interval& a, const Interval& b) { return a = a op b; }
  ATTZOO_LANE_ASSIGNMENTS(ATTZOO_INTERVAL_ASSIGNMENT)
#undef ATTZOO_INTERVAL_ASSIGNMENT

 private:
  static Interval compared(const Interval& a, const Interval& b, bool always, bool never) {
    const bool numbers = !a.may_be_nan() && !b.may_be_nan();
    return truth(numbers && always, numbers && never);
  }
  /// Of a number that is computed of these.
  static Kind both(const Interval& a, const Interval& b) {
    return {a.kind.whole && b.kind.whole, a.kind.entry || b.kind.entry};
  }
  static Kind number(const Interval& a) { return {a.kind.whole, a.kind.entry}; }
  static Interval of_corners(double a, double b, double c, double d, Kind kind) {
    if (std::isnan(a + b + c + d)) return any(kind);
    return {std::min({a, b, c, d}), std::max({a, b, c, d}), kind};
  }
  static Interval bits(const Interval& a, const Interval& b) {
    const double most = std::exp2(std::ceil(std::log2(std::max(a.magnitude(), b.magnitude()) + 1)));
    return {a.low < 0 || b.low < 0 ? -most : 0, most - 1, true};
  }
};

}  // namespace attzoo::core
