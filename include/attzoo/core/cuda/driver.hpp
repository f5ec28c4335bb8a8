#pragma once
/// \file
/// CUDA's run-time compiler (NVRTC) and driver, looked up while the program runs: no CUDA header,
/// and nothing to link. Texts become kernels of a device, once in a process.

#include <attzoo/config.hpp>

#include <c10/core/Device.h>

#include <array>
#include <memory>
#include <string>

namespace attzoo::core::cuda {

/// What is asked of a device.
struct DeviceFacts {
  int capability = 0;  // 80: compute capability 8.0
  int processors = 0;
  int shared_memory = 0;  // bytes a block may have
};

/// Functions of one text on one device.
class Module {
 public:
  virtual ~Module() = default;
  /// On the device's current stream. Throws c10::Error with the driver's words.
  virtual void launch(const char* kernel, const std::array<unsigned, 3>& blocks, int threads,
                      int shared_bytes, void* const* parameters) const = 0;
};

/// Throws c10::Error where there is no driver or no such device.
ATTZOO_API DeviceFacts facts(const c10::Device& device);

/// Whether what is launched on the device's current stream is recorded in a CUDA graph.
ATTZOO_API bool is_capturing(const c10::Device& device);

/// Compiles, unless it has: one text at a time. Throws c10::Error with the compiler's log.
/// With the environment variable ATTZOO_CUDA_CACHE, a folder, what was compiled is kept there for
/// other processes; ATTZOO_NVRTC names the compiler's library where it is found nowhere else.
ATTZOO_API std::shared_ptr<const Module> module_of(const std::string& text,
                                                   const c10::Device& device);

}  // namespace attzoo::core::cuda

#ifdef ATTZOO_DEFINE_CORE

#include <attzoo/core/cuda/image.hpp>

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <map>
#include <mutex>
#include <utility>

namespace attzoo::core::cuda {

/// The functions of libcuda that are called; handles are pointers.
class Driver {
 public:
  static const Driver& get() {
    static const Driver driver;
    return driver;
  }

  int (*get_attribute)(int* value, int attribute, int device);
  int (*get_context)(void** context);
  int (*set_context)(void* context);
  int (*retain_context)(void** context, int device);
  int (*load_module)(void** module, const void* image);
  int (*unload_module)(void* module);
  int (*get_function)(void** function, void* module, const char* name);
  int (*set_function_attribute)(void* function, int attribute, int value);
  int (*launch)(void* function, unsigned x, unsigned y, unsigned z, unsigned threads_x,
                unsigned threads_y, unsigned threads_z, unsigned shared_bytes, void* stream,
                void* const* parameters, void** extra);
  int (*is_capturing)(void* stream, int* status);
  int (*error_string)(int code, const char** text);

  void check(int code, const char* what) const {
    if (code == 0) return;
    const char* text = nullptr;
    error_string(code, &text);
    TORCH_CHECK(false, "CUDA driver: ", what, " failed with ", code, ": ",
                text ? text : "an unknown error");
  }

 private:
  Driver() {
    const auto library = Library::open({"libcuda.so.1"});
    TORCH_CHECK(library, "there is no CUDA driver (libcuda.so.1)");
    int (*init)(unsigned flags);
    library.function(init, "cuInit");
    library.function(get_attribute, "cuDeviceGetAttribute");
    library.function(get_context, "cuCtxGetCurrent");
    library.function(set_context, "cuCtxSetCurrent");
    library.function(retain_context, "cuDevicePrimaryCtxRetain");
    library.function(load_module, "cuModuleLoadData");
    library.function(unload_module, "cuModuleUnload");
    library.function(get_function, "cuModuleGetFunction");
    library.function(set_function_attribute, "cuFuncSetAttribute");
    library.function(launch, "cuLaunchKernel");
    library.function(is_capturing, "cuStreamIsCapturing");
    library.function(error_string, "cuGetErrorString");
    check(init(0), "cuInit");
  }
};

inline void* current_stream(const c10::Device& device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

/// Makes a device LibTorch's current one and its primary context the driver's, which threads of
/// autograd may not have yet; then as before.
class OnDevice {
 public:
  explicit OnDevice(const c10::Device& device) : guard_(device) {
    const auto& driver = Driver::get();
    driver.check(driver.get_context(&before_), "cuCtxGetCurrent");
    void* const own = context_of(device.index());
    if (before_ != own) driver.check(driver.set_context(own), "cuCtxSetCurrent");
    changed_ = before_ != own;
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() {
    if (changed_ && before_) Driver::get().set_context(before_);
  }

 private:
  static void* context_of(int device) {
    static std::mutex mutex;
    static std::map<int, void*> contexts;  // as long as the process, as LibTorch's
    const std::lock_guard lock(mutex);
    auto& context = contexts[device];
    if (!context) {
      Driver::get().check(Driver::get().retain_context(&context, device),
                          "cuDevicePrimaryCtxRetain");
    }
    return context;
  }

  c10::DeviceGuard guard_;
  void* before_ = nullptr;
  bool changed_ = false;
};

class DriverModule final : public Module {
 public:
  DriverModule(const std::string& image, const c10::Device& device) : device_(device) {
    const OnDevice on(device_);
    driver_.check(driver_.load_module(&module_, image.c_str()), "cuModuleLoadData");
  }
  DriverModule(const DriverModule&) = delete;
  DriverModule& operator=(const DriverModule&) = delete;
  ~DriverModule() override { driver_.unload_module(module_); }

  void launch(const char* kernel, const std::array<unsigned, 3>& blocks, int threads,
              int shared_bytes, void* const* parameters) const override {
    const OnDevice on(device_);
    driver_.check(
        driver_.launch(function(kernel, shared_bytes), blocks[0], blocks[1], blocks[2],
                       static_cast<unsigned>(threads), 1, 1, static_cast<unsigned>(shared_bytes),
                       current_stream(device_), parameters, nullptr),
        kernel);
  }

 private:
  /// It may have more shared memory than is there by default.
  void* function(const char* kernel, int shared_bytes) const {
    constexpr int kDefault = 48 * 1024, kMaxDynamicSharedMemory = 8;
    const std::lock_guard lock(mutex_);
    auto& known = functions_[kernel];
    if (known) return known;
    void* found = nullptr;
    driver_.check(driver_.get_function(&found, module_, kernel), "cuModuleGetFunction");
    if (shared_bytes > kDefault) {
      driver_.check(driver_.set_function_attribute(found, kMaxDynamicSharedMemory, shared_bytes),
                    "cuFuncSetAttribute");
    }
    return known = found;
  }

  const Driver& driver_ = Driver::get();
  c10::Device device_;
  void* module_ = nullptr;
  mutable std::mutex mutex_;
  mutable std::map<std::string, void*> functions_;
};

ATTZOO_API DeviceFacts facts(const c10::Device& device) {
  static std::mutex mutex;
  static std::map<int, DeviceFacts> known;
  const auto& driver = Driver::get();
  const std::lock_guard lock(mutex);
  auto& found = known[device.index()];
  if (found.capability == 0) {
    constexpr int kProcessors = 16, kMajor = 75, kMinor = 76, kSharedMemory = 97;
    const auto attribute = [&](int which) {
      int value = 0;
      driver.check(driver.get_attribute(&value, which, device.index()), "cuDeviceGetAttribute");
      return value;
    };
    found = {10 * attribute(kMajor) + attribute(kMinor), attribute(kProcessors),
             attribute(kSharedMemory)};
  }
  return found;
}

ATTZOO_API bool is_capturing(const c10::Device& device) {
  void* const stream = current_stream(device);
  int status = 0;  // CU_STREAM_CAPTURE_STATUS_NONE
  if (stream) {    // the default one cannot be
    const OnDevice on(device);
    Driver::get().check(Driver::get().is_capturing(stream, &status), "cuStreamIsCapturing");
  }
  return status != 0;
}

ATTZOO_API std::shared_ptr<const Module> module_of(const std::string& text,
                                                   const c10::Device& device) {
  static std::mutex mutex;
  // As long as the process: when it ends, the driver may be gone before the kernels.
  static auto& modules =
      *new std::map<std::pair<int, std::string>, std::shared_ptr<const Module>>();
  static auto& failures = *new std::map<std::string, std::string>();
  const int capability = facts(device).capability;
  const std::lock_guard lock(mutex);
  auto& found = modules[{device.index(), text}];
  if (found) return found;
  if (const auto failed = failures.find(text); failed != failures.end()) {
    TORCH_CHECK(false, failed->second);
  }
  try {
    found = std::make_shared<DriverModule>(image_of(text, capability), device);
  } catch (const c10::Error& e) {
    failures[text] = e.what_without_backtrace();
    throw;
  }
  return found;
}

}  // namespace attzoo::core::cuda

#endif
