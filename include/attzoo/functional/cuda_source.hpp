#pragma once
/// \file
/// Masks and score modifiers as CUDA C++.

#include <attzoo/core/modifier/any_score.hpp>

#include <string>

namespace attzoo {

/// What a mask and a score modifier, your own callables among them, are in CUDA C++: the functions
/// attends(), modified() and slope() of a pair, slope() the derivative of modified(), with all that
/// they call, to read or to put into a kernel of your own. They run by the rules that callables
/// have everywhere in attzoo. Numbers and tables that a callable captures are arguments: callables
/// that differ in them alone have one source. `n`: the problem's sizes, for modifiers that depend
/// on them. Throws c10::NotImplementedError for masks and modifiers of types of your own without a
/// member `symbol`. Example:
/// `std::cout << cuda_source(causal(), score_mod([](auto s, auto...) { return 20 * tanh(s / 20);
/// }));`
ATTZOO_API std::string cuda_source(const core::AnyMask& mask, const core::AnyScore& score = {},
                                   const core::Shape& n = {1, 1, 1024, 1024});
template <ScoreMod Score>
std::string cuda_source(const Score& score, const core::Shape& n = {1, 1, 1024, 1024}) {
  return cuda_source(core::AnyMask(), core::AnyScore(score), n);
}

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_FUNCTIONAL

#include <attzoo/core/cuda/source.hpp>

#include <sstream>

namespace attzoo {

ATTZOO_API std::string cuda_source(const core::AnyMask& mask, const core::AnyScore& score,
                                   const core::Shape& n) {
  const auto source = core::modifier_source(mask, score, n);
  std::ostringstream text;
  text << source.text;
  for (size_t i = 0; i < source.numbers.size(); ++i) {
    const auto& x = source.numbers[i];
    text << (i == 0 ? "\n// number: " : ", ");
    if (x.whole)
      text << x.integer;
    else
      text << x.real;
  }
  for (size_t i = 0; i < source.tables.size(); ++i) {
    const auto& t = source.tables[i];
    text << (i == 0 ? "\n// table: " : ", ") << t.scalar_type() << ' ' << t.sizes();
  }
  text << '\n';
  return text.str();
}

}  // namespace attzoo

#endif
