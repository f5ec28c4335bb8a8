#pragma once
/// \file
/// Errors are part of the interface: their kind and what they name.

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace attzoo::testing {

/// `f` must throw a c10::Error whose text holds all `parts`.
template <class F>
void expect_error(F&& f, const std::vector<std::string>& parts) {
  try {
    f();
    FAIL() << "expected an error that names " << ::testing::PrintToString(parts);
  } catch (const c10::Error& e) {
    const std::string text = e.what_without_backtrace();
    for (const auto& part : parts) {
      EXPECT_NE(text.find(part), std::string::npos) << "expected '" << part << "' in: " << text;
    }
  }
}

}  // namespace attzoo::testing
