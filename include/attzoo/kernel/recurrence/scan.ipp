#pragma once
// Definitions of scan.hpp.

#include <attzoo/kernel/bodies.hpp>
#include <attzoo/kernel/recurrence/scan.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class T>
void scan(const ScanProblem& p, Runtime& runtime) {
  ATTZOO_ON_THIS_CPU(run_scan<T>(p, runtime));
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
