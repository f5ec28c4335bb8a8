#pragma once
/// \file
/// Which backend runs a problem.

#include <attzoo/core/attention/backend.hpp>

namespace attzoo::core {

/// Softmax attention by the best way that is exact for it: fused on CPU; in chunks what is large or
/// sparse; by definition what is small, empty, or asked for by an EagerReferenceGuard.
ATTZOO_API OutputAndLse dispatch(const Qkv& t, const Rule& rule);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/attention/chunked.hpp>
#include <attzoo/core/choose.hpp>
#include <attzoo/core/cpu/fused.hpp>

namespace attzoo::core {

ATTZOO_API OutputAndLse dispatch(const Qkv& t, const Rule& rule) {
  static const FusedCpuBackend fused;
  static const ChunkedBackend chunked;
  const std::array<const Backend*, 2> in_order{&fused, &chunked};
  Call call(rule);
  const auto* backend = choose(in_order, t, call);
  return backend ? run(*backend, t, std::move(call)) : reference(t, rule);
}

}  // namespace attzoo::core

#endif
