#pragma once
/// \file
/// Which devices there are, for programs that link to the CPU part of LibTorch alone.

#include <c10/core/Device.h>
#include <dlfcn.h>
#include <torch/cuda.h>

namespace attzoo::testing {

/// Whether LibTorch sees a CUDA device. Its CUDA part, if there is one, registers itself when it is
/// loaded, which the program need not have been linked to do.
inline bool has_cuda() {
  dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
  return torch::cuda::is_available();
}

}  // namespace attzoo::testing
