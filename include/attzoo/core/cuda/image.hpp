#pragma once
/// \file
/// CUDA C++ to what a driver loads, by NVRTC, which is looked up while the program runs; kept in a
/// folder where the user names one.

#include <attzoo/config.hpp>

#include <initializer_list>
#include <string>

namespace attzoo::core::cuda {

/// A shared library that is never closed.
class Library {
 public:
  Library() = default;
  /// The first of these names that is there; `loaded_only`: in this process already.
  ATTZOO_API static Library open(std::initializer_list<const char*> names,
                                 bool loaded_only = false);
  explicit operator bool() const { return handle_ != nullptr; }
  /// Null if it has none of this name.
  ATTZOO_API void* symbol(const char* name) const;
  /// Throws c10::Error if it has none of this name.
  template <class F>
  void function(F& f, const char* name) const {
    f = reinterpret_cast<F>(required(name));
  }
  /// The file that a function of it is in.
  ATTZOO_API std::string file(const char* function) const;

 private:
  ATTZOO_API void* required(const char* name) const;
  void* handle_ = nullptr;
};

/// For a device of this compute capability (80: 8.0): its own code, or PTX where the device is
/// newer than the compiler. Throws c10::Error with the compiler's log.
ATTZOO_API std::string image_of(const std::string& text, int capability);

}  // namespace attzoo::core::cuda

#ifdef ATTZOO_DEFINE_CORE

#include <c10/util/Exception.h>

#ifndef _WIN32
#include <dlfcn.h>
#include <locale.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

namespace attzoo::core::cuda {

#ifdef _WIN32
ATTZOO_API Library Library::open(std::initializer_list<const char*>, bool) { return {}; }
ATTZOO_API void* Library::symbol(const char*) const { return nullptr; }
ATTZOO_API std::string Library::file(const char*) const { return {}; }
struct KeepsLocale {};
#else
ATTZOO_API Library Library::open(std::initializer_list<const char*> names, bool loaded_only) {
  Library library;
  for (const char* name : names) {
    library.handle_ = dlopen(name, RTLD_NOW | RTLD_LOCAL | (loaded_only ? RTLD_NOLOAD : 0));
    if (library) break;
  }
  return library;
}
ATTZOO_API void* Library::symbol(const char* name) const { return dlsym(handle_, name); }
ATTZOO_API std::string Library::file(const char* function) const {
  Dl_info info;
  return dladdr(symbol(function), &info) != 0 && info.dli_fname ? info.dli_fname : "";
}
/// NVRTC before 12.6.2 leaves the thread with another locale.
class KeepsLocale {
 public:
  KeepsLocale() : before_(uselocale(nullptr)) {}
  KeepsLocale(const KeepsLocale&) = delete;
  KeepsLocale& operator=(const KeepsLocale&) = delete;
  ~KeepsLocale() { uselocale(before_); }

 private:
  locale_t before_;
};
#endif
ATTZOO_API void* Library::required(const char* name) const {
  void* const found = symbol(name);
  TORCH_CHECK(found, "a library of CUDA's has no function ", name);
  return found;
}

/// The functions of NVRTC that are called.
class Nvrtc {
 public:
  static const Nvrtc& get() {
    static const Nvrtc nvrtc;
    return nvrtc;
  }
  std::string version() const { return version_; }

  std::string compile(const std::string& text, int capability) const {
    const KeepsLocale keeps_locale;
    auto supported = capabilities();
    const bool knows = std::find(supported.begin(), supported.end(), capability) != supported.end();
    const int target = knows || supported.empty()
                           ? capability
                           : *std::max_element(supported.begin(), supported.end());
    const auto option =
        std::string("--gpu-architecture=") + (knows ? "sm_" : "compute_") + std::to_string(target);
    std::string log;
    std::string image;
    constexpr int kNoBuiltins = 7;
    int code = run(text, option, knows, log, image);
    if (code == kNoBuiltins && load_builtins()) code = run(text, option, knows, log, image);
    TORCH_CHECK(code == 0, "NVRTC ", version_, " failed with ", code, " (", error_string_(code),
                ") for ", option, "\n", log);
    return image;
  }

 private:
  using Program = void*;

  Nvrtc() {
    library_ = find();
    TORCH_CHECK(library_,
                "there is no NVRTC (libnvrtc.so.13, .12 or .11.2); ATTZOO_NVRTC may name it");
    library_.function(create_, "nvrtcCreateProgram");
    library_.function(destroy_, "nvrtcDestroyProgram");
    library_.function(compile_, "nvrtcCompileProgram");
    library_.function(log_size_, "nvrtcGetProgramLogSize");
    library_.function(log_, "nvrtcGetProgramLog");
    library_.function(ptx_size_, "nvrtcGetPTXSize");
    library_.function(ptx_, "nvrtcGetPTX");
    library_.function(cubin_size_, "nvrtcGetCUBINSize");
    library_.function(cubin_, "nvrtcGetCUBIN");
    library_.function(count_archs_, "nvrtcGetNumSupportedArchs");
    library_.function(archs_, "nvrtcGetSupportedArchs");
    library_.function(error_string_, "nvrtcGetErrorString");
    int (*ask_version)(int*, int*);
    library_.function(ask_version, "nvrtcVersion");
    int major = 0, minor = 0;
    ask_version(&major, &minor);
    version_ = std::to_string(major) + "." + std::to_string(minor);
  }

  /// LibTorch's CUDA build has it loaded, or a library that has.
  static Library find() {
    if (const char* named = std::getenv("ATTZOO_NVRTC")) return Library::open({named});
    const auto names = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"};
    if (auto loaded = Library::open(names, true)) return loaded;
    if (auto through = Library::open({"libcaffe2_nvrtc.so"});
        through && through.symbol("nvrtcVersion")) {
      return through;
    }
    return Library::open(names);
  }
  /// What it looks for by a name that LibTorch's archives have changed, beside it.
  bool load_builtins() const {
    std::error_code error;
    bool any = false;
    const auto folder = std::filesystem::path(library_.file("nvrtcVersion")).parent_path();
    for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
      const auto name = entry.path().filename().string();
      if (name.rfind("libnvrtc-builtins", 0) == 0)
        any |= bool(Library::open({entry.path().c_str()}));
    }
    return any;
  }
  std::vector<int> capabilities() const {
    int count = 0;
    count_archs_(&count);
    std::vector<int> all(static_cast<size_t>(count));
    archs_(all.data());
    return all;
  }
  int run(const std::string& text, const std::string& architecture, bool is_code, std::string& log,
          std::string& image) const {
    Program program = nullptr;
    if (const int code = create_(&program, text.c_str(), "attzoo.cu", 0, nullptr, nullptr))
      return code;
    const char* options[] = {architecture.c_str(), "--std=c++17",
                             "--device-as-default-execution-space"};
    const int code = compile_(program, 3, options);
    size_t size = 0;
    log_size_(program, &size);
    log.resize(size);
    log_(program, log.data());
    if (code == 0) {
      (is_code ? cubin_size_ : ptx_size_)(program, &size);
      image.resize(size);
      (is_code ? cubin_ : ptx_)(program, image.data());
    }
    destroy_(&program);
    return code;
  }

  Library library_;
  std::string version_;
  int (*create_)(Program*, const char* text, const char* name, int, const char* const*,
                 const char* const*);
  int (*destroy_)(Program*);
  int (*compile_)(Program, int count, const char* const* options);
  int (*log_size_)(Program, size_t*);
  int (*log_)(Program, char*);
  int (*ptx_size_)(Program, size_t*);
  int (*ptx_)(Program, char*);
  int (*cubin_size_)(Program, size_t*);
  int (*cubin_)(Program, char*);
  int (*count_archs_)(int*);
  int (*archs_)(int*);
  const char* (*error_string_)(int);
};

/// Images in a folder, each with the text that it was made of, since names are hashes of that.
class ImageFolder {
 public:
  ImageFolder(std::filesystem::path folder, const std::string& key) : key_(key) {
    uint64_t hash = 14695981039346656037u;  // FNV-1a
    for (const char c : key) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
    file_ = std::move(folder) / (std::to_string(hash) + ".attzoo");
  }
  /// Empty if it is not there.
  std::string read() const {
    std::ifstream in(file_, std::ios::binary);
    const std::string all(std::istreambuf_iterator<char>(in), {});
    const auto head = std::to_string(key_.size()) + "\n" + key_;
    return all.compare(0, head.size(), head) == 0 ? all.substr(head.size()) : "";
  }
  /// What cannot be written is not kept. Another process reads the whole file or none.
  void write(const std::string& image) const {
    std::error_code error;
    std::filesystem::create_directories(file_.parent_path(), error);
    auto part = file_;
    part += "." + std::to_string(std::random_device()()) + ".part";
    std::ofstream out(part, std::ios::binary);
    out << key_.size() << "\n" << key_ << image;
    out.close();
    if (out) std::filesystem::rename(part, file_, error);
    if (!out || error) std::filesystem::remove(part, error);
  }

 private:
  std::string key_;
  std::filesystem::path file_;
};

ATTZOO_API std::string image_of(const std::string& text, int capability) {
  const char* folder = std::getenv("ATTZOO_CUDA_CACHE");
  if (!folder || !*folder) return Nvrtc::get().compile(text, capability);
  const ImageFolder kept(folder, "NVRTC " + Nvrtc::get().version() + " for " +
                                     std::to_string(capability) + "\n" + text);
  auto image = kept.read();
  if (image.empty()) {
    image = Nvrtc::get().compile(text, capability);
    kept.write(image);
  }
  return image;
}

}  // namespace attzoo::core::cuda

#endif
