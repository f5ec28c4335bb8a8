#pragma once
// Definitions of settled.hpp.

#include <attzoo/module/settled.hpp>

#include <c10/util/Exception.h>

namespace attzoo::core {

[[noreturn]] ATTZOO_API void throw_unsettled(std::string_view who, std::string_view option,
                                             const std::string& was, const std::string& is) {
  C10_THROW_ERROR(ValueError,
                  c10::str(who, ": ", option, " is settled when the module is made: it was ", was,
                           ", now it is ", is, "; make another module of these options"));
}

}  // namespace attzoo::core
