#pragma once
/// \file
/// Between which bounds the numbers of a modifier's callable lie: it runs on intervals once before
/// a fused kernel runs, to see that every index of a table lies within. Bounds may be too wide,
/// never too narrow.

#include <attzoo/core/checks.hpp>
#include <attzoo/kernel/modifier/lane_types.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

namespace attzoo::core {

struct Interval {
  /// Whether numbers are whole, and whether entries of tables are among what they are computed of.
  struct Kind {
    bool whole, entry;
    Kind(bool whole_numbers, bool of_entries = false)  // NOLINT: implicit
        : whole(whole_numbers), entry(of_entries) {}
  };
  double low, high;
  bool whole, entry;

  Interval(double from, double to, Kind kind)
      : low(from), high(to), whole(kind.whole), entry(kind.entry) {
    constexpr double kExact = 9007199254740992.0;  // 2^53; beyond, whole numbers may wrap around
    if (whole ? !(low >= -kExact && high <= kExact) : !(low <= high)) {
      low = -std::numeric_limits<double>::infinity();
      high = std::numeric_limits<double>::infinity();
    }
  }
  template <class T>
  requires std::is_arithmetic_v<T> Interval(T value)  // NOLINT: literals mix with intervals
      : Interval(static_cast<double>(value), static_cast<double>(value), std::is_integral_v<T>) {}

  Interval(const Interval&) = default;
  /// The kernel's whole numbers keep their type when they are assigned to, which holds those of an
  /// index's size (kernel::assign).
  Interval& operator=(const Interval& x) {
    TORCH_CHECK_VALUE(!x.whole || x.entry || x.magnitude() <= kernel::kMostIndex,
                      "mask_mod, score_mod: a whole number that is assigned to must remain below "
                      "2^30, got one of up to ",
                      x.magnitude(), ": write auto e = d * 2 for d *= 2");
    low = x.low;
    high = x.high;
    whole = x.whole;
    entry = x.entry;
    return *this;
  }

  static Interval any(Kind kind = false) {
    constexpr double kInf = std::numeric_limits<double>::infinity();
    return {-kInf, kInf, kind};
  }
  Kind kind() const { return {whole, entry}; }
  static Kind both(const Interval& a, const Interval& b) {
    return {a.whole && b.whole, a.entry || b.entry};
  }
  static Interval truth() { return {0, 1, true}; }
  double magnitude() const { return std::max(std::abs(low), std::abs(high)); }

  friend Interval operator+(const Interval& a, const Interval& b) {
    return {a.low + b.low, a.high + b.high, both(a, b)};
  }
  friend Interval operator-(const Interval& a, const Interval& b) {
    return {a.low - b.high, a.high - b.low, both(a, b)};
  }
  friend Interval operator-(const Interval& a) { return {-a.high, -a.low, a.kind()}; }
  friend Interval operator+(const Interval& a) { return a; }
  friend Interval operator*(const Interval& a, const Interval& b) {
    const auto [least, most] =
        std::minmax({a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high});
    if (std::isnan(a.low * b.low + a.low * b.high + a.high * b.low + a.high * b.high)) {
      return any(both(a, b));
    }
    return {least, most, both(a, b)};
  }
  friend Interval operator/(const Interval& a, const Interval& b) {
    const auto kind = both(a, b);
    if (b.low > 0) {
      const auto [least, most] =
          std::minmax({a.low / b.low, a.low / b.high, a.high / b.low, a.high / b.high});
      return kind.whole ? Interval(std::trunc(least), std::trunc(most), kind)
                        : Interval(least, most, kind);
    }
    return kind.whole ? Interval(-a.magnitude(), a.magnitude(), kind) : any(kind);
  }
  friend Interval operator%(const Interval& a, const Interval& b) {
    if (!a.whole || !b.whole) return any(both(a, b));
    const bool never_zero = b.low > 0 || b.high < 0;
    const double most = never_zero ? std::min(a.magnitude(), b.magnitude() - 1) : a.magnitude();
    return {a.low < 0 ? -most : 0, a.high > 0 ? most : 0, both(a, b)};
  }
  friend Interval operator&(const Interval& a, const Interval& b) {
    if (a.low < 0 && b.low < 0) return bits(a, b);
    const double bound = a.low < 0 ? b.high : b.low < 0 ? a.high : std::min(a.high, b.high);
    return {0, bound, true};
  }
  friend Interval operator|(const Interval& a, const Interval& b) { return bits(a, b); }
  friend Interval operator^(const Interval& a, const Interval& b) { return bits(a, b); }
  friend Interval operator>>(const Interval& a, const Interval&) {
    return {std::min(a.low, 0.0), std::max(a.high, 0.0), true};
  }
  friend Interval operator<<(const Interval& a, const Interval& b) {
    if (b.low < 0 || b.high > 62) return any(true);
    const double most = std::exp2(b.high);
    return {std::min(a.low, a.low * most), std::max(a.high, a.high * most), true};
  }
  /// Of a truth value its opposite.
  friend Interval operator~(const Interval& a) {
    const bool may_be_truth = a.low >= 0 && a.high <= 1;
    return {-a.high - 1, may_be_truth ? 1 - a.low : -a.low - 1, true};
  }

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
    return {std::min(a.low, b.low), std::min(a.high, b.high), both(a, b)};
  }
  friend Interval max(const Interval& a, const Interval& b) {
    return {std::max(a.low, b.low), std::max(a.high, b.high), both(a, b)};
  }
  friend Interval clamp(const Interval& x, const Interval& from, const Interval& to) {
    return min(max(x, from), to);
  }
  friend Interval where(const Interval&, const Interval& a, const Interval& b) {
    return {std::min(a.low, b.low), std::max(a.high, b.high), both(a, b)};
  }
  friend Interval abs(const Interval& a) {
    const double least = a.low > 0 ? a.low : a.high < 0 ? -a.high : 0;
    return {least, a.magnitude(), a.kind()};
  }
  friend Interval relu(const Interval& a) { return max(a, Interval(0, 0, a.kind())); }
  friend Interval floor(const Interval& a) {
    return {std::floor(a.low), std::floor(a.high), a.kind()};
  }

#define ATTZOO_INTERVAL_ASSIGNMENT(op) \
  friend Interval& operator op##=(Interval& a, const Interval& b) { return a = a op b; }
  ATTZOO_INTERVAL_ASSIGNMENT(+)
  ATTZOO_INTERVAL_ASSIGNMENT(-)
  ATTZOO_INTERVAL_ASSIGNMENT(*)
  ATTZOO_INTERVAL_ASSIGNMENT(/)
  ATTZOO_INTERVAL_ASSIGNMENT(%)
  ATTZOO_INTERVAL_ASSIGNMENT(&)
  ATTZOO_INTERVAL_ASSIGNMENT(|)
  ATTZOO_INTERVAL_ASSIGNMENT(^)
  ATTZOO_INTERVAL_ASSIGNMENT(<<)
  ATTZOO_INTERVAL_ASSIGNMENT(>>)
#undef ATTZOO_INTERVAL_ASSIGNMENT

 private:
  static Interval bits(const Interval& a, const Interval& b) {
    const double most = std::exp2(std::ceil(std::log2(std::max(a.magnitude(), b.magnitude()) + 1)));
    return {a.low < 0 || b.low < 0 ? -most : 0, most - 1, true};
  }
};

}  // namespace attzoo::core
