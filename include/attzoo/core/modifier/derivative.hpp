#pragma once
/// \file
/// Derivatives of what a callable computes, as further nodes of its graph.

#include <attzoo/config.hpp>
#include <attzoo/core/modifier/symbol.hpp>

#include <optional>

namespace attzoo::core {

/// Of y with respect to `x`, the score or an entry of a table, by the rules of lanes: a number that
/// does not change has no part in it, whatever it is multiplied by. None: y does not depend on it.
ATTZOO_API std::optional<Symbol> derivative(const Symbol& y, const Symbol& x);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/kernel/math.hpp>

#include <vector>

namespace attzoo::core {

class Differentiation {
 public:
  using Change = std::optional<Symbol>;  // none: 0

  explicit Differentiation(const Symbol& x) : x_(x.node()) {}

  Change of(int y) {
    for (int i = static_cast<int>(changes_.size()); i <= y; ++i) changes_.push_back(next(i));
    return changes_[static_cast<size_t>(y)];
  }

 private:
  Change next(int i) {
    if (i == x_) return Symbol(1);
    const auto node = (*SymbolGraph::current())[i];  // a copy: the graph grows
    if (node.is_integer() || node.of.empty() || node.op == "table") return {};
    std::vector<Symbol> of;
    std::vector<Change> d;
    bool any = false;
    for (const int operand : node.of) {
      of.emplace_back(operand, nullptr);
      d.push_back(changes_[static_cast<size_t>(operand)]);
      any |= d.back().has_value();
    }
    return any ? through(node.op, Symbol(i, nullptr), of, d) : Change();
  }

  static Change through(const std::string& op, const Symbol& y, const std::vector<Symbol>& of,
                        const std::vector<Change>& d) {
    const Symbol &a = of[0], &b = of.back();
    if (op == "+") return sum(d[0], d[1]);
    if (op == "-" && of.size() == 1) return -*d[0];
    if (op == "-") return sum(d[0], negative(d[1]));
    if (op == "*") return sum(times(d[0], b), times(d[1], a));
    if (op == "/") return of_quotient(y, b, d);
    if (op == "%") return sum(d[0], negative(times(d[1], (a - y) / b)));
    if (op == "min" || op == "max") {
      const auto da = or_zero(d[0]), db = or_zero(d[1]);
      return where(a == b, (da + db) / 2.0, where(op == "min" ? b < a : b > a, db, da));
    }
    if (op == "where") return where(a, or_zero(d[1]), or_zero(d[2]));
    if (op == "abs") return where(a < 0, -*d[0], where(a > 0, *d[0], 0));
    if (op == "pow") {
      const auto by_base = where(b == 0, 0, b * pow(a, b - 1));
      const auto by_exponent = where(a == 0 && b >= 0, 0, y * log(a));
      return sum(times(d[0], by_base), times(d[1], by_exponent));
    }
    return of_function(op, a, y, d[0]);
  }

  static Change of_function(const std::string& op, const Symbol& x, const Symbol& y,
                            const Change& d) {
    using kernel::kLn2;
#define ATTZOO_DERIVATIVE(name, value, derivative) \
  if (op == #name) return times(d, Symbol(derivative));
    ATTZOO_LANE_FUNCTIONS(ATTZOO_DERIVATIVE)
#undef ATTZOO_DERIVATIVE
    return {};  // floor, and what is no number
  }
  static Change of_quotient(const Symbol& y, const Symbol& b, const std::vector<Change>& d) {
    if (y->range.kind.whole && !y->score) return {};
    const auto change = sum(d[0], negative(times(d[1], y)));
    if (!change) return {};
    return where(*change == 0, 0, *change / b);
  }

  static Symbol or_zero(const Change& d) { return d ? *d : Symbol(0); }
  static Change sum(const Change& a, const Change& b) {
    if (!a || !b) return a ? a : b;
    return *a + *b;
  }
  static Change negative(const Change& d) {
    if (!d) return {};
    return -*d;
  }
  /// 0 of a change that is 0, also where the slope is infinite or no number.
  static Change times(const Change& d, const Symbol& slope) {
    if (!d) return {};
    if ((*d)->op != "literal") return where(*d == 0, 0, *d * slope);
    const auto slot = static_cast<size_t>((*d)->slot);
    const double value = SymbolGraph::current()->literals()[slot].real;
    if (value == 0) return {};
    return value == 1 ? slope : *d * slope;
  }

  int x_;
  std::vector<Change> changes_;
};

ATTZOO_API std::optional<Symbol> derivative(const Symbol& y, const Symbol& x) {
  return Differentiation(x).of(y.node());
}

}  // namespace attzoo::core

#endif
