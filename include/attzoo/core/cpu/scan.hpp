#pragma once
/// \file
/// The CPU's scan of causal linear attention (kernel/scan.hpp): tensors to a kernel::ScanProblem.

#include <attzoo/core/cpu/runtime.hpp>


namespace attzoo::core {

/// Whether the kernel takes these: on the CPU, with something to compute, and sizes that its 32-bit
/// indices hold. q [B, H, n, F], v [B, H, n, E].
ATTZOO_API bool fits_cpu_scan(const torch::Tensor& q, const torch::Tensor& v);

/// out_i = sum over j <= i of (q_i . k_j) v_j; reverse: over j >= i. q, k [B, H, n, F],
/// v [B, H, n, E], all of them plain(), each of its own floating dtype -> [B, H, n, E] in v's
/// dtype. Computes in double for a float64 q, else in float. Not differentiable.
ATTZOO_API torch::Tensor cpu_scan(const torch::Tensor& q, const torch::Tensor& k,
                                  const torch::Tensor& v, bool reverse);

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/cpu/scan.ipp>
#endif
