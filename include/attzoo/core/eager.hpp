#pragma once
/// \file
/// Whether attention on this thread runs by its definition; functional/debug.hpp has the guard.

namespace attzoo::core {

/// The same variable in header-only and in compiled programs, so it is always inline.
inline bool& eager_reference() {
  static thread_local bool on = false;
  return on;
}

}  // namespace attzoo::core
