#pragma once
/// \file
/// A further form of a modifier's arguments: symbols. A callable that runs on these yields what it
/// computes as a graph, from which its source in another language (emit.hpp) and its derivatives
/// (derivative.hpp) are made. Symbols have the operators and functions of lanes, and follow their
/// rules (kernel/modifier/lane.hpp): whole numbers have 64 bits and wrap around, with floating ones
/// they are double, a score keeps its precision, and nothing traps.

#include <attzoo/config.hpp>
#include <attzoo/core/checks.hpp>
#include <attzoo/core/modifier/interval.hpp>
#include <attzoo/kernel/modifier/lane_list.hpp>

#include <torch/types.h>

#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <type_traits>
#include <vector>

namespace attzoo::core {

class Symbol;

/// Equal expressions are one node, and operands stand before what is computed of them.
class SymbolGraph {
 public:
  /// What a number depends on, as bits.
  enum Dependence : unsigned { kScore = 1, kRow = 2, kColumn = 4, kHead = 8 };

  struct Node {
    std::string op;       // an operator, a function, an argument's name, "literal" or "table"
    std::vector<int> of;  // operands
    Interval range;       // between which bounds it lies, and of what kind it is
    bool score;           // whether it is computed in the precision of scores
    int slot;             // of a literal or a table, else -1
    unsigned depends;
    bool is_truth() const { return range.kind.truth; }
    /// Whole numbers but for entries of tables, which are double.
    bool is_integer() const { return !score && range.kind.whole && !range.kind.entry; }
  };
  /// A number of the program, which the kernel gets as an argument: callables that differ in such
  /// numbers alone have one source.
  struct Literal {
    bool whole;
    int64_t integer;
    double real;
  };

  Symbol score();
  Symbol b();
  Symbol h();
  Symbol q();
  Symbol kv();
  /// The entry of a tensor of integers or floats at these indices, one for each dimension.
  Symbol entry(const torch::Tensor& table, const std::vector<Symbol>& index);
  Symbol literal(const Literal& value);
  Symbol truth(bool value);
  Symbol add(const std::string& op, std::initializer_list<Symbol> of, const Interval& range,
             bool of_scores);

  const Node& operator[](int i) const { return nodes_[static_cast<size_t>(i)]; }
  int size() const { return static_cast<int>(nodes_.size()); }
  const std::vector<Literal>& literals() const { return literals_; }
  const std::vector<torch::Tensor>& tables() const { return tables_; }

  /// While one lives, numbers that meet symbols on this thread become literals of its graph.
  class Recording {
   public:
    explicit Recording(SymbolGraph& graph) : before_(current()) { current() = &graph; }
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;
    ~Recording() { current() = before_; }

   private:
    SymbolGraph* before_;
  };
  static SymbolGraph*& current() {
    static thread_local SymbolGraph* graph = nullptr;
    return graph;
  }

 private:
  Symbol argument(const char* name, unsigned depends);
  Symbol add(Node node);

  std::vector<Node> nodes_;
  std::map<std::string, int> known_;
  std::vector<Literal> literals_;
  std::vector<torch::Tensor> tables_;
};

/// A number or truth value of the graph that is being recorded.
class Symbol {
 public:
  template <class T>
  requires std::is_arithmetic_v<T> Symbol(T value)  // NOLINT: literals mix with symbols
      : Symbol(of_number(value)) {}
  explicit Symbol(int node, std::nullptr_t) : node_(node) {}

  int node() const { return node_; }
  const SymbolGraph::Node& operator*() const { return (*SymbolGraph::current())[node_]; }
  const SymbolGraph::Node* operator->() const { return &**this; }

#define ATTZOO_SYMBOL_OPERATOR(op, _)                           \
  friend Symbol operator op(const Symbol& a, const Symbol& b) { \
    return binary(#op, a, b, a.range() op b.range());           \
  }
  ATTZOO_SYMBOL_OPERATOR(+, _)
  ATTZOO_SYMBOL_OPERATOR(-, _)
  ATTZOO_SYMBOL_OPERATOR(*, _)
  ATTZOO_LANE_COMPARISONS(ATTZOO_SYMBOL_OPERATOR)
  ATTZOO_LANE_LOGIC(ATTZOO_SYMBOL_OPERATOR)
  ATTZOO_LANE_BITS(ATTZOO_SYMBOL_OPERATOR)
#undef ATTZOO_SYMBOL_OPERATOR
  // By a literal, which stands in the source, so that the compiler can do better than divide.
#define ATTZOO_SYMBOL_OPERATOR(op, _)                           \
  friend Symbol operator op(const Symbol& a, const Symbol& b) { \
    return binary(#op, a, b, a.range() op b.exactly());         \
  }
  ATTZOO_SYMBOL_OPERATOR(%, _)
  ATTZOO_LANE_SHIFTS(ATTZOO_SYMBOL_OPERATOR)
#undef ATTZOO_SYMBOL_OPERATOR
  friend Symbol operator/(const Symbol& a, const Symbol& b);
  friend Symbol operator!(const Symbol& a) { return unary("!", a, !a.range()); }
  friend Symbol operator~(const Symbol& a) {
    return a->is_truth() ? !a : unary("~", a, ~a.range());
  }
  friend Symbol operator-(const Symbol& a) { return unary("-", a, -a.range()); }
  friend Symbol operator+(const Symbol& a) { return a; }

#define ATTZOO_SYMBOL_FUNCTION(name, ...) \
  friend Symbol name(const Symbol& a) { return unary(#name, a, Interval::any()); }
  ATTZOO_LANE_FUNCTIONS(ATTZOO_SYMBOL_FUNCTION)
#undef ATTZOO_SYMBOL_FUNCTION
  friend Symbol pow(const Symbol& a, const Symbol& b) {
    return binary("pow", a, b, Interval::any());
  }
  friend Symbol min(const Symbol& a, const Symbol& b) {
    return binary("min", a, b, min(a.range(), b.range()));
  }
  friend Symbol max(const Symbol& a, const Symbol& b) {
    return binary("max", a, b, max(a.range(), b.range()));
  }
  friend Symbol where(const Symbol& condition, const Symbol& a, const Symbol& b);
  friend Symbol clamp(const Symbol& x, const Symbol& low, const Symbol& high);
  friend Symbol abs(const Symbol& a) { return unary("abs", a, abs(a.range())); }
  friend Symbol relu(const Symbol& a);
  friend Symbol floor(const Symbol& a);

#define ATTZOO_SYMBOL_ASSIGNMENT(op, _) \
  friend Symbol& operator op##=(Symbol& a, const Symbol& b) { return a = a op b; }
  ATTZOO_LANE_ASSIGNMENTS(ATTZOO_SYMBOL_ASSIGNMENT)
#undef ATTZOO_SYMBOL_ASSIGNMENT

 private:
  template <class T>
  static Symbol of_number(T value) {
    auto& graph = *SymbolGraph::current();
    if constexpr (std::is_same_v<T, bool>) {
      return graph.truth(value);
    } else if constexpr (std::is_integral_v<T>) {
      return graph.literal({true, static_cast<int64_t>(value), static_cast<double>(value)});
    } else {
      return graph.literal({false, 0, static_cast<double>(value)});
    }
  }
  const Interval& range() const { return (*this)->range; }
  /// A literal's own value, where any of its size will do elsewhere.
  Interval exactly() const;
  static Symbol unary(const char* op, const Symbol& a, const Interval& range);
  static Symbol binary(const char* op, const Symbol& a, const Symbol& b, const Interval& range);

  int node_;
};

ATTZOO_API Symbol operator/(const Symbol& a, const Symbol& b);
ATTZOO_API Symbol where(const Symbol& condition, const Symbol& a, const Symbol& b);
ATTZOO_API Symbol clamp(const Symbol& x, const Symbol& low, const Symbol& high);
ATTZOO_API Symbol relu(const Symbol& a);
ATTZOO_API Symbol floor(const Symbol& a);

/// A pair of a problem as symbols.
struct SymbolPair {
  Shape shape;
  Symbol b, h, q, kv;

  /// Of the graph that is being recorded.
  explicit SymbolPair(const Shape& n);
  /// The query as a place among the keys: the last query meets the last key.
  Symbol aligned_q() const { return q + (shape.S - shape.L); }
  /// The entry of a tensor that may broadcast.
  static Symbol of(const torch::Tensor& t, std::vector<Symbol> index);
};

/// Whether a pair may attend, as all_of() and so on fold it: by default it may.
struct SymbolTruth {
  Symbol truth;
  SymbolTruth() : truth(true) {}
  SymbolTruth(const Symbol& of) : truth(of) {}  // NOLINT: implicit
  friend SymbolTruth all_of(const SymbolTruth& a, const SymbolTruth& b) {
    return a.truth && b.truth;
  }
  friend SymbolTruth any_of(const SymbolTruth& a, const SymbolTruth& b) {
    return a.truth || b.truth;
  }
  friend SymbolTruth none_of(const SymbolTruth& a) { return !a.truth; }
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <algorithm>
#include <cmath>
#include <limits>

namespace attzoo::core {

ATTZOO_API Symbol SymbolGraph::add(Node node) {
  std::string key = node.op + ' ' + std::to_string(node.slot) + (node.score ? 's' : ' ') +
                    (node.range.kind.whole ? 'w' : 'r');
  for (const int i : node.of) {
    key += ' ' + std::to_string(i);
    node.depends |= (*this)[i].depends;
  }
  const auto [known, fresh] = known_.try_emplace(key, size());
  if (fresh) nodes_.push_back(std::move(node));
  return Symbol(known->second, nullptr);
}

ATTZOO_API Symbol SymbolGraph::add(const std::string& op, std::initializer_list<Symbol> of,
                                   const Interval& range, bool of_scores) {
  std::vector<int> operands;
  for (const auto& x : of) operands.push_back(x.node());
  const bool score = of_scores && !range.kind.truth;
  return add(Node{op, std::move(operands), range, score, -1, 0});
}

ATTZOO_API Symbol SymbolGraph::argument(const char* name, unsigned depends) {
  return add(
      Node{name, {}, {0, static_cast<double>(kernel::kMostIndex), true}, false, -1, depends});
}
ATTZOO_API Symbol SymbolGraph::score() {
  return add(Node{"s", {}, Interval::any(), true, -1, kScore});
}
ATTZOO_API Symbol SymbolGraph::b() { return argument("b", kHead); }
ATTZOO_API Symbol SymbolGraph::h() { return argument("h", kHead); }
ATTZOO_API Symbol SymbolGraph::q() { return argument("q", kRow); }
ATTZOO_API Symbol SymbolGraph::kv() { return argument("kv", kColumn); }

ATTZOO_API Symbol SymbolGraph::truth(bool value) {
  return add(Node{value ? "true" : "false", {}, Interval::truth(value, !value), false, -1, 0});
}

ATTZOO_API Symbol SymbolGraph::literal(const Literal& value) {
  const auto same = [&](const Literal& x) {
    return x.whole == value.whole &&
           (x.whole ? x.integer == value.integer
            : std::isnan(x.real)
                ? std::isnan(value.real)
                : x.real == value.real && std::signbit(x.real) == std::signbit(value.real));
  };
  const auto at = std::find_if(literals_.begin(), literals_.end(), same);
  const auto slot = static_cast<int>(at - literals_.begin());
  if (at == literals_.end()) literals_.push_back(value);
  // Other numbers of its size must fit the same source.
  auto range = Interval::any(value.whole);
  if (value.whole) {
    for (const int bits : {8, 16, 30}) {
      const double most = std::exp2(bits) - 1;
      if (std::abs(value.real) <= most && !std::isfinite(range.high)) {
        range = Interval(-most, most, true);
      }
    }
  }
  return add(Node{"literal", {}, range, false, slot, 0});
}

ATTZOO_API Symbol SymbolGraph::entry(const torch::Tensor& table, const std::vector<Symbol>& index) {
  TORCH_CHECK_VALUE(static_cast<int64_t>(index.size()) == table.dim(), "table: a tensor ",
                    table.sizes(), " needs ", table.dim(), " indices, got ", index.size());
  const auto same = [&](const torch::Tensor& t) { return t.is_same(table); };
  const auto at = std::find_if(tables_.begin(), tables_.end(), same);
  const auto slot = static_cast<int>(at - tables_.begin());
  if (at == tables_.end()) tables_.push_back(table);
  std::vector<int> of;
  for (const auto& i : index) of.push_back(i.node());
  const bool whole = !table.is_floating_point();
  return add(Node{"table", std::move(of), Interval::any({whole, true}), false, slot, 0});
}

ATTZOO_API SymbolPair::SymbolPair(const Shape& n)
    : shape(n),
      b(SymbolGraph::current()->b()),
      h(SymbolGraph::current()->h()),
      q(SymbolGraph::current()->q()),
      kv(SymbolGraph::current()->kv()) {}

ATTZOO_API Symbol SymbolPair::of(const torch::Tensor& t, std::vector<Symbol> index) {
  for (size_t d = 0; d < index.size(); ++d) {
    if (t.size(static_cast<int64_t>(d)) == 1) index[d] = 0;
  }
  return SymbolGraph::current()->entry(t, index);
}

ATTZOO_API Interval Symbol::exactly() const {
  const auto& node = **this;
  if (node.op != "literal") return node.range;
  const auto& value = SymbolGraph::current()->literals()[static_cast<size_t>(node.slot)];
  return value.whole ? Interval(value.integer) : Interval(value.real);
}

ATTZOO_API Symbol Symbol::unary(const char* op, const Symbol& a, const Interval& range) {
  return SymbolGraph::current()->add(op, {a}, range, a->score);
}
ATTZOO_API Symbol Symbol::binary(const char* op, const Symbol& a, const Symbol& b,
                                 const Interval& range) {
  return SymbolGraph::current()->add(op, {a, b}, range, a->score || b->score);
}

/// A score by a literal: times its reciprocal, as lanes do.
ATTZOO_API Symbol operator/(const Symbol& a, const Symbol& b) {
  if (a->score && b->op == "literal") {
    return a * Symbol(static_cast<double>(1 / static_cast<float>(b.exactly().low)));
  }
  return Symbol::binary("/", a, b, a.range() / b.exactly());
}

ATTZOO_API Symbol where(const Symbol& condition, const Symbol& a, const Symbol& b) {
  return SymbolGraph::current()->add("where", {condition, a, b},
                                     where(Interval::truth(false, false), a.range(), b.range()),
                                     a->score || b->score);
}
ATTZOO_API Symbol clamp(const Symbol& x, const Symbol& low, const Symbol& high) {
  const auto raised = where(x < low, low, x);
  return where(raised > high, high, raised);
}
ATTZOO_API Symbol relu(const Symbol& a) { return where(a > 0, a, 0); }
ATTZOO_API Symbol floor(const Symbol& a) {
  if (a->is_integer()) return a->is_truth() ? a + 0 : a;
  return Symbol::unary("floor", a, floor(a.range()));
}

}  // namespace attzoo::core

#endif
