#pragma once
// What this CPU has; definitions of table.hpp.

#include <attzoo/kernel/isa/table.hpp>

#if defined(__x86_64__)
#include <cpuid.h>

#include <algorithm>
#include <cstdint>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace attzoo::kernel {

ATTZOO_API bool has_avx2() {
  constexpr unsigned kF16c =
      1 << 29;  // leaf 1, ecx; __builtin_cpu_supports() of g++ 10 knows it not
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &a, &b, &c, &d) && (c & kF16c) != 0;
}

ATTZOO_API bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

ATTZOO_API bool has_avx512_bfloat16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

/// The least ticks, of several tries, that a loop takes which applies an instruction to eight
/// registers.
#define ATTZOO_LEAST_TICKS(instruction)                                                       \
  [] {                                                                                        \
    uint64_t least = ~uint64_t{0};                                                            \
    for (int repeat = 0; repeat < 16; ++repeat) {                                             \
      const uint64_t start = __builtin_ia32_rdtsc();                                          \
      unsigned rounds = 500;                                                                  \
      asm volatile(                                                                           \
          ".irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8\n vpxord %%zmm\\i, %%zmm\\i, %%zmm\\i\n .endr\n" \
          "0: .irp i, 0, 1, 2, 3, 4, 5, 6, 7\n " instruction                                  \
          " %%zmm8, %%zmm8, %%zmm\\i\n .endr\n dec %0\n jnz 0b\n vzeroupper"                  \
          : "+r"(rounds)                                                                      \
          :                                                                                   \
          : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "cc");    \
      least = std::min(least, uint64_t{__builtin_ia32_rdtsc()} - start);                      \
    }                                                                                         \
    return least;                                                                             \
  }()

ATTZOO_API bool bfloat16_dots_are_fast() {
  if (__builtin_cpu_is("amd")) return true;
  // A dot product does the work of two multiply-adds, but its operands must be rounded and packed.
  return ATTZOO_LEAST_TICKS("vdpbf16ps") * 2 < ATTZOO_LEAST_TICKS("vfmadd231ps") * 3;
}
#undef ATTZOO_LEAST_TICKS

ATTZOO_API bool has_amx() {
#if defined(__linux__)
  constexpr int kTile = 1 << 24, kBFloat16 = 1 << 22, kNeeded = kTile | kBFloat16;  // leaf 7, edx
  constexpr int kRequestPermission = 0x1023, kTileData = 18;                        // arch_prctl
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512_bfloat16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
         (d & kNeeded) == kNeeded && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace attzoo::kernel
#endif
