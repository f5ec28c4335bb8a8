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

#ifndef ATTZOO_COMPILED
#include <attzoo/core/isa.ipp>
#endif
