#pragma once
/// \file
/// The table of instruction sets. A new one is a line here, a line in each.inc, and a file beside
/// them (see portable.inc) with its capabilities.

#include <attzoo/kernel/compiler.hpp>

/// All of them, the least first: X(enumerator, name in ATTZOO_ISA, namespace of the kernels'
/// bodies, whether this CPU has it, ...).
#if defined(__x86_64__)
#define ATTZOO_INSTRUCTION_SETS(X, ...)                   \
  X(kPortable, "portable", portable, true, __VA_ARGS__)   \
  X(kAvx2, "avx2", avx2, has_avx2(), __VA_ARGS__)         \
  X(kAvx512, "avx512", avx512, has_avx512(), __VA_ARGS__) \
  X(kAmx, "amx", avx512, has_amx(), __VA_ARGS__)
#else
#define ATTZOO_INSTRUCTION_SETS(X, ...) X(kPortable, "portable", portable, true, __VA_ARGS__)
#endif

namespace attzoo::kernel {

#if defined(__x86_64__)
ATTZOO_API bool has_avx2();
ATTZOO_API bool has_avx512();
/// Tile registers beside AVX-512 with bfloat16, if the system grants them: they must be asked for.
ATTZOO_API bool has_amx();
#endif

}  // namespace attzoo::kernel
