#pragma once
/// \file
/// What libFuzzer's targets share.

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <c10/util/Logging.h>
#include <fuzzer/FuzzedDataProvider.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

namespace attzoo::fuzz {

/// Whether a fault is planted, which must be found: `tests/fuzz/run --check`.
inline const bool kPlanted = std::getenv("ATTZOO_FUZZ_PLANTED") != nullptr;

/// A finding unless `ok`.
inline void require(bool ok, const std::string& what) {
  if (ok) return;
  std::fprintf(stderr, "finding: %s\n", what.c_str());
  std::abort();
}

/// Whether f() returns. It may throw c10::Error; anything else ends the program, a finding, too.
template <class F>
bool works(F&& f) {
  try {
    f();
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}

/// A folder of this process, which goes with it.
class Folder {
 public:
  Folder()
      : path_(std::filesystem::temp_directory_path() /
              ("attzoo_fuzz_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path_);
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::filesystem::path operator/(const char* name) const { return path_ / name; }
  /// A file of these bytes; its path.
  std::filesystem::path write(const char* name, std::string_view bytes) const {
    std::ofstream(path_ / name, std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace attzoo::fuzz

/// One thread: what a run does depends on its bytes alone. Errors without a backtrace, which takes
/// longer than all that leads to them. (Each target is one file.)
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  at::set_num_threads(1);
  c10::SetStackTraceFetcher([] { return std::string(); });
  return 0;
}
