#pragma once
// Definitions of isa.hpp.

#include <attzoo/core/isa.hpp>
#include <attzoo/kernel/isa/isa.hpp>

#include <c10/util/Exception.h>

#include <cstdlib>
#include <string>

namespace attzoo::core {

ATTZOO_API void check_isa() {
  static const std::string wrong = [] {
    const char* wanted = std::getenv("ATTZOO_ISA");
    return kernel::is_isa_name(wanted) ? std::string() : wanted;
  }();
  if (wrong.empty()) return;
  std::string names;
  for (const auto name : kernel::kIsaNames) names.append(names.empty() ? "" : ", ").append(name);
  TORCH_CHECK_VALUE(false, "attzoo: the environment variable ATTZOO_ISA must be one of ", names,
                    ", got \"", wrong, "\"");
}

}  // namespace attzoo::core
