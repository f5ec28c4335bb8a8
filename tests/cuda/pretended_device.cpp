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
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace attzoo::testing {
namespace {

constexpr int kDevices = 2;
thread_local c10::DeviceIndex current_device = 0;
thread_local int64_t current_stream[kDevices] = {0, 0};
std::atomic<int64_t> synchronisations{0};
std::atomic<int64_t> streams{0};

/// The device itself, which is the current one where none is named.
c10::Device indexed(const c10::Device& d) {
  if (!d.has_index()) return {c10::kCUDA, current_device};
  TORCH_CHECK(d.index() < kDevices, "there is no pretended device ", d);
  return d;
}

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
  void setDevice(c10::Device d) const override { current_device = indexed(d).index(); }
  void uncheckedSetDevice(c10::Device d) const noexcept override {
    if (d.has_index()) current_device = d.index();
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  c10::Stream getStream(c10::Device d) const override {
    const auto device = indexed(d);
    return c10::Stream(c10::Stream::UNSAFE, device, current_stream[device.index()]);
  }
  c10::Stream getDefaultStream(c10::Device d) const override {
    return c10::Stream(c10::Stream::UNSAFE, indexed(d), 0);
  }
  c10::Stream getNewStream(c10::Device d, int) const override {
    constexpr int64_t kFirst = 0x100;  // a test may name the ones before
    return c10::Stream(c10::Stream::UNSAFE, indexed(d), kFirst + streams++);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device d, bool) const override {
    return getNewStream(d, 0);
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
  double elapsedTime(void*, void*, const c10::DeviceIndex) const override { return 0; }
};
C10_REGISTER_GUARD_IMPL(CUDA, PretendedGuard)

struct PretendedHooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  void deviceSynchronize(c10::DeviceIndex) const override { ++synchronisations; }
  int getNumGPUs() const override { return kDevices; }
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

/// The memory of a storage for one of another device; it lives as long as one of both.
c10::DataPtr memory_of(const c10::Storage& storage, const c10::Device& device) {
  return {storage.mutable_data(), new c10::Storage(storage),
          [](void* p) { delete static_cast<c10::Storage*>(p); }, device};
}
c10::Storage shared_storage(const c10::Storage& of, const c10::Device& device) {
  return {c10::Storage::use_byte_size_t(), of.nbytes(), memory_of(of, device),
          c10::GetCPUAllocator(), /*resizable=*/true};
}
at::Tensor view_of(const c10::Storage& storage, c10::DispatchKey key, const at::Tensor& like) {
  auto t = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key),
                                                    like.dtype());
  t.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(),
                                                 like.storage_offset());
  if (like.is_conj()) t._set_conj(true);
  if (like.is_neg()) t._set_neg(true);
  return t;
}

/// The tensors of one call of an operator, as the CPU's and back.
class Call {
 public:
  at::Tensor to_cpu(const at::Tensor& t) {
    if (!t.defined() || !t.is_cuda()) return t;
    device_ = t.device();
    const auto cpu = view_of(to_cpu(t.storage()), c10::DispatchKey::CPU, t);
    given_.emplace_back(t, cpu);
    return cpu;
  }
  c10::IValue to_cpu(const c10::IValue& v) {
    if (v.isDevice() && v.toDevice().is_cuda()) {
      device_ = indexed(v.toDevice());
      return c10::Device(c10::kCPU);
    }
    if (v.isStorage() && v.toStorage().device().is_cuda()) return to_cpu(v.toStorage());
    const bool indices = v.isOptionalTensorList();  // which may be the CPU's
    return each(v, [&](const at::Tensor& t) {
      if (t.defined() && !(indices && t.is_cpu())) check(t);
      return to_cpu(t);
    });
  }
  c10::IValue to_cuda(const c10::IValue& v) {
    return each(v, [this](const at::Tensor& t) { return to_cuda(t); });
  }
  /// Tensors that the operator was given may have other sizes or memory now.
  void update_given() {
    for (const auto& [t, cpu] : given_) {
      const auto storage = to_cuda(cpu.storage());
      auto* const impl = t.unsafeGetTensorImpl();
      if (!storage.is_alias_of(t.storage())) impl->set_storage_keep_dtype(storage);
      if (storage.data() != cpu.storage().data() || storage.nbytes() != cpu.storage().nbytes()) {
        storage.unsafeGetStorageImpl()->set_data_ptr_noswap(memory_of(cpu.storage(), t.device()));
        storage.set_nbytes(cpu.storage().nbytes());
      }
      if (t.sizes() != cpu.sizes() || t.strides() != cpu.strides() ||
          t.storage_offset() != cpu.storage_offset()) {
        impl->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
      }
    }
  }

 private:
  /// CUDA's operators take tensors of one device, and numbers of the CPU.
  void check(const at::Tensor& t) {
    if (t.is_cpu() && t.dim() == 0) return;
    if (!common_) common_ = t.device();
    TORCH_CHECK(*common_ == t.device(), "Expected all tensors to be on the same device, but found ",
                *common_, " and ", t.device());
  }
  c10::Storage to_cpu(const c10::Storage& s) {
    auto& storage = on_cpu_[s.unsafeGetStorageImpl()];
    if (!storage) storage = shared_storage(s, c10::kCPU);
    on_cuda_[storage.unsafeGetStorageImpl()] = s;
    return storage;
  }
  c10::Storage to_cuda(const c10::Storage& s) {
    auto& storage = on_cuda_[s.unsafeGetStorageImpl()];
    if (!storage) storage = shared_storage(s, device_);
    return storage;
  }
  at::Tensor to_cuda(const at::Tensor& t) {
    if (!t.defined() || !t.is_cpu()) return t;
    for (const auto& [given, cpu] : given_) {
      if (cpu.is_same(t)) return given;
    }
    return view_of(to_cuda(t.storage()), c10::DispatchKey::CUDA, t);
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
  std::optional<c10::Device> common_;
  std::map<c10::StorageImpl*, c10::Storage> on_cpu_, on_cuda_;
  std::vector<std::pair<at::Tensor, at::Tensor>> given_;  // and the CPU's
};

/// Whether the host has to wait for a number, or for the size of a result.
bool waits(const std::string& name) {
  static const std::set<std::string> names = {"aten::_local_scalar_dense",
                                              "aten::nonzero",
                                              "aten::masked_select",
                                              "aten::_unique",
                                              "aten::_unique2",
                                              "aten::unique_dim",
                                              "aten::unique_consecutive",
                                              "aten::repeat_interleave",
                                              "aten::bincount",
                                              "aten::equal"};
  return names.count(name) > 0;
}

/// Any operator, by the CPU's kernel.
void by_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  if (waits(op.schema().operator_name().name)) ++synchronisations;
  Call call;
  const auto arguments = op.schema().arguments().size();
  for (auto i = stack->end() - static_cast<int64_t>(arguments); i != stack->end(); ++i)
    *i = call.to_cpu(*i);
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  call.update_given();
  const auto returns = op.schema().returns().size();
  for (auto i = stack->end() - static_cast<int64_t>(returns); i != stack->end(); ++i)
    *i = call.to_cuda(*i);
}

at::Tensor& copy(at::Tensor& self, const at::Tensor& from, bool non_blocking) {
  if (self.is_cpu() && !non_blocking) ++synchronisations;
  Call call;
  call.to_cpu(self).copy_(call.to_cpu(from));
  return self;
}

void record_stream(at::Tensor&, c10::Stream) {}  // memory that is used at once

}  // namespace

int64_t host_synchronisations() { return synchronisations; }

void* pretended_stream(const c10::Device& device, int64_t id) {
  return reinterpret_cast<void*>(0x1000 * (device.index() + 1) + id);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_cpu>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("copy_", TORCH_FN(copy));
  m.impl("record_stream", TORCH_FN(record_stream));
}

}  // namespace attzoo::testing
