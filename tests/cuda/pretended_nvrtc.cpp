// A library with NVRTC's functions. Its "code" for a device is what pretended_driver.cpp runs: PTX,
// made by the real NVRTC, or the name of a library that was made of the same text by the compiler
// in ATTZOO_CXX, whose threads are fibres (warps.hpp).

#include "pretended_nvrtc.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <string>
#include <vector>

namespace {

struct Settings {
  std::string target = "compute_80", from, to, architecture;
  bool on_cpu = false, quickly = false;
  int compilations = 0, fails_with = 0, mutations = 0;
} settings;

struct Program {
  std::string text, image, log;
};

/// It finds its builtins by their name alone, so they are loaded before it.
void load_builtins_beside(const std::filesystem::path& library) {
  std::error_code none;
  for (const auto& file : std::filesystem::directory_iterator(library.parent_path(), none)) {
    if (file.path().filename().string().rfind("libnvrtc-builtins", 0) == 0) {
      dlopen(file.path().c_str(), RTLD_NOW | RTLD_GLOBAL);
    }
  }
}
void* real_nvrtc() {
  constexpr int kFlags = RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND;  // not this library's own functions
  static void* const library = []() -> void* {
#ifdef __SANITIZE_ADDRESS__  // which ends the program at kFlags
    return nullptr;
#endif
    const char* named = std::getenv("ATTZOO_REAL_NVRTC");
    if (named && *named) load_builtins_beside(named);
    void* found = named && *named ? dlopen(named, kFlags) : nullptr;
    for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12"}) {
      if (!found) found = dlopen(name, kFlags);
    }
    return found;
  }();
  return library;
}
template <class... A>
int real(const char* name, A... arguments) {
  auto* const f = reinterpret_cast<int (*)(A...)>(dlsym(real_nvrtc(), name));
  return f(arguments...);
}

/// PTX by the real NVRTC.
int compile_ptx(Program& program) {
  if (!real_nvrtc()) return 6;
  void* handle = nullptr;
  const char* const* none = nullptr;
  real("nvrtcCreateProgram", &handle, program.text.c_str(), "attzoo.cu", 0, none, none);
  const auto target = "--gpu-architecture=" + settings.target;
  const char* options[] = {target.c_str(), "--std=c++17", "--device-as-default-execution-space",
                           "--Ofast-compile=mid"};
  const int count = settings.quickly ? 4 : 3;
  const int code =
      real("nvrtcCompileProgram", handle, count, static_cast<const char* const*>(options));
  size_t size = 0;
  real("nvrtcGetProgramLogSize", handle, &size);
  program.log.resize(size);
  real("nvrtcGetProgramLog", handle, program.log.data());
  if (code == 0) {
    real("nvrtcGetPTXSize", handle, &size);
    program.image.resize(size);
    real("nvrtcGetPTX", handle, program.image.data());
  }
  real("nvrtcDestroyProgram", &handle);
  return code;
}

/// The text, and for each kernel a function by which it is launched.
std::string with_launches(const std::string& text) {
  std::string all = text;
  const std::regex kernel(R"(KERNEL\(\d+\) (\w+)\()");
  for (std::sregex_iterator i(text.begin(), text.end(), kernel), end; i != end; ++i) {
    const auto name = (*i)[1].str();
    all += "extern \"C\" void launch_" + name +
           "(const unsigned* blocks, unsigned threads, size_t bytes, void* const* parameters) {\n"
           "  fibres::run(blocks, threads, bytes, [=] { " +
           name + "(*(const Problem*)parameters[0], *(const Modifier*)parameters[1]); });\n}\n";
  }
  return all;
}

/// Of this process, removed when it ends.
struct TemporaryFolder {
  std::string path = (std::filesystem::temp_directory_path() / "attzoo_XXXXXX").string();
  bool exists = mkdtemp(path.data()) != nullptr;
  ~TemporaryFolder() {
    std::error_code none;
    if (exists) std::filesystem::remove_all(path, none);
  }
};

int compile_for_cpu(Program& program) {
  static const TemporaryFolder all;
  const auto folder = all.path + "/" + std::to_string(settings.compilations);
  if (!all.exists || !std::filesystem::create_directory(folder)) return 6;
  std::ofstream(folder + "/kernel.cpp") << with_launches(program.text);
  const std::string command =
      std::string(ATTZOO_CXX) +
      " -std=c++17 -O1 -w -shared -fPIC -include math.h -I " ATTZOO_SOURCE_DIR "/tests/cuda -o " +
      folder + "/kernel.so " + folder + "/kernel.cpp 2> " + folder + "/log";
  const bool compiled = std::system(command.c_str()) == 0;
  std::ifstream log(folder + "/log");
  program.log.assign(std::istreambuf_iterator<char>(log), {});
  program.image = "library " + folder + "/kernel.so";
  return compiled ? 0 : 6;
}

}  // namespace

extern "C" {

int attzoo_has_real_nvrtc() { return real_nvrtc() != nullptr; }
void attzoo_compile_for_cpu(int on) { settings.on_cpu = on != 0; }
void attzoo_compile_quickly(int on) { settings.quickly = on != 0; }
void attzoo_target(const char* target) { settings.target = target; }
void attzoo_fail_compilations(int code) { settings.fails_with = code; }
const char* attzoo_architecture() { return settings.architecture.c_str(); }
int attzoo_compilations() { return settings.compilations; }
void attzoo_mutate(const char* from, const char* to) {
  settings.from = from;
  settings.to = to;
  settings.mutations = 0;
}
int attzoo_mutations() { return settings.mutations; }

int nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 0;
  return 0;
}
int nvrtcGetNumSupportedArchs(int* count) {
  *count = 2;
  return 0;
}
int nvrtcGetSupportedArchs(int* archs) {
  archs[0] = 80;
  archs[1] = 90;
  return 0;
}
const char* nvrtcGetErrorString(int code) { return code == 0 ? "success" : "an error"; }
int nvrtcCreateProgram(void** program, const char* text, const char*, int, const char* const*,
                       const char* const*) {
  *program = new Program{text, "", ""};
  return 0;
}
int nvrtcDestroyProgram(void** program) {
  delete static_cast<Program*>(*program);
  return 0;
}
int nvrtcCompileProgram(void* handle, int, const char* const* options) {
  auto& program = *static_cast<Program*>(handle);
  settings.architecture = options[0];
  ++settings.compilations;
  if (settings.fails_with != 0) {
    program.log = "a pretended failure";
    return settings.fails_with;
  }
  if (!settings.from.empty()) {
    const auto at = program.text.find(settings.from);
    if (at != std::string::npos) {
      program.text.replace(at, settings.from.size(), settings.to);
      ++settings.mutations;
    }
  }
  return settings.on_cpu ? compile_for_cpu(program) : compile_ptx(program);
}
int nvrtcGetProgramLogSize(void* program, size_t* size) {
  *size = static_cast<Program*>(program)->log.size();
  return 0;
}
int nvrtcGetProgramLog(void* program, char* to) {
  const auto& log = static_cast<Program*>(program)->log;
  std::memcpy(to, log.data(), log.size());
  return 0;
}
int nvrtcGetCUBINSize(void* program, size_t* size) {
  *size = static_cast<Program*>(program)->image.size() + 1;
  return 0;
}
int nvrtcGetCUBIN(void* program, char* to) {
  std::strcpy(to, static_cast<Program*>(program)->image.c_str());
  return 0;
}
int nvrtcGetPTXSize(void* program, size_t* size) { return nvrtcGetCUBINSize(program, size); }
int nvrtcGetPTX(void* program, char* to) { return nvrtcGetCUBIN(program, to); }

}  // extern "C"
