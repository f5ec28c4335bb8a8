#include "cuda/pretended_device.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>
#include <torch/types.h>

#include <atomic>
#include <map>
#include <memory>
#include <vector>

namespace attzoo::testing {
namespace {

constexpr int kDevices = 2;
thread_local c10::DeviceIndex current_device = 0;
thread_local int64_t current_stream[kDevices] = {0, 0};
std::atomic<int64_t> synchronisations{0};

/// Devices and streams, whose events are done at once.
class PretendedGuard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device d) const override {
    const auto before = getDevice();
    setDevice(d);
    return before;
  }
  c10::Device getDevice() const override { return {c10::kCUDA, current_device}; }
  void setDevice(c10::Device d) const override {
    TORCH_CHECK(d.index() < kDevices, "no such pretended device");
    if (d.has_index()) current_device = d.index();
  }
  void uncheckedSetDevice(c10::Device d) const noexcept override { current_device = d.index(); }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  c10::Stream getStream(c10::Device d) const override {
    return c10::Stream(c10::Stream::UNSAFE, d,
                       current_stream[d.has_index() ? d.index() : current_device]);
  }
  c10::Stream getDefaultStream(c10::Device d) const override {
    return c10::Stream(c10::Stream::UNSAFE, d, 0);
  }
  c10::Stream exchangeStream(c10::Stream s) const override {
    const auto before = getStream(s.device());
    current_stream[s.device_index()] = s.id();
    return before;
  }
  void* getStreamNativeHandle(const c10::Stream s) const override {
    return pretended_stream(s.device(), s.id());
  }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    *event = nullptr;
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { ++synchronisations; }
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override { ++synchronisations; }
};
C10_REGISTER_GUARD_IMPL(CUDA, PretendedGuard)

struct PretendedHooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex current_device() const override { return current_device_index(); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device_index(); }
  static c10::DeviceIndex current_device_index() { return attzoo::testing::current_device; }
};
const bool registered = [] {
  at::CUDAHooksRegistry()->Register("CUDAHooks", [](at::CUDAHooksArgs) {
    return std::unique_ptr<at::CUDAHooksInterface>(std::make_unique<PretendedHooks>());
  });
  return true;
}();

/// The same memory under another device; it lives as long as one of both.
c10::Storage shared_memory(const c10::Storage& of, const c10::Device& device) {
  auto* const keeps = new c10::Storage(of);
  return {
      c10::Storage::use_byte_size_t(), of.nbytes(),
      c10::DataPtr(
          of.mutable_data(), keeps, [](void* p) { delete static_cast<c10::Storage*>(p); }, device)};
}
at::Tensor view_of(const c10::Storage& storage, c10::DispatchKey key, const at::Tensor& like) {
  auto t = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key),
                                                    like.dtype());
  t.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(),
                                                 like.storage_offset());
  return t;
}

/// The tensors of one call of an operator, as the CPU's and back.
class Call {
 public:
  at::Tensor to_cpu(const at::Tensor& t) {
    if (!t.defined() || !t.is_cuda()) return t;
    device_ = t.device();
    auto& storage = on_cpu_[t.storage().unsafeGetStorageImpl()];
    if (!storage) {
      // What has no memory yet may be an operator's place for its result.
      storage = t.storage().nbytes() > 0 ? shared_memory(t.storage(), c10::kCPU)
                                         : c10::Storage(c10::Storage::use_byte_size_t(), 0,
                                                        c10::GetCPUAllocator(), true);
    }
    back_[storage.unsafeGetStorageImpl()] = t.storage();
    const auto cpu = view_of(storage, c10::DispatchKey::CPU, t);
    given_[cpu.unsafeGetTensorImpl()] = t;
    return cpu;
  }
  at::Tensor to_cuda(const at::Tensor& t) {
    if (!t.defined() || !t.is_cpu()) return t;
    const auto given = given_.find(t.unsafeGetTensorImpl());
    if (given != given_.end()) return resized(given->second, t);
    const auto known = back_.find(t.storage().unsafeGetStorageImpl());
    return view_of(known != back_.end() ? known->second : shared_memory(t.storage(), device_),
                   c10::DispatchKey::CUDA, t);
  }
  c10::IValue to_cpu(const c10::IValue& v) {
    if (v.isDevice() && v.toDevice().is_cuda()) {
      device_ =
          c10::Device(c10::kCUDA, v.toDevice().has_index() ? v.toDevice().index() : current_device);
      return c10::Device(c10::kCPU);
    }
    return each(v, [this](const at::Tensor& t) { return to_cpu(t); });
  }
  c10::IValue to_cuda(const c10::IValue& v) {
    return each(v, [this](const at::Tensor& t) { return to_cuda(t); });
  }

 private:
  /// A tensor that an operator has been given, as it is now on the CPU.
  at::Tensor resized(const at::Tensor& t, const at::Tensor& cpu) const {
    auto* const impl = t.unsafeGetTensorImpl();
    if (t.storage().nbytes() != cpu.storage().nbytes()) {
      impl->set_storage_keep_dtype(shared_memory(cpu.storage(), t.device()));
    }
    if (t.sizes() != cpu.sizes() || t.strides() != cpu.strides()) {
      impl->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
    }
    return t;
  }

  template <class F>
  static c10::IValue each(const c10::IValue& v, F f) {
    if (v.isTensor()) return f(v.toTensor());
    if (v.isTensorList()) {
      c10::List<at::Tensor> all;
      for (const at::Tensor& t : v.toTensorVector()) all.push_back(f(t));
      return all;
    }
    if (v.isList() && v.toListRef().size() > 0 && v.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> all;
      for (const auto& t : v.toOptionalTensorVector()) {
        all.push_back(t ? std::optional<at::Tensor>(f(*t)) : std::nullopt);
      }
      return all;
    }
    return v;
  }

  c10::Device device_{c10::kCUDA, current_device};
  std::map<c10::StorageImpl*, c10::Storage> on_cpu_, back_;
  std::map<c10::TensorImpl*, at::Tensor> given_;
};

/// Any operator, by the CPU's kernel.
void by_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& name = op.schema().operator_name().name;
  if (name == "aten::_local_scalar_dense" || name == "aten::nonzero") ++synchronisations;
  Call call;
  const auto arguments = op.schema().arguments().size();
  for (auto i = stack->end() - static_cast<int64_t>(arguments); i != stack->end(); ++i)
    *i = call.to_cpu(*i);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  const auto returns = op.schema().returns().size();
  for (auto i = stack->end() - static_cast<int64_t>(returns); i != stack->end(); ++i)
    *i = call.to_cuda(*i);
}

at::Tensor& copy(at::Tensor& self, const at::Tensor& from, bool) {
  if (self.is_cpu()) ++synchronisations;
  Call call;
  call.to_cpu(self).copy_(call.to_cpu(from));
  return self;
}

}  // namespace

int64_t host_synchronisations() { return synchronisations; }

void* pretended_stream(const c10::Device& device, int64_t id) {
  return reinterpret_cast<void*>(0x1000 * (device.index() + 1) + id);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_cpu>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) { m.impl("copy_", TORCH_FN(copy)); }

}  // namespace attzoo::testing
