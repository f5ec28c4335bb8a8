#pragma once
/// \file What tests need to compile CUDA C++ and to run the PTX.

#include <dlfcn.h>
#include <glob.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/ptx.hpp"

namespace attzoo::ptx {

/// NVRTC, if the machine has one.
class Nvrtc {
 public:
  static const Nvrtc& get() {
    static const Nvrtc nvrtc;
    return nvrtc;
  }

  bool found() const { return library_ != nullptr; }

  bool knows(int architecture) const {
    int count = 0;
    call<int(int*)>("nvrtcGetNumSupportedArchs", &count);
    std::vector<int> all(static_cast<size_t>(count));
    call<int(int*)>("nvrtcGetSupportedArchs", all.data());
    return std::find(all.begin(), all.end(), architecture) != all.end();
  }

  /// The PTX of CUDA C++.
  std::string compile(const std::string& source, int architecture) const {
    using Program = struct NvrtcProgram*;
    const std::string target = "--gpu-architecture=compute_" + std::to_string(architecture);
    const char* options[] = {target.c_str(), "--std=c++17"};
    Program p = nullptr;
    call<int(Program*, const char*, const char*, int, const char* const*, const char* const*)>(
        "nvrtcCreateProgram", &p, source.c_str(), "test.cu", 0, nullptr, nullptr);
    const int failed =
        call<int(Program, int, const char* const*)>("nvrtcCompileProgram", p, 2, options);
    const std::string what = failed ? "nvrtcGetProgramLog" : "nvrtcGetPTX";
    size_t bytes = 0;
    call<int(Program, size_t*)>((what + "Size").c_str(), p, &bytes);
    std::string text(bytes, '\0');
    call<int(Program, char*)>(what.c_str(), p, text.data());
    call<int(Program*)>("nvrtcDestroyProgram", &p);
    if (failed) throw std::runtime_error(text);
    return text;
  }

 private:
  Nvrtc() {
    const char* named = std::getenv("ATTZOO_REAL_NVRTC");
    const std::string file = named != nullptr ? named : "";
    if (!file.empty()) preload(file.substr(0, file.rfind('/') + 1) + "libnvrtc-builtins.so*");
    for (const std::string& name :
         {file, std::string("libnvrtc.so.13"), std::string("libnvrtc.so.12")}) {
      if (!name.empty() && !library_) open(name);
    }
  }

  /// Its own functions, although a library that pretends to be it may be there.
  void open(const std::string& path) {
#ifndef __SANITIZE_ADDRESS__  // which ends the program at this flag
    library_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
#endif
  }

  /// NVRTC looks for this library by its name alone.
  static void preload(const std::string& pattern) {
    glob_t found;
    if (glob(pattern.c_str(), 0, nullptr, &found) == 0) {
      for (size_t i = 0; i < found.gl_pathc; ++i) dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_GLOBAL);
    }
    globfree(&found);
  }

  template <class F, class... A>
  int call(const char* name, A... arguments) const {
    return reinterpret_cast<F*>(dlsym(library_, name))(arguments...);
  }

  void* library_ = nullptr;
};

/// Runs a kernel three times, each in another order; the statistics are those of the last.
template <class... A>
Statistics launch(Module& module, const char* kernel, Size3 grid, Size3 block, size_t shared,
                  A... a) {
  void* parameters[] = {&a...};
  Statistics statistics;
  for (unsigned seed = 1; seed <= 3; ++seed) {
    statistics = module.run(kernel, grid, block, shared, parameters, seed);
  }
  return statistics;
}

/// What running the kernel throws, or nothing.
template <class... A>
std::string failure(Module& module, const char* kernel, Size3 block, size_t shared, A... a) {
  try {
    launch(module, kernel, {}, block, shared, a...);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

inline void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

}  // namespace attzoo::ptx
