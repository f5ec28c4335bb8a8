// A library with the functions of CUDA's driver that attzoo calls (libcuda.so.1). It runs what
// pretended_nvrtc.cpp made: PTX by an interpreter (ptx.hpp), or a library of fibres (warps.hpp).
// Code of a real device it takes, and its launches do nothing but to be written down.

#include "cuda/pretended_driver.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/ptx.hpp"

namespace {

constexpr int kDevices = 2, kInvalidValue = 1, kInvalidDevice = 101, kInvalidImage = 200,
              kInvalidContext = 201, kInvalidPtx = 218, kInvalidHandle = 400, kNotFound = 500,
              kLaunchFailed = 719;
constexpr int kUsualSharedMemory = 48 * 1024, kSharedMemory = 99 * 1024, kMostThreads = 1024;

struct Error {
  int code;
  const char *name, *text;
};
constexpr Error kErrors[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {kInvalidImage, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {kInvalidPtx, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {kNotFound, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
};
const Error* find_error(int code) {
  for (const auto& e : kErrors) {
    if (e.code == code) return &e;
  }
  return nullptr;
}

struct Module;
struct Function {
  Module* module;
  std::string name;
  int most_shared = kUsualSharedMemory;
};
struct Module {
  std::unique_ptr<attzoo::ptx::Module> ptx;
  void* library = nullptr;
  int device;
  std::vector<std::unique_ptr<Function>> functions = {};  // that were asked for
};

int contexts[kDevices];  // their addresses are the contexts
thread_local void* current = nullptr;

std::mutex mutex;
std::vector<AttzooLaunch> launches;
std::map<std::string, int> fails;
std::string error;
int capability = 80;
std::atomic<bool> capturing{false};
unsigned seed = 1;

int failure(const char* function) {
  const std::lock_guard lock(mutex);
  const auto found = fails.find(function);
  if (found == fails.end()) return 0;
  const int code = found->second;
  fails.erase(found);
  return code;
}
int current_device() { return static_cast<int>(static_cast<int*>(current) - contexts); }
bool is_device(int device) { return device >= 0 && device < kDevices; }

void* entry(const Module& m, const std::string& kernel) {
  return dlsym(m.library, ("launch_" + kernel).c_str());
}

/// Runs a kernel; 0 or what the driver would say.
int run(const Function& f, attzoo::ptx::Size3 block, AttzooLaunch& launch,
        void* const* parameters) {
  const auto& m = *f.module;
  if (m.library) {
    using Run = void (*)(const unsigned*, unsigned, size_t, void* const*);
    const auto fibres = reinterpret_cast<Run>(entry(m, f.name));
    fibres(launch.blocks, launch.threads, launch.shared_bytes, parameters);
  } else if (m.ptx) {
    try {
      const auto& b = launch.blocks;
      const auto s =
          m.ptx->run(f.name, {b[0], b[1], b[2]}, block, launch.shared_bytes, parameters, seed);
      launch.instructions = s.total;
      launch.products = s.count("mma");
      launch.conflicts = std::max({s.matrices.ratio(), s.copies.ratio()});
    } catch (const std::exception& e) {
      if (error.empty()) error = e.what();
      return kLaunchFailed;
    }
  }
  return 0;
}

/// What a module can be made of: PTX, the name of a library of fibres, or code of a real device.
int load(const std::string& image, Module& module) {
  if (image.rfind("library ", 0) == 0) {
    module.library = dlopen(image.substr(8).c_str(), RTLD_NOW | RTLD_LOCAL);
    return module.library ? 0 : kNotFound;
  }
  if (image.rfind("\x7f"
                  "ELF",
                  0) == 0)
    return 0;
  if (image.find(".version") == std::string::npos) return kInvalidImage;
  try {
    module.ptx = std::make_unique<attzoo::ptx::Module>(image);
  } catch (const std::exception& e) {
    const std::lock_guard lock(mutex);
    if (error.empty()) error = e.what();
    return kInvalidPtx;
  }
  return 0;
}

}  // namespace

extern "C" {

int attzoo_launches() {
  const std::lock_guard lock(mutex);
  return static_cast<int>(launches.size());
}
AttzooLaunch attzoo_launch(int i) {
  const std::lock_guard lock(mutex);
  return launches.at(static_cast<size_t>(i));
}
void attzoo_reset() {
  const std::lock_guard lock(mutex);
  launches.clear();
  fails.clear();
  error.clear();
  capturing = false;
  seed = 1;
}
const char* attzoo_error() { return error.c_str(); }
void attzoo_capability(int of) {
  const std::lock_guard lock(mutex);
  capability = of;
}
void attzoo_fail(const char* function, int code) {
  const std::lock_guard lock(mutex);
  fails[function] = code;
}
void attzoo_capture(bool on) { capturing = on; }
void attzoo_seed(unsigned of) {
  const std::lock_guard lock(mutex);
  seed = of;
}

int cuInit(unsigned) { return failure("cuInit"); }
int cuGetExportTable(const void** table, const void*) {  // NVRTC asks for it
  *table = nullptr;
  return kNotFound;
}
int cuDriverGetVersion(int* version) {
  if (const int code = failure("cuDriverGetVersion")) return code;
  *version = 13000;
  return 0;
}
int cuDeviceGetCount(int* count) {
  if (const int code = failure("cuDeviceGetCount")) return code;
  *count = kDevices;
  return 0;
}
int cuDeviceGet(int* device, int index) {
  if (!is_device(index)) return kInvalidDevice;
  if (const int code = failure("cuDeviceGet")) return code;
  *device = index;
  return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (!is_device(device)) return kInvalidDevice;
  if (const int code = failure("cuDeviceGetAttribute")) return code;
  const std::lock_guard lock(mutex);
  switch (attribute) {
    case 1:
      *value = kMostThreads;
      break;
    case 8:
      *value = kUsualSharedMemory;
      break;
    case 10:
      *value = 32;
      break;  // threads of a warp
    case 16:
      *value = 4;
      break;  // processors
    case 75:
      *value = capability / 10;
      break;
    case 76:
      *value = capability % 10;
      break;
    case 97:
      *value = kSharedMemory;
      break;
    default:
      *value = 0;
  }
  return 0;
}
int cuCtxGetCurrent(void** context) {
  if (const int code = failure("cuCtxGetCurrent")) return code;
  *context = current;
  return 0;
}
int cuCtxSetCurrent(void* context) {
  if (const int code = failure("cuCtxSetCurrent")) return code;
  if (context && context != &contexts[0] && context != &contexts[1]) return kInvalidContext;
  current = context;
  return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  if (!is_device(device)) return kInvalidDevice;
  if (const int code = failure("cuDevicePrimaryCtxRetain")) return code;
  *context = &contexts[device];
  return 0;
}
int cuModuleLoadData(void** to, const void* data) {
  if (!current) return kInvalidContext;
  if (const int code = failure("cuModuleLoadData")) return code;
  auto module = std::make_unique<Module>();
  module->device = current_device();
  if (const int code = load(static_cast<const char*>(data), *module)) return code;
  *to = module.release();
  return 0;
}
int cuModuleLoadDataEx(void** to, const void* data, unsigned, int*, void**) {
  if (const int code = failure("cuModuleLoadDataEx")) return code;
  return cuModuleLoadData(to, data);
}
int cuModuleUnload(void* module) {
  if (const int code = failure("cuModuleUnload")) return code;
  delete static_cast<Module*>(module);
  return 0;
}
int cuModuleGetFunction(void** to, void* of, const char* name) {
  if (const int code = failure("cuModuleGetFunction")) return code;
  auto* const module = static_cast<Module*>(of);
  if (module->ptx && !module->ptx->has(name)) return kNotFound;
  if (module->library && !entry(*module, name)) return kNotFound;
  module->functions.push_back(std::make_unique<Function>(Function{module, name}));
  *to = module->functions.back().get();
  return 0;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (const int code = failure("cuFuncSetAttribute")) return code;
  if (attribute != 8 || value < 0 || value > kSharedMemory) return kInvalidValue;
  static_cast<Function*>(function)->most_shared = value;
  return 0;
}
int cuGetErrorString(int code, const char** text) {
  const auto* const found = find_error(code);
  *text = found ? found->text : nullptr;
  return found ? 0 : kInvalidValue;
}
int cuGetErrorName(int code, const char** name) {
  const auto* const found = find_error(code);
  *name = found ? found->name : nullptr;
  return found ? 0 : kInvalidValue;
}
int cuStreamIsCapturing(void*, int* status) {
  *status = capturing ? 1 : 0;
  return failure("cuStreamIsCapturing");
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads_x,
                   unsigned threads_y, unsigned threads_z, unsigned shared_bytes, void* stream,
                   void* const* parameters, void**) {
  if (!function) return kInvalidHandle;
  const auto& f = *static_cast<Function*>(function);
  if (!current || current_device() != f.module->device) return kInvalidContext;
  const auto threads = 1ULL * threads_x * threads_y * threads_z;
  const bool none = x == 0 || y == 0 || z == 0 || threads == 0;
  const bool fits = x <= 0x7fffffff && y <= 65535 && z <= 65535 && threads <= kMostThreads &&
                    shared_bytes <= static_cast<unsigned>(f.most_shared);
  if (none || !fits) return kInvalidValue;
  if (const int code = failure("cuLaunchKernel")) return code;
  const std::lock_guard lock(mutex);
  AttzooLaunch launch{
      {}, {x, y, z}, static_cast<unsigned>(threads), shared_bytes, stream, f.module->device, 0,
      0,  0};
  std::strncpy(launch.kernel, f.name.c_str(), sizeof(launch.kernel) - 1);
  const int code = run(f, {threads_x, threads_y, threads_z}, launch, parameters);
  launches.push_back(launch);
  return code;
}

}  // extern "C"
