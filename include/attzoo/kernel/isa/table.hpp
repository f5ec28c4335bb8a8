#pragma once
/// \file
/// The table of instruction sets. A new one is a line here, a line in each.inc, and a file beside
/// them (see portable.inc) with its capabilities.

#include <attzoo/kernel/compiler.hpp>

/// All of them, the least first: X(enumerator, name in ATTZOO_ISA, namespace of the kernels'
/// bodies, whether this CPU has it, whether it is worth taking unasked, ...).
#if defined(__x86_64__)
#define ATTZOO_INSTRUCTION_SETS(X, ...)                                                     \
  X(kPortable, "portable", portable, true, true, __VA_ARGS__)                               \
  X(kAvx2, "avx2", avx2, has_avx2(), true, __VA_ARGS__)                                     \
  X(kAvx512, "avx512", avx512, has_avx512(), true, __VA_ARGS__)                             \
  X(kAvx512BFloat16, "avx512bf16", avx512, has_avx512_bfloat16(), bfloat16_dots_are_fast(), \
    __VA_ARGS__)                                                                            \
  X(kAmx, "amx", avx512, has_amx(), true, __VA_ARGS__)
#else
#define ATTZOO_INSTRUCTION_SETS(X, ...) X(kPortable, "portable", portable, true, true, __VA_ARGS__)
#endif

namespace attzoo::kernel {

#if defined(__x86_64__)
ATTZOO_API bool has_avx2();
ATTZOO_API bool has_avx512();
/// AVX-512 with vdpbf16ps.
ATTZOO_API bool has_avx512_bfloat16();
/// Some CPUs have vdpbf16ps at twice the speed of fused multiply-add in float, others at less than
/// that speed. AMD's are fast; elsewhere it is measured, which takes a tenth of a millisecond.
ATTZOO_API bool bfloat16_dots_are_fast();
/// Tile registers beside AVX-512 with bfloat16, if the system grants them: they must be asked for.
ATTZOO_API bool has_amx();
#endif

}  // namespace attzoo::kernel
