#pragma once
/// \file
/// The one list of mechanisms (support/mechanisms.hpp) for tests that need no types.

#include <attzoo/module/any_attention.hpp>

#include <functional>
#include <string>
#include <vector>

#include "support/mechanisms.hpp"

namespace attzoo::testing {

struct Listed {
  std::string name;
  std::function<AnyAttention()> make;
};

/// All of them at this size, with rotary positions where they can have them.
std::vector<Listed> every_mechanism(const Size& size);

}  // namespace attzoo::testing
