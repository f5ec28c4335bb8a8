#pragma once
/// \file
/// Regular files: how errors name them, one as memory, so that what is large is read where it is
/// used and need not fit in twice, and how one takes the place of another, whole or not at all.

#include <attzoo/config.hpp>

#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <new>
#include <string>

namespace attzoo::core {

/// How errors name a file: whole, as long as paths can be.
ATTZOO_API std::string named(const char* who, const std::filesystem::path& path);

/// Runs f; an error of anything below it names `where` too.
template <class F>
auto naming(const std::string& where, F&& f) {
  std::string what;
  try {
    return f();
  } catch (const c10::Error& error) {
    what = error.what_without_backtrace();
  } catch (const std::bad_alloc&) {
    what = "there is not enough memory";
  }
  C10_THROW_ERROR(ValueError, what.starts_with(where) ? what : where + ": " + what);
}

/// What the last failed call of the operating system has to say; empty if errno is 0.
ATTZOO_API std::string last_error();

/// Throws c10::ValueError that begins with `file`, unless the path is a regular file, or nothing
/// and need not exist: to open a pipe waits, a device never ends, and a path with a zero byte would
/// open another file, whose name ends there.
ATTZOO_API void check_regular(const std::filesystem::path& path, bool must_exist,
                              const std::string& file);

/// The bytes of a regular file, mapped privately: pages are read when they are first touched, and
/// what is written stays in memory and never reaches the file. While it lives, nobody may shorten
/// the file. Where the system has no mmap, the file is read whole.
class MappedFile {
 public:
  /// Throws c10::ValueError that begins with `file` where the path is no regular file or cannot be
  /// opened, mapped or read.
  ATTZOO_API MappedFile(const std::filesystem::path& path, const std::string& file);
  ATTZOO_API ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  char* data() const { return data_; }
  uint64_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  uint64_t size_ = 0;
};

/// A file that takes the place of `path` when it is complete, and leaves nothing behind if not.
/// Until then it has a name of its own in the same folder, so that of several writers each writes
/// a whole file, and the last one's stays. It gets the permissions of the file that it replaces,
/// else those of any new file. All of it throws c10::ValueError that begins with `file` and says
/// why.
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
  /// Throws unless `ok`, and then leaves nothing behind.
  ATTZOO_API void check(bool ok);
  ATTZOO_API void remove();

  std::filesystem::path path_, temporary_;
  std::string file_;
  std::FILE* out_ = nullptr;
};

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/io/file.ipp>
#endif
