#pragma once
/// \file
/// Between which bounds the numbers of a modifier's callable lie: it runs on intervals once before
/// a fused kernel runs, to see that every index of a table lies within. Bounds may be too wide,
/// never too narrow.

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

namespace attzoo::core {

struct Interval {
  double low, high;
  bool whole;

  Interval(double from, double to, bool whole_numbers) : low(from), high(to), whole(whole_numbers) {
    constexpr double kExact = 9007199254740992.0;  // 2^53; beyond, whole numbers may wrap around
    if (whole ? !(low >= -kExact && high <= kExact) : !(low <= high)) {
      low = -std::numeric_limits<double>::infinity();
      high = std::numeric_limits<double>::infinity();
    }
  }
  template <class T>
  requires std::is_arithmetic_v<T> Interval(T value)  // NOLINT: literals mix with intervals
      : Interval(static_cast<double>(value), static_cast<double>(value), std::is_integral_v<T>) {}

  static Interval any(bool whole_numbers = false) {
    constexpr double kInf = std::numeric_limits<double>::infinity();
    return {-kInf, kInf, whole_numbers};
  }
  static Interval truth() { return {0, 1, true}; }
  double magnitude() const { return std::max(std::abs(low), std::abs(high)); }

  friend Interval operator+(const Interval& a, const Interval& b) {
    return {a.low + b.low, a.high + b.high, a.whole && b.whole};
  }
  friend Interval operator-(const Interval& a, const Interval& b) {
    return {a.low - b.high, a.high - b.low, a.whole && b.whole};
  }
  friend Interval operator-(const Interval& a) { return {-a.high, -a.low, a.whole}; }
  friend Interval operator+(const Interval& a) { return a; }
  friend Interval operator*(const Interval& a, const Interval& b) {
    const auto [least, most] =
        std::minmax({a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high});
    if (std::isnan(a.low * b.low + a.low * b.high + a.high * b.low + a.high * b.high)) {
      return any(a.whole && b.whole);
    }
    return {least, most, a.whole && b.whole};
  }
  friend Interval operator/(const Interval& a, const Interval& b) {
    const bool both = a.whole && b.whole;
    if (b.low > 0) {
      const auto [least, most] =
          std::minmax({a.low / b.low, a.low / b.high, a.high / b.low, a.high / b.high});
      return both ? Interval(std::trunc(least), std::trunc(most), true)
                  : Interval(least, most, false);
    }
    return both ? Interval(-a.magnitude(), a.magnitude(), true) : any();
  }
  friend Interval operator%(const Interval& a, const Interval& b) {
    if (!a.whole || !b.whole) return any();
    const bool never_zero = b.low > 0 || b.high < 0;
    const double most = never_zero ? std::min(a.magnitude(), b.magnitude() - 1) : a.magnitude();
    return {a.low < 0 ? -most : 0, a.high > 0 ? most : 0, true};
  }
  friend Interval operator&(const Interval& a, const Interval& b) {
    if (a.low < 0 && b.low < 0) return any(true);
    const double bound = a.low < 0 ? b.high : b.low < 0 ? a.high : std::min(a.high, b.high);
    return {0, bound, true};
  }
  friend Interval operator|(const Interval& a, const Interval& b) { return bits(a, b); }
  friend Interval operator^(const Interval& a, const Interval& b) { return bits(a, b); }
  friend Interval operator>>(const Interval& a, const Interval&) {
    return {std::min(a.low, 0.0), std::max(a.high, 0.0), true};
  }
  friend Interval operator<<(const Interval&, const Interval&) { return any(true); }

#define ATTZOO_INTERVAL_TRUTH(op) \
  friend Interval operator op(const Interval&, const Interval&) { return truth(); }
  ATTZOO_INTERVAL_TRUTH(<)
  ATTZOO_INTERVAL_TRUTH(<=)
  ATTZOO_INTERVAL_TRUTH(>)
  ATTZOO_INTERVAL_TRUTH(>=)
  ATTZOO_INTERVAL_TRUTH(==)
  ATTZOO_INTERVAL_TRUTH(!=)
  ATTZOO_INTERVAL_TRUTH(&&)
  ATTZOO_INTERVAL_TRUTH(||)
#undef ATTZOO_INTERVAL_TRUTH
  friend Interval operator!(const Interval&) { return truth(); }

#define ATTZOO_INTERVAL_FUNCTION(name) \
  friend Interval name(const Interval&) { return any(); }
  ATTZOO_INTERVAL_FUNCTION(exp)
  ATTZOO_INTERVAL_FUNCTION(exp2)
  ATTZOO_INTERVAL_FUNCTION(log)
  ATTZOO_INTERVAL_FUNCTION(log2)
  ATTZOO_INTERVAL_FUNCTION(sqrt)
  ATTZOO_INTERVAL_FUNCTION(tanh)
  ATTZOO_INTERVAL_FUNCTION(sigmoid)
  ATTZOO_INTERVAL_FUNCTION(sin)
  ATTZOO_INTERVAL_FUNCTION(cos)
  ATTZOO_INTERVAL_FUNCTION(erf)
#undef ATTZOO_INTERVAL_FUNCTION
  friend Interval pow(const Interval&, const Interval&) { return any(); }

  friend Interval min(const Interval& a, const Interval& b) {
    return {std::min(a.low, b.low), std::min(a.high, b.high), a.whole && b.whole};
  }
  friend Interval max(const Interval& a, const Interval& b) {
    return {std::max(a.low, b.low), std::max(a.high, b.high), a.whole && b.whole};
  }
  friend Interval clamp(const Interval& x, const Interval& from, const Interval& to) {
    return min(max(x, from), to);
  }
  friend Interval where(const Interval&, const Interval& a, const Interval& b) {
    return {std::min(a.low, b.low), std::max(a.high, b.high), a.whole && b.whole};
  }
  friend Interval abs(const Interval& a) {
    const double least = a.low > 0 ? a.low : a.high < 0 ? -a.high : 0;
    return {least, a.magnitude(), a.whole};
  }
  friend Interval relu(const Interval& a) { return max(a, Interval(0, 0, a.whole)); }
  friend Interval floor(const Interval& a) {
    return {std::floor(a.low), std::floor(a.high), a.whole};
  }

 private:
  static Interval bits(const Interval& a, const Interval& b) {
    if (a.low < 0 || b.low < 0) return any(true);
    return {0, std::exp2(std::ceil(std::log2(std::max({a.high, b.high, 0.0}) + 1))) - 1, true};
  }
};

}  // namespace attzoo::core
