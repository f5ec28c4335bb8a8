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

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/cpu/runtime.hpp>
#include <attzoo/core/isa.hpp>

#include <attzoo/kernel/recurrence/scan.hpp>

#include <algorithm>

namespace attzoo::core {

ATTZOO_API bool CpuScan::takes(const Recurrence& x) const {
  constexpr int64_t kMost = int64_t{1} << 30;
  const auto fits = [](int64_t size) { return size > 0 && size < kMost; };
  return x.q.device().is_cpu() && std::all_of(x.q.sizes().begin(), x.q.sizes().end(), fits) &&
         fits(x.v.size(3));
}

ATTZOO_API torch::Tensor CpuScan::scan(const torch::Tensor& q, const torch::Tensor& k,
                                       const torch::Tensor& v, bool reverse) const {
  check_isa();
  auto out = empty_as(q, v.size(3), v.scalar_type());
  const auto size = [](int64_t n) { return static_cast<int>(n); };
  const kernel::ScanProblem p{.q = view(q),
                              .k = view(k),
                              .v = view(v),
                              .out = view(out),
                              .B = size(q.size(0)),
                              .H = size(q.size(1)),
                              .n = size(q.size(2)),
                              .F = size(q.size(3)),
                              .E = size(v.size(3)),
                              .reverse = reverse};
  with_compute_type(q, [&]<class T>(T) {
    TorchRuntime runtime;
    kernel::scan<T>(p, runtime);
  });
  return out;
}

}  // namespace attzoo::core

#endif
