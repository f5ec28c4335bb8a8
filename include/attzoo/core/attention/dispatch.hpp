#pragma once
/// \file
/// Which backend runs a problem.

#include <attzoo/core/attention/backend.hpp>

#include <string>

namespace attzoo::core {

/// Softmax attention by the best way that is exact for it: fused on CPU, and on CUDA where that was
/// asked for; in chunks what is large or sparse; by definition what is small, empty, or asked for
/// by an EagerReferenceGuard. Quantized keys and values are read as they are by the fused kernels
/// on the CPU, without gradients; else they are dequantized first.
ATTZOO_API OutputAndLse dispatch(const Qkv& t, const Rule& rule);

/// Which of these dispatch() takes, and why none of those before it.
ATTZOO_API std::string explain(const Qkv& t, const Rule& rule);

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/attention/chunked.hpp>
#include <attzoo/core/choose.hpp>
#include <attzoo/core/cpu/fused.hpp>
#include <attzoo/core/cuda/fused.hpp>
#include <attzoo/core/views.hpp>

namespace attzoo::core {

ATTZOO_API const std::array<const Backend*, 4>& backends() {
  static const FusedCpuBackend fused_cpu;
  static const FlashBackend flash;
  static const FusedCudaBackend fused_cuda;
  static const ChunkedBackend chunked;
  static const std::array<const Backend*, 4> in_order{&fused_cpu, &flash, &fused_cuda, &chunked};
  return in_order;
}

/// What the backends are given.
ATTZOO_API Qkv readable(const Qkv& t, const Call& call) {
  if (!is_quantized(t.k)) return t;
  const bool learns =
      is_differentiated(t.q) || (torch::GradMode::is_enabled() && !call.learning().empty());
  const bool as_they_are = !learns && !eager_reference() && backends()[0]->takes(t, call);
  return as_they_are ? t : dequantized(t);
}

ATTZOO_API OutputAndLse dispatch(const Qkv& any, const Rule& rule) {
  Call call(rule);
  const auto t = readable(any, call);
  const auto* backend = choose(backends(), t, call);
  return backend ? run(*backend, t, std::move(call)) : reference(t, rule);
}

ATTZOO_API std::string explain(const Qkv& any, const Rule& rule) {
  const Call call(rule);
  const auto t = readable(any, call);
  std::string text;
  if (is_quantized(any.k)) {
    text = is_quantized(t.k) ? "k and v are read in 8 bits\n" : "k and v are dequantized first\n";
  }
  for (const auto* backend : backends()) {
    const char* why =
        eager_reference() ? "an EagerReferenceGuard lives" : backend->why_not(t, call);
    if (!why) return text + backend->name() + ": taken\n";
    text += c10::str(backend->name(), ": not taken, ", why, "\n");
  }
  return text + "the definition, n x n in memory: taken\n";
}

}  // namespace attzoo::core

#endif
