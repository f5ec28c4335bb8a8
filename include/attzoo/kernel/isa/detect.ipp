#pragma once
// What this CPU has; definitions of table.hpp.

#include <attzoo/kernel/isa/table.hpp>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace attzoo::kernel {

ATTZOO_API bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

ATTZOO_API bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

ATTZOO_API bool has_amx() {
#if defined(__linux__)
  constexpr int kTile = 1 << 24, kBFloat16 = 1 << 22, kNeeded = kTile | kBFloat16;  // leaf 7, edx
  constexpr int kRequestPermission = 0x1023, kTileData = 18;                        // arch_prctl
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512() && __builtin_cpu_supports("avx512bf16") &&
         __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kNeeded) == kNeeded &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace attzoo::kernel
#endif
