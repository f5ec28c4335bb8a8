#pragma once
/// \file
/// What a mask and a score modifier become in a CUDA kernel.

#include <attzoo/config.hpp>
#include <attzoo/core/modifier/any_score.hpp>

#include <string>
#include <vector>

namespace attzoo::core {

/// Three functions of a pair, with what they call before them, and the numbers and tables that they
/// read. Modifiers that differ in these alone have the same text.
struct ModifierSource {
  std::string text;
  std::vector<SymbolGraph::Literal> numbers;
  std::vector<torch::Tensor> tables;
};

/// Throws c10::NotImplementedError where a mask or a score modifier is of a type of the program's
/// own that has no symbolic form.
ATTZOO_API ModifierSource modifier_source(const AnyMask& mask, const AnyScore& score,
                                          const Shape& n);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/cuda/emit.hpp>
#include <attzoo/core/modifier/derivative.hpp>

namespace attzoo::core {

ATTZOO_API ModifierSource modifier_source(const AnyMask& mask, const AnyScore& score,
                                          const Shape& n) {
  SymbolGraph graph;
  const SymbolGraph::Recording recording(graph);
  const SymbolPair pair(n);
  const auto s = graph.score();
  const auto attends = mask.symbol(pair);
  const auto modified = score.symbol(s, pair);
  const auto slope = derivative(modified, s).value_or(Symbol(0));

  std::string text = cuda_numbers();
  text +=
      "\n// A number that the callables captured or have as a literal.\n"
      "struct Number {\n  i64 integer;\n  double real;\n};\n";
  const auto function = [&](const char* comment, const char* type, const char* head,
                            const Symbol& result) {
    text += std::string("\n// ") + comment + "\nFN " + type + " " + head +
            "int b, int h, int q, int kv, const Number* number, const Table* table) {\n" +
            emit(graph, result) + "}\n";
  };
  function("Whether query q attends to key kv.", "bool", "attends(", attends);
  function("What a score becomes.", "float", "modified(float s, ", modified);
  function("Its derivative with respect to the score.", "float", "slope(float s, ", slope);
  return {std::move(text), graph.literals(), graph.tables()};
}

}  // namespace attzoo::core

#endif
