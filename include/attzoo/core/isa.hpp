#pragma once
/// \file
/// The environment variable ATTZOO_ISA, for whoever calls a kernel that depends on it: kernels do
/// not throw.

#include <attzoo/config.hpp>

namespace attzoo::core {

/// Throws c10::ValueError, each time, where ATTZOO_ISA was set to what is no name of an instruction
/// set when this was first called.
ATTZOO_API void check_isa();

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

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

#endif
