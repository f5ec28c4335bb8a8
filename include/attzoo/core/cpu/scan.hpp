#pragma once
/// \file
/// The CPU's scan of causal linear attention (kernel/recurrence/scan.hpp) as a backend.

#include <attzoo/core/recurrence/plain.hpp>

namespace attzoo::core {

/// Takes what is on the CPU, has something to compute, and sizes that the kernel's 32-bit indices
/// hold. Computes in double for a float64 q, else in float.
class CpuScan final : public PlainRecurrence {
 public:
  bool takes(const Recurrence& x) const override;
  torch::Tensor scan(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                     bool reverse) const override;
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/cpu/scan.ipp>
#endif
