#pragma once
/// \file
/// One recurrence as the kernels see it.

#include <attzoo/kernel/view.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// out [B, H, n, E] = causal sums of (q . k) v: q and k [B, H, n, F], v [B, H, n, E].
struct ScanProblem {
  View q, k, v, out;
  int B = 0, H = 0, n = 0, F = 0, E = 0;
  bool reverse = false;  // sums over later tokens instead of earlier ones
};

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
