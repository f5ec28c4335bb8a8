#pragma once
/// \file
/// Which backend runs a problem.

#include <attzoo/core/backend.hpp>

#include <array>

namespace attzoo::core {

/// The first of the backends that takes a problem; null where none does, and under an
/// EagerReferenceGuard: then the definition runs.
template <class Backend, size_t N, class... Problem>
const Backend* choose(const std::array<const Backend*, N>& backends, const Problem&... problem) {
  if (eager_reference()) return nullptr;
  for (const auto* backend : backends) {
    if (backend->takes(problem...)) return backend;
  }
  return nullptr;
}

/// Softmax attention by the best way that is exact for it: fused on CPU; in chunks what is large or
/// sparse; by definition what is small, empty, or asked for by an EagerReferenceGuard.
ATTZOO_API OutputAndLse dispatch(const Qkv& t, const Rule& rule);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/dispatch.ipp>
#endif
