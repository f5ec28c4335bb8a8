#pragma once
/// \file
/// The graph of a callable as source in CUDA C++.

#include <attzoo/config.hpp>
#include <attzoo/core/modifier/symbol.hpp>

#include <string>
#include <vector>

namespace attzoo::core {

/// Lines of a function's body that compute what the results need, each node once. `number` and
/// `table` are arguments of the function (problem.hpp).
ATTZOO_API std::string emit(const SymbolGraph& graph, const std::vector<Symbol>& results);

/// The name of a node there, or what stands for it.
ATTZOO_API std::string name_of(const SymbolGraph& graph, const Symbol& node);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <cmath>
#include <set>

namespace attzoo::core {

class Emitter {
 public:
  explicit Emitter(const SymbolGraph& graph) : graph_(graph) {}
  /// `needed`: the nodes that lines are asked of.
  Emitter(const SymbolGraph& graph, const std::set<int>& needed) : graph_(graph) {
    std::set<int> in_double;  // operands of what is no score
    for (auto i = needed.rbegin(); i != needed.rend(); ++i) {
      if (!in_double.count(*i) && may_be_float(*i)) of_scores_.insert(*i);
      if (graph[*i].score || of_scores_.count(*i)) continue;
      in_double.insert(graph[*i].of.begin(), graph[*i].of.end());
    }
  }

  std::string name(int i) const {
    const auto& node = graph_[i];
    if (node.op == "literal") return literal(i);
    return node.of.empty() ? node.op : "v" + std::to_string(i);
  }
  /// The line of a node, none for an argument.
  std::string line(int i) const {
    const auto& node = graph_[i];
    if (node.of.empty()) return "";
    constexpr unsigned kRow = SymbolGraph::kRow, kColumn = SymbolGraph::kColumn;
    const auto of = node.depends & ~static_cast<unsigned>(SymbolGraph::kHead);
    const char* comment = of == kRow      ? "  // of the row"
                          : of == kColumn ? "  // of the column"
                          : of == 0       ? "  // of the head"
                                          : "";
    return std::string("  const ") + kNames[type(i)] + " " + name(i) + " = " + value(node, i) +
           ";" + comment + "\n";
  }

 private:
  /// kFloat: what is computed with in double, but is a float's number.
  enum Type { kBool, kInt, kLong, kFloat, kDouble, kScore };
  static constexpr const char* kNames[] = {"bool", "int", "i64", "float", "double", "float"};

  /// A product or quotient of entries, of whole numbers of 32 bits and of literals that float
  /// holds well: in float it is wrong by two units in the last place, as a score is
  /// anyway. Where scores alone take it, double is not worth what it costs.
  bool may_be_float(int i) const {
    const auto& node = graph_[i];
    const auto is_small = [this](int operand) {
      constexpr double kLeast = 1e-9, kMost = 1e9;
      const auto t = type(operand);
      if (graph_[operand].op != "literal" || t != kDouble) return t == kFloat || t == kInt;
      const auto x = std::abs(graph_.literals()[static_cast<size_t>(graph_[operand].slot)].real);
      return x == 0 || (x >= kLeast && x <= kMost);
    };
    return !node.score && type(i) == kDouble && !node.range.kind.whole &&
           (node.op == "*" || node.op == "/") && is_small(node.of[0]) && is_small(node.of[1]);
  }

  Type type(int i) const {
    const auto& node = graph_[i];
    if (node.is_truth()) return kBool;
    if (node.score || of_scores_.count(i)) return kScore;
    if (node.op == "table" && is_of_floats(node.slot)) return kFloat;
    if (!node.is_integer()) return kDouble;
    constexpr double kMost = 2147483647;
    return node.range.low >= -kMost && node.range.high <= kMost ? kInt : kLong;
  }
  torch::ScalarType dtype(int slot) const {
    return graph_.tables()[static_cast<size_t>(slot)].scalar_type();
  }
  bool is_of_floats(int slot) const {
    return torch::isFloatingType(dtype(slot)) && dtype(slot) != torch::kFloat64;
  }
  std::string entry_type(int slot) const {
    switch (dtype(slot)) {
      case torch::kFloat64:
        return "double";
      case torch::kFloat32:
        return "float";
      case torch::kBFloat16:
        return "bf16";
      case torch::kHalf:
        return "f16";
      case torch::kInt64:
        return "i64";
      case torch::kInt32:
        return "int";
      case torch::kInt16:
        return "short";
      case torch::kInt8:
        return "signed char";
      case torch::kUInt16:
        return "unsigned short";
      case torch::kUInt32:
        return "unsigned";
      case torch::kUInt64:
        return "u64";
      default:
        return "unsigned char";  // and bool
    }
  }
  /// Indices are whole numbers, entries of tables among them.
  Type index_type(int i) const { return std::max(kInt, meet({i})); }
  /// The type that all of these are computed in.
  Type meet(const std::vector<int>& of) const {
    Type all = kInt;
    for (const int i : of) all = std::max(all, type(i));
    return all == kFloat ? kDouble : all;
  }
  std::string as(Type wanted, int i) const {
    const Type is = type(i);
    if (is == wanted) return name(i);
    if (wanted == kBool) return "(" + name(i) + " != 0)";
    return std::string("(") + kNames[wanted] + ")" + name(i);
  }
  /// Of whole numbers 0, 1 and 2 stand in the text, all others are arguments.
  std::string literal(int i) const {
    const auto& value = graph_.literals()[static_cast<size_t>(graph_[i].slot)];
    if ((value.real == 0 && !std::signbit(value.real)) || value.real == 1 || value.real == 2) {
      return std::to_string(static_cast<int>(value.real)) + (value.whole ? "" : ".0");
    }
    const auto number = "number[" + std::to_string(graph_[i].slot) + "]";
    if (!value.whole) return number + ".real";
    return (type(i) == kInt ? "(int)" : "") + number + ".integer";
  }
  /// A literal that is not 0 or -1, by which may be divided; else "".
  std::string divisor(int i) const {
    if (graph_[i].op != "literal" || !graph_[i].range.kind.whole) return "";
    const auto value = graph_.literals()[static_cast<size_t>(graph_[i].slot)].integer;
    if (value == 0 || value == -1) return "";
    return value < 0 ? "(" + std::to_string(value) + ")" : std::to_string(value);
  }
  static std::string call(const std::string& f, const std::string& a, const std::string& b) {
    return f + "(" + a + ", " + b + ")";
  }

  std::string value(const SymbolGraph::Node& node, int i) const {
    const auto& op = node.op;
    const auto& of = node.of;
    const Type t = type(i);
    if (op == "table") {
      std::string text =
          "entry<" + entry_type(node.slot) + ">(table[" + std::to_string(node.slot) + "]";
      for (const int index : of) text += ", " + as(index_type(index), index);
      return text + ")";
    }
    if (op == "where") return as(kBool, of[0]) + " ? " + as(t, of[1]) + " : " + as(t, of[2]);
    if (op == "&&" || op == "||") return as(kBool, of[0]) + " " + op + " " + as(kBool, of[1]);
    if (op == "!") return "!" + as(kBool, of[0]);
    if (t == kBool && (op == "&" || op == "|")) {
      return as(kBool, of[0]) + " " + op + op + " " + as(kBool, of[1]);
    }
    if (t == kBool && op == "^") return as(kBool, of[0]) + " != " + as(kBool, of[1]);
    if (t == kBool) return infix(meet(of), op, of);  // a comparison
    if (t == kInt || t == kLong) return whole(op, of, t, node.range);
    return floating(op, of, t, node.range.kind.whole);
  }

  std::string infix(Type t, const std::string& op, const std::vector<int>& of) const {
    return as(t, of[0]) + " " + op + " " + as(t, of[1]);
  }

  std::string whole(const std::string& op, const std::vector<int>& of, Type t,
                    const Interval& range) const {
    const Type in = std::max(t, meet(of));
    const auto cast = [&](const std::string& text) {
      return in == t ? text : std::string("(") + kNames[t] + ")(" + text + ")";
    };
    const bool wraps = !std::isfinite(range.high - range.low);
    if (op == "<<") return call("shift_left", as(kLong, of[0]), as(kLong, of[1]));
    if (op == ">>") {
      const auto text = call("shift_right", as(kLong, of[0]), as(kLong, of[1]));
      return t == kLong ? text : "(int)" + text;
    }
    if (op == "/" || op == "%") {
      if (const auto by = divisor(of[1]); !by.empty())
        return cast(as(in, of[0]) + " " + op + " " + by);
      const auto text =
          call(op == "/" ? "quotient" : "remainder", as(kLong, of[0]), as(kLong, of[1]));
      return t == kLong ? text : "(int)" + text;
    }
    if (op == "min" || op == "max") return cast(extreme(op, of, in));
    if (op == "abs") {
      const auto x = as(in, of[0]);
      return cast(x + " < 0 ? " + (wraps ? "(i64)(0 - (u64)" + x + ")" : "-" + x) + " : " + x);
    }
    if (op == "-" && of.size() == 1) {
      return wraps ? "(i64)(0 - (u64)" + as(in, of[0]) + ")" : cast("-" + as(in, of[0]));
    }
    if (op == "~") return cast("~" + as(in, of[0]));
    if (wraps && (op == "+" || op == "-" || op == "*")) {
      return "(i64)((u64)" + as(kLong, of[0]) + " " + op + " (u64)" + as(kLong, of[1]) + ")";
    }
    return cast(infix(in, op, of));
  }

  std::string floating(const std::string& op, const std::vector<int>& of, Type t,
                       bool whole) const {
    const auto a = as(t, of[0]);
    if (op == "abs") return a + " < 0 ? -" + a + " : " + a;
    if (op == "-" && of.size() == 1) return "-" + a;
    if (op == "min" || op == "max") return extreme(op, of, t);
    if (of.size() == 1) return "math::" + op + "(" + a + ")";
    const auto b = as(t, of[1]);
    if (op == "pow") return call("math::pow", a, b);
    if (op == "%") return call("remainder", a, b);
    if (op == "/" && whole) return call("whole_quotient", a, b);
    if (t == kDouble && op == "+") return call("sum", a, b);
    if (t == kDouble && op == "-") return call("difference", a, b);
    if (t == kDouble && op == "*") return call("product", a, b);
    return a + " " + op + " " + b;
  }

  std::string extreme(const std::string& op, const std::vector<int>& of, Type t) const {
    const auto a = as(t, of[0]), b = as(t, of[1]);
    return b + (op == "min" ? " < " : " > ") + a + " ? " + b + " : " + a;
  }

  const SymbolGraph& graph_;
  std::set<int> of_scores_;  // computed as these are
};

ATTZOO_API std::string emit(const SymbolGraph& graph, const std::vector<Symbol>& results) {
  std::set<int> needed;
  for (const auto& result : results) needed.insert(result.node());
  for (auto i = needed.rbegin(); i != needed.rend(); ++i) {  // operands have smaller numbers
    for (const int operand : graph[*i].of) needed.insert(operand);
  }
  const Emitter emitter(graph, needed);
  std::string body;
  for (const int i : needed) body += emitter.line(i);
  return body;
}

ATTZOO_API std::string name_of(const SymbolGraph& graph, const Symbol& node) {
  return Emitter(graph).name(node.node());
}

}  // namespace attzoo::core

#endif
