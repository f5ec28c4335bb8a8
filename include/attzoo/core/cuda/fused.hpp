#pragma once
/// \file
/// Kernels made of the problem's own mask and score modifier as a backend: text (program.hpp),
/// compiled and launched by the driver (driver.hpp).

#include <attzoo/core/attention/backend.hpp>

#include <atomic>

namespace attzoo::core {

/// Whether CUDA tensors go to kernels that are compiled while the program runs: at first as the
/// environment variable ATTZOO_CUDA_JIT says (1: yes).
ATTZOO_API std::atomic<bool>& cuda_jit();

class FusedCudaBackend : public Backend {
 public:
  const char* name() const override { return "CUDA kernels compiled at run time"; }
  /// Compiles them where nothing else speaks against it.
  const char* why_not(const Qkv& t, const Call& call) const override;
  OutputAndLse run(const Qkv& t, const Call& call) const override;
  Gradients run_backward(const Qkv& t, const Call& call, const OutputAndLse& result,
                         const Cotangents& from) const override;

 protected:
  /// With a forward pass by ATen's flash attention or by kernels alone.
  const char* why_not(const Qkv& t, const Call& call, bool by_flash) const;
};

/// The forward pass of what is a window, if anything, by ATen's flash attention. The backward one
/// stays ours: ATen's adds by several blocks, in any order.
class FlashBackend final : public FusedCudaBackend {
 public:
  const char* name() const override { return "ATen's flash attention, CUDA kernels backward"; }
  const char* why_not(const Qkv& t, const Call& call) const override;
  /// By kernels alone where the operator fails, from then on.
  OutputAndLse run(const Qkv& t, const Call& call) const override;
};

}  // namespace attzoo::core

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/attention/chunked.hpp>
#include <attzoo/core/cuda/driver.hpp>
#include <attzoo/core/cuda/launch.hpp>

#include <cstdlib>
#include <cstring>

namespace attzoo::core {

ATTZOO_API std::atomic<bool>& cuda_jit() {
  static std::atomic<bool> on = [] {
    const char* asked = std::getenv("ATTZOO_CUDA_JIT");
    return asked && std::strcmp(asked, "1") == 0;
  }();
  return on;
}

ATTZOO_API std::atomic<bool>& flash_works() {
  static std::atomic<bool> works = true;
  return works;
}

/// Why no kernels can be made for it, whatever the machine.
ATTZOO_API const char* why_no_kernel(const Qkv& t, const Call& call) {
  constexpr int64_t kMost = int64_t{1} << 30, kMostBlocks = 65535, kMostFeatures = 256;
  const auto n = t.shape();
  if (t.q.numel() == 0 || t.k.numel() == 0 || t.v.numel() == 0)
    return "there is nothing to compute";
  if (call.rule.stick_breaking) return "their weights are a softmax, and a stick is broken here";
  if (t.q.scalar_type() == torch::kFloat64) return "they have no float64";
  if (t.q.size(3) > kMostFeatures || t.v.size(3) > kMostFeatures) return "more than 256 features";
  if (n.L >= kMost || n.S >= kMost) return "a length is beyond 2^30, what their indices hold";
  if (n.B > kMostBlocks || n.H > kMostBlocks) return "more than 65535 sequences or heads";
  Captured tensors;
  call.rule.mask.tensors(tensors);
  call.rule.score.tensors(tensors);
  for (const auto& x : tensors) {
    if (x.defined() && x.device() != t.q.device())
      return "a modifier's tensor is on another device";
  }
  return nullptr;
}

ATTZOO_API const char* FusedCudaBackend::why_not(const Qkv& t, const Call& call,
                                                 bool by_flash) const {
  if (!t.q.device().is_cuda()) return "the tensors are not on CUDA";
  if (!cuda_jit()) return "not asked for (ATTZOO_CUDA_JIT=1, or set_cuda_jit(true))";
  if (const char* why = why_no_kernel(t, call)) return why;
  if (by_flash) {
    if (!flash_works()) return "it failed (a warning said why)";
    if (const char* why = why_no_flash(t, call.rule)) return why;
  }
  try {
    if (cuda::facts(t.q.device()).capability < 80) return "compute capability below 8.0";
    if (!call.plan) call.plan = std::make_shared<CudaPlan>(t, call, by_flash);
  } catch (const c10::NotImplementedError&) {
    return "the mask or the score modifier has no symbol() (docs/cuda.md)";
  } catch (const c10::Error& e) {
    call.plan = nullptr;
    TORCH_WARN_ONCE("attzoo: CUDA kernels could not be compiled, attention runs in chunks: ",
                    e.what_without_backtrace());
    return "they could not be compiled (a warning said why)";
  }
  return nullptr;
}

ATTZOO_API const char* FusedCudaBackend::why_not(const Qkv& t, const Call& call) const {
  return why_not(t, call, false);
}
ATTZOO_API const char* FlashBackend::why_not(const Qkv& t, const Call& call) const {
  return FusedCudaBackend::why_not(t, call, true);
}

/// Of an error that is caught: says why, once, and attention runs in chunks from now on. In a CUDA
/// graph nothing else can be tried.
ATTZOO_API void after_failed_launch(const c10::Error& e, const torch::Device& device) {
  if (cuda::is_capturing(device)) throw;
  TORCH_WARN_ONCE("attzoo: CUDA kernels could not be launched, attention runs in chunks: ",
                  e.what_without_backtrace());
  cuda_jit() = false;
}
ATTZOO_API Call for_chunks(const Call& call) {
  Call other = call;
  other.plan = nullptr;
  return other;
}

ATTZOO_API OutputAndLse FusedCudaBackend::run(const Qkv& t, const Call& call) const {
  try {
    return static_cast<const CudaPlan*>(call.plan.get())->run(t, call);
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error& e) {
    after_failed_launch(e, t.q.device());
  }
  return ChunkedBackend().run(t, for_chunks(call));
}

ATTZOO_API OutputAndLse FlashBackend::run(const Qkv& t, const Call& call) const {
  try {
    return static_cast<const CudaPlan*>(call.plan.get())->run(t, call);
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error& e) {
    if (cuda::is_capturing(t.q.device())) throw;
    TORCH_WARN_ONCE("attzoo: ATen's flash attention failed, attention runs by its own kernels: ",
                    e.what_without_backtrace());
    flash_works() = false;
  }
  call.plan = nullptr;
  if (FusedCudaBackend::why_not(t, call, false)) return ChunkedBackend().run(t, for_chunks(call));
  return FusedCudaBackend::run(t, call);
}

ATTZOO_API Gradients FusedCudaBackend::run_backward(const Qkv& t, const Call& call,
                                                    const OutputAndLse& result,
                                                    const Cotangents& from) const {
  if (result.softmax.defined()) {  // else the forward pass ran in chunks
    try {
      return static_cast<const CudaPlan*>(call.plan.get())->run_backward(t, call, result, from);
    } catch (const c10::OutOfMemoryError&) {
      throw;
    } catch (const c10::Error& e) {
      after_failed_launch(e, t.q.device());
    }
  }
  return ChunkedBackend().run_backward(t, for_chunks(call), result, from);
}

}  // namespace attzoo::core

#endif
