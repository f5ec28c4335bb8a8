#pragma once
/// \file
/// The kernels' bodies, compiled once for each instruction set, and which of them to run. A user's
/// program needs no -march: the choice is made at run time.

#include <attzoo/kernel/compiler.hpp>
#include <attzoo/kernel/dropout.hpp>
#include <attzoo/kernel/half.hpp>
#include <attzoo/kernel/masks.hpp>
#include <attzoo/kernel/scores.hpp>
#include <attzoo/kernel/tiling.hpp>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace attzoo::kernel {

enum class Isa { kPortable, kAvx2, kAvx512, kAmx };

inline Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
#if defined(__linux__)
    constexpr int kTile = 1 << 24, kBFloat16 = 1 << 22, kNeeded = kTile | kBFloat16;  // leaf 7, edx
    constexpr int kRequestPermission = 0x1023, kTileData = 18;                        // arch_prctl
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kNeeded) == kNeeded &&
        __builtin_cpu_supports("avx512bf16") &&
        syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) {
      return Isa::kAmx;
    }
#endif
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

/// The environment variable ATTZOO_ISA = portable | avx2 | avx512 chooses a lesser instruction set
/// than the CPU's best; one that the CPU lacks, or another word, changes nothing.
inline Isa isa() {
  static const Isa chosen = [] {
    const char* wanted = std::getenv("ATTZOO_ISA");
    const std::string_view name = wanted ? wanted : "";
    const Isa best = best_isa();
    if (name == "portable") return Isa::kPortable;
    if (name == "avx2") return std::min(best, Isa::kAvx2);
    if (name == "avx512") return std::min(best, Isa::kAvx512);
    return best;
  }();
  return chosen;
}

/// Whether there is a callable of the user's program among the modifiers.
template <class Modifier>
constexpr bool kHoldsCallable = false;
template <template <class...> class Modifier, class... Parts>
constexpr bool kHoldsCallable<Modifier<Parts...>> = (kHoldsCallable<Parts> || ...);
template <class F>
constexpr bool kHoldsCallable<MaskFunction<F>> = true;
template <class F>
constexpr bool kHoldsCallable<ScoreFunction<F>> = true;

}  // namespace attzoo::kernel

#if defined(__clang__)
// A loop that cannot be vectorised, because of what a callable does or of the user's flags, is no
// fault of the program's.
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wpass-failed"
#define ATTZOO_UNROLL _Pragma("unroll")
#define ATTZOO_LANES _Pragma("clang loop vectorize(assume_safety)")
#else
#define ATTZOO_UNROLL _Pragma("GCC unroll 16")
// A loop over lanes: to be vectorised as it stands. Unrolled first, as -O3 would, it is scalar
// code.
#define ATTZOO_LANES _Pragma("GCC ivdep") _Pragma("GCC unroll 1")
#endif
#define ATTZOO_INLINE inline __attribute__((always_inline)) ATTZOO_TARGET

#if defined(__x86_64__)
#define ATTZOO_ISA avx512
#define ATTZOO_VECTOR_BYTES 64
#define ATTZOO_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#include <attzoo/kernel/isa.inc>

#define ATTZOO_ISA avx2
#define ATTZOO_VECTOR_BYTES 32
#define ATTZOO_TARGET __attribute__((target("avx2,fma")))
#include <attzoo/kernel/isa.inc>
#endif

#define ATTZOO_ISA portable
#define ATTZOO_VECTOR_BYTES 16
#define ATTZOO_TARGET
#include <attzoo/kernel/isa.inc>

#undef ATTZOO_INLINE
#undef ATTZOO_UNROLL
#undef ATTZOO_LANES
#if defined(__clang__)
#pragma clang diagnostic pop
#endif
