#pragma once
/// \file
/// Masks and score modifiers compiled into CUDA kernels while the program runs.

#include <attzoo/core/cuda/fused.hpp>

namespace attzoo {

/// Whether attention on CUDA tensors goes to kernels that are made of its own mask and score
/// modifier, compiled by NVRTC when they are first met (docs/cuda.md); by default where the
/// environment variable ATTZOO_CUDA_JIT is 1. Where that fails, a warning says why, once, and
/// attention runs in chunks of query rows. explain() says which way is taken. Example:
/// `set_cuda_jit(true);`
inline void set_cuda_jit(bool on) { core::cuda_jit() = on; }

}  // namespace attzoo
