#pragma once
/// \file
/// Causal linear attention on CPU as a chunked prefix scan.

#include <attzoo/kernel/isa.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Writes p.out.
template <class T>
void scan(const ScanProblem& p, Runtime& runtime) {
#if defined(__x86_64__)
  if (isa() >= Isa::kAvx512) return avx512::scan<T>(p, runtime);
  if (isa() == Isa::kAvx2) return avx2::scan<T>(p, runtime);
#endif
  portable::scan<T>(p, runtime);
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
