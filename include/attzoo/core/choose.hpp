#pragma once
/// \file
/// Which backend runs a problem: the one rule for softmax and linear attention.

#include <array>
#include <cstddef>

namespace attzoo::core {

/// True while an EagerReferenceGuard (functional/debug.hpp) lives on this thread: attention and
/// linear attention then run by definition, everything n x n in memory.
inline bool& eager_reference() {
  static thread_local bool on = false;
  return on;
}

/// The first of the backends that takes a problem; null where none does, and under an
/// EagerReferenceGuard: then the definition runs.
template <class Backend, std::size_t N, class... Problem>
const Backend* choose(const std::array<const Backend*, N>& backends, const Problem&... problem) {
  if (eager_reference()) return nullptr;
  for (const auto* backend : backends) {
    if (backend->takes(problem...)) return backend;
  }
  return nullptr;
}

}  // namespace attzoo::core
