#pragma once
/// \file
/// CUDA tensors in a process without CUDA: their memory is the host's, and LibTorch's CPU kernels
/// compute with it. Linked in, there are two devices with streams of their own. As on CUDA, the
/// dispatcher's, autograd's and the guards' ways are those of device tensors, and tensors of two
/// devices do not mix. Unlike there, all is done at once, random numbers are the CPU's, the host
/// can read a tensor's memory, and what only CUDA has (flash attention, fused recurrent cells) or
/// what has no plain memory (sparse tensors) is missing.

#include <c10/core/Device.h>

#include <cstdint>

namespace attzoo::testing {

/// How often the host waited for the device since the start: item(), copies to the CPU unless they
/// are non-blocking, and results whose size it has to know, as nonzero()'s.
int64_t host_synchronisations();

/// A stream's native handle that a launch on it shows.
void* pretended_stream(const c10::Device& device, int64_t id);

}  // namespace attzoo::testing
