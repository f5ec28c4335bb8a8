#pragma once
/// \file
/// Whether this thread computes attention by its definition.

namespace attzoo::core {

/// True while an EagerReferenceGuard (functional/debug.hpp) lives on this thread: attention and
/// linear attention then run by definition, everything n x n in memory.
inline bool& eager_reference() {
  static thread_local bool on = false;
  return on;
}

}  // namespace attzoo::core
