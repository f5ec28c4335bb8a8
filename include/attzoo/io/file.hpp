#pragma once
/// \file
/// Regular files: how errors name them, and how one takes the place of another, whole or not at
/// all.

#include <attzoo/kernel/compiler.hpp>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

namespace attzoo::core {

/// How errors name a file: whole, as long as paths can be.
ATTZOO_API std::string named(const char* who, const std::filesystem::path& path);

/// What the last failed call of the operating system has to say; empty if errno is 0.
ATTZOO_API std::string last_error();

/// Throws c10::ValueError that begins with `file`, unless the path is a regular file, or nothing
/// and need not exist: to open a pipe waits, and a device never ends.
ATTZOO_API void check_regular(const std::filesystem::path& path, bool must_exist,
                              const std::string& file);

/// A file that takes the place of `path` when it is complete, and leaves nothing behind if not.
/// All of it throws c10::ValueError that begins with `file` and says why.
class ReplacingFile {
 public:
  ATTZOO_API ReplacingFile(const std::filesystem::path& path, const std::string& file);
  ATTZOO_API ~ReplacingFile();
  ReplacingFile(const ReplacingFile&) = delete;
  ReplacingFile& operator=(const ReplacingFile&) = delete;

  ATTZOO_API void write(const void* data, uint64_t bytes);
  /// Until then, `path` is what it was.
  ATTZOO_API void finish();

 private:
  ATTZOO_API void check(bool ok) const;
  ATTZOO_API void remove() const;

  std::filesystem::path path_, temporary_;
  std::string file_;
  std::ofstream out_;
  bool done_ = false;
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/io/file.ipp>
#endif
