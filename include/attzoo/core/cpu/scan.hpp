#pragma once
/// \file
/// The CPU's scan of causal linear attention (kernel/recurrence/scan.hpp) as a backend.

#include <attzoo/core/recurrence/backend.hpp>

namespace attzoo::core {

/// Takes what is on the CPU, has something to compute, and sizes that the kernel's 32-bit indices
/// hold. Computes in double for a float64 q, else in float.
class CpuScan final : public ScanBackend {
 public:
  bool takes(const torch::Tensor& q, const torch::Tensor& v) const override;
  torch::Tensor run(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                    bool reverse) const override;
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/cpu/scan.ipp>
#endif
