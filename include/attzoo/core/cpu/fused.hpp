#pragma once
/// \file
/// The fused CPU kernels as a backend: tensors to views, LibTorch's threads and memory to the
/// kernels'.

#include <attzoo/core/attention/backend.hpp>

namespace attzoo::core {

class FusedCpuBackend final : public Backend {
 public:
  bool takes(const Qkv& t, const Call& call) const override;
  OutputAndLse run(const Qkv& t, const Call& call) const override;
  Gradients run_backward(const Qkv& t, const Call& call, const OutputAndLse& result,
                         const Cotangents& from) const override;
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/core/cpu/fused.ipp>
#endif
