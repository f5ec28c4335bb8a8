#pragma once
// Definitions of dispatch.hpp.

#include <attzoo/core/attention/chunked.hpp>
#include <attzoo/core/attention/dispatch.hpp>
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
