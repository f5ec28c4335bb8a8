#pragma once
/// \file
/// CUDA tensors in a process without CUDA: their memory is the host's, and LibTorch's CPU kernels
/// compute with it. Linked in, there are two devices with streams of their own. As on CUDA, the
/// dispatcher's, autograd's and the guards' ways are those of device tensors; unlike there, all is
/// done at once, and random numbers on the device and ATen's own CUDA kernels are missing.

#include <c10/core/Device.h>

#include <cstdint>

namespace attzoo::testing {

/// How often the host waited for the device since the start: item() and copies to the CPU.
int64_t host_synchronisations();

/// A stream's native handle that a launch on it shows.
void* pretended_stream(const c10::Device& device, int64_t id);

}  // namespace attzoo::testing
