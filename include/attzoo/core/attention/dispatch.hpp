#pragma once
/// \file
/// Which backend runs a problem.

#include <attzoo/core/attention/backend.hpp>

namespace attzoo::core {

/// Softmax attention by the best way that is exact for it: fused on CPU; in chunks what is large or
/// sparse; by definition what is small, empty, or asked for by an EagerReferenceGuard.
ATTZOO_API OutputAndLse dispatch(const Qkv& t, const Rule& rule);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/attention/dispatch.ipp>
#endif
