// A library with the functions of CUDA's driver that attzoo calls (libcuda.so.1). It runs what
// pretended_nvrtc.cpp made: PTX by an interpreter (ptx.hpp), or a library of fibres (warps.hpp).
// Code of a real device it takes, and its launches do nothing but to be written down.

#include "cuda/pretended_driver.hpp"

#include <dlfcn.h>

#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/ptx.hpp"

namespace {

constexpr int kDevices = 2, kInvalidValue = 1, kInvalidContext = 201, kNotFound = 500,
              kLaunchFailed = 719, kSharedMemory = 99 * 1024;

struct Module {
  std::unique_ptr<attzoo::ptx::Module> ptx;
  void* library = nullptr;
  int device;
};
struct Function {
  Module* module;
  std::string name;
  int most_shared = 48 * 1024;
};

int contexts[kDevices];  // their addresses are the contexts
thread_local void* current = nullptr;

std::mutex mutex;
std::vector<AttzooLaunch> launches;
std::map<std::string, int> fails;
std::string error;
int capability = 80;
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

/// Runs a kernel; 0 or what the driver would say.
int run(const Function& f, AttzooLaunch& launch, void* const* parameters) {
  const auto& m = *f.module;
  if (m.library) {
    using Run = void (*)(const unsigned*, unsigned, size_t, void* const*);
    const auto run = reinterpret_cast<Run>(dlsym(m.library, ("launch_" + f.name).c_str()));
    run(launch.blocks, launch.threads, launch.shared_bytes, parameters);
  } else if (m.ptx) {
    try {
      const auto& b = launch.blocks;
      const auto s = m.ptx->run(f.name, {b[0], b[1], b[2]}, {launch.threads, 1, 1},
                                launch.shared_bytes, parameters, seed);
      launch.instructions = s.total;
      launch.products = s.count("mma");
    } catch (const std::exception& e) {
      if (error.empty()) error = e.what();
      return kLaunchFailed;
    }
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
  seed = 1;
}
const char* attzoo_error() { return error.c_str(); }
void attzoo_capability(int of) { capability = of; }
void attzoo_fail(const char* function, int code) {
  const std::lock_guard lock(mutex);
  fails[function] = code;
}
void attzoo_seed(unsigned of) { seed = of; }

int cuInit(unsigned) { return failure("cuInit"); }
int cuGetExportTable(const void** table, const void*) {  // NVRTC asks for it
  *table = nullptr;
  return kNotFound;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (device < 0 || device >= kDevices) return 101;
  *value = attribute == 75   ? capability / 10
           : attribute == 76 ? capability % 10
           : attribute == 97 ? kSharedMemory
           : attribute == 16 ? 4
                             : 0;
  return failure("cuDeviceGetAttribute");
}
int cuCtxGetCurrent(void** context) {
  *context = current;
  return failure("cuCtxGetCurrent");
}
int cuCtxSetCurrent(void* context) {
  current = context;
  return failure("cuCtxSetCurrent");
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = &contexts[device];
  return failure("cuDevicePrimaryCtxRetain");
}
int cuModuleLoadData(void** to, const void* data) {
  if (!current) return kInvalidContext;
  if (const int code = failure("cuModuleLoadData")) return code;
  const std::string image(static_cast<const char*>(data));
  auto module = std::make_unique<Module>();
  module->device = current_device();
  if (image.rfind("library ", 0) == 0) {
    module->library = dlopen(image.substr(8).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!module->library) return kNotFound;
  } else if (image.find(".version") != std::string::npos) {
    try {
      module->ptx = std::make_unique<attzoo::ptx::Module>(image);
    } catch (const std::exception& e) {
      const std::lock_guard lock(mutex);
      error = e.what();
      return 218;  // invalid PTX
    }
  }
  *to = module.release();
  return 0;
}
int cuModuleUnload(void* module) {
  delete static_cast<Module*>(module);
  return 0;
}
int cuModuleGetFunction(void** to, void* of, const char* name) {
  auto* const module = static_cast<Module*>(of);
  if (module->ptx && !module->ptx->has(name)) return kNotFound;
  *to = new Function{module, name};
  return failure("cuModuleGetFunction");
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute != 8 || value > kSharedMemory) return kInvalidValue;
  static_cast<Function*>(function)->most_shared = value;
  return failure("cuFuncSetAttribute");
}
int cuGetErrorString(int code, const char** text) {
  *text = code == kInvalidContext ? "invalid device context" : "a pretended error";
  return 0;
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned,
                   unsigned, unsigned shared_bytes, void* stream, void* const* parameters, void**) {
  const auto& f = *static_cast<Function*>(function);
  if (!current || current_device() != f.module->device) return kInvalidContext;
  const bool fits = static_cast<int>(shared_bytes) <= f.most_shared && y <= 65535 && z <= 65535;
  if (!fits || x == 0 || y == 0 || z == 0) return kInvalidValue;
  if (const int code = failure("cuLaunchKernel")) return code;
  const std::lock_guard lock(mutex);
  AttzooLaunch launch{{}, {x, y, z}, threads, shared_bytes, stream, f.module->device, 0, 0};
  std::strncpy(launch.kernel, f.name.c_str(), sizeof(launch.kernel) - 1);
  const int code = run(f, launch, parameters);
  launches.push_back(launch);
  return code;
}

}  // extern "C"
