#pragma once
/// \file
/// Causal linear attention on CPU as a chunked prefix scan. T is float or double.

#include <attzoo/kernel/recurrence/problem.hpp>
#include <attzoo/kernel/runtime.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Writes p.out.
template <class T>
void scan(const ScanProblem& p, Runtime& runtime);

#ifdef ATTZOO_COMPILED
extern template void scan<float>(const ScanProblem&, Runtime&);
extern template void scan<double>(const ScanProblem&, Runtime&);
#endif

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/recurrence/scan.ipp>
#endif
