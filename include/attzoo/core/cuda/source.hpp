#pragma once
/// \file
/// What a mask and a score modifier become in a CUDA kernel.

#include <attzoo/config.hpp>
#include <attzoo/core/modifier/any_score.hpp>

#include <string>
#include <vector>

namespace attzoo::core {

/// Functions of a pair, with what they call before them, and the numbers and tables that they read.
/// Modifiers that differ in these alone have the same text.
struct ModifierSource {
  std::string text;
  std::vector<SymbolGraph::Literal> numbers;
  std::vector<torch::Tensor> tables;
  bool by_batch, by_head;  // whether the mask differs there
};

/// Which of these a table is, or is a part of as a contiguous view; -1: none.
ATTZOO_API int learnable_of(const torch::Tensor& table, const std::vector<torch::Tensor>& learning);

/// Tables that are or are parts of `learning` have a gradient in the function learn(). Throws
/// c10::NotImplementedError where a mask or a score modifier is of a type of the program's own that
/// has no symbolic form.
ATTZOO_API ModifierSource modifier_source(const AnyMask& mask, const AnyScore& score,
                                          const Shape& n,
                                          const std::vector<torch::Tensor>& learning = {});

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/cuda/emit.hpp>
#include <attzoo/core/cuda/problem.hpp>
#include <attzoo/core/modifier/derivative.hpp>

#include <algorithm>
#include <set>

namespace attzoo::core {

/// Whether a node depends on the argument of this name.
ATTZOO_API bool depends_on(const SymbolGraph& graph, int node, const std::string& argument) {
  std::set<int> needed{node};
  for (auto i = needed.rbegin(); i != needed.rend(); ++i) {
    if (graph[*i].op == argument && graph[*i].of.empty()) return true;
    for (const int operand : graph[*i].of) needed.insert(operand);
  }
  return false;
}

/// Structs, which the preprocessor made one line of, as lines.
ATTZOO_API std::string struct_lines(std::string text) {
  for (const char* mark : {"; ", "{ "}) {
    for (size_t i = 0; (i = text.find(mark, i)) != std::string::npos; i += 2) {
      text.replace(i + 1, 1,
                   text.compare(i + 2, 1, "}") == 0 || text.compare(i + 2, 6, "struct") == 0
                       ? "\n"
                       : "\n  ");
    }
  }
  return text + "\n";
}

/// What the functions call.
ATTZOO_API std::string cuda_numbers() {
  static constexpr char kText[] =
#include <attzoo/core/cuda/text/numbers.inc>
      ;
  return struct_lines(cuda::kModifierStructs) + "\n" + kText;
}

ATTZOO_API int learnable_of(const torch::Tensor& table,
                            const std::vector<torch::Tensor>& learning) {
  const auto is_part = [&](const torch::Tensor& t) {
    return table.is_alias_of(t) && table.is_contiguous() && t.is_contiguous() &&
           table.storage_offset() >= t.storage_offset() &&
           table.storage_offset() + table.numel() <= t.storage_offset() + t.numel();
  };
  auto found = std::find_if(learning.begin(), learning.end(),
                            [&](const torch::Tensor& t) { return t.is_same(table); });
  if (found == learning.end()) found = std::find_if(learning.begin(), learning.end(), is_part);
  return found == learning.end() ? -1 : static_cast<int>(found - learning.begin());
}

/// What it adds for each entry of a table that learns.
ATTZOO_API std::string learn_function(const SymbolGraph& graph, const Symbol& modified,
                                      const std::vector<torch::Tensor>& learning) {
  std::vector<Symbol> results;
  std::string calls;
  const int nodes = graph.size();  // derivatives are further ones
  for (int i = 0; i < nodes; ++i) {
    const auto node = graph[i];
    if (node.op != "table") continue;
    const auto& table = graph.tables()[static_cast<size_t>(node.slot)];
    if (learnable_of(table, learning) < 0) continue;
    const auto slope = derivative(modified, Symbol(i, nullptr));
    if (!slope) continue;
    results.push_back(*slope);
    const auto of = "table[" + std::to_string(node.slot) + "]";
    calls += "  add(" + of + ", place(" + of + ".gradient_stride, " + of + ".size";
    for (const int index : node.of) {
      results.emplace_back(index, nullptr);
      calls += ", " + name_of(graph, results.back());
    }
    calls += "), (float)" + name_of(graph, *slope) + ");\n";
  }
  return emit(graph, results) + calls;
}

ATTZOO_API ModifierSource modifier_source(const AnyMask& mask, const AnyScore& score,
                                          const Shape& n,
                                          const std::vector<torch::Tensor>& learning) {
  SymbolGraph graph;
  const SymbolGraph::Recording recording(graph);
  const SymbolPair pair(n);
  const auto s = graph.score();
  const auto attends = mask.symbol(pair);
  const auto modified = score.symbol(s, pair);
  const auto slope = derivative(modified, s).value_or(Symbol(0));

  std::string text = cuda_numbers();
  const std::string arguments =
      "int b, int h, int q, int kv, const Number* number, const Table* table";
  const auto function = [&](const char* comment, const char* type, const char* head,
                            const Symbol& result) {
    text += std::string("\n// ") + comment + "\nFN " + type + " " + head + arguments + ") {\n" +
            emit(graph, {result}) + "  return " + name_of(graph, result) + ";\n}\n";
  };
  function("Whether query q attends to key kv.", "bool", "attends(", attends);
  function("What a score becomes.", "float", "modified(float s, ", modified);
  function("Its derivative with respect to the score.", "float", "slope(float s, ", slope);
  if (!learning.empty()) {
    text +=
        "\n// Calls add(table, entry, derivative) for each entry of tables that it read.\n"
        "template <class Add>\nFN void learn(float s, " +
        arguments + ", Add add) {\n" + learn_function(graph, modified, learning) + "}\n";
  }
  return {std::move(text), graph.literals(), graph.tables(), depends_on(graph, attends.node(), "b"),
          depends_on(graph, attends.node(), "h")};
}

}  // namespace attzoo::core

#endif
