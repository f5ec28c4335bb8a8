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

#ifdef ATTZOO_DEFINE_IO

#include <attzoo/io/json.hpp>

#include <c10/util/StringUtil.h>

#include <cerrno>
#include <random>
#include <system_error>
#include <utility>

#if __has_include(<sys/mman.h>)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#include <fstream>
#include <memory>
#endif

namespace attzoo::core {

ATTZOO_API std::string named(const char* who, const std::filesystem::path& path) {
  return std::string(who) + ": " + printable(path.string(), 4096);
}

ATTZOO_API std::string last_error() {
  return errno != 0 ? ": " + std::generic_category().message(errno) : std::string();
}

ATTZOO_API void check_regular(const std::filesystem::path& path, bool must_exist,
                              const std::string& file) {
  namespace fs = std::filesystem;
  TORCH_CHECK_VALUE(path.native().find('\0') == path.native().npos, file,
                    ": cannot be opened: the path has a zero byte");
  std::error_code error;
  const auto status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found && !must_exist) return;
  TORCH_CHECK_VALUE(fs::exists(status), file, ": cannot be opened: ", error.message());
  TORCH_CHECK_VALUE(fs::is_regular_file(status), file, ": ", printable(path.string(), 4096), " is ",
                    fs::is_directory(status) ? "a directory" : "a device, pipe or socket",
                    ", expected a regular file");
}

#if __has_include(<sys/mman.h>)

/// Nothing is set aside for pages that nobody writes, so a file may be larger than the memory.
#ifdef MAP_NORESERVE
inline constexpr int kMapPrivate = MAP_PRIVATE | MAP_NORESERVE;
#else
inline constexpr int kMapPrivate = MAP_PRIVATE;
#endif

ATTZOO_API MappedFile::MappedFile(const std::filesystem::path& path, const std::string& file) {
  check_regular(path, true, file);
  errno = 0;
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  TORCH_CHECK_VALUE(descriptor >= 0, file, ": cannot be opened", last_error());
  struct stat status {};
  void* mapped = nullptr;
  bool ok = ::fstat(descriptor, &status) == 0;
  if (ok && status.st_size > 0) {  // nothing cannot be mapped
    size_ = static_cast<uint64_t>(status.st_size);
    mapped = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, kMapPrivate, descriptor, 0);
    ok = mapped != MAP_FAILED;
  }
  const auto why = ok ? std::string() : last_error();
  ::close(descriptor);
  TORCH_CHECK_VALUE(ok, file, ": cannot be mapped into memory", why);
  data_ = static_cast<char*>(mapped);
}

ATTZOO_API MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

#else

ATTZOO_API MappedFile::MappedFile(const std::filesystem::path& path, const std::string& file) {
  check_regular(path, true, file);
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  TORCH_CHECK_VALUE(in.is_open(), file, ": cannot be opened", last_error());
  size_ = std::filesystem::file_size(path);
  auto bytes = std::make_unique<char[]>(size_);
  TORCH_CHECK_VALUE(in.read(bytes.get(), static_cast<std::streamsize>(size_)), file,
                    ": cannot be read", last_error());
  data_ = bytes.release();
}

ATTZOO_API MappedFile::~MappedFile() { delete[] data_; }

#endif

ATTZOO_API ReplacingFile::ReplacingFile(const std::filesystem::path& path, const std::string& file)
    : path_(path), file_(file) {
  namespace fs = std::filesystem;
  check_regular(path, false, file);
  std::random_device random;
  do {
    temporary_ = path;
    temporary_.replace_filename(c10::str("attzoo-", random(), ".partial"));
    errno = 0;
    out_ = std::fopen(temporary_.string().c_str(), "wbx");  // x: no file that is there already
  } while (out_ == nullptr && errno == EEXIST);
  if (out_ == nullptr) temporary_.clear();
  check(out_ != nullptr);
  std::error_code error;
  const auto old = fs::status(path, error), made = fs::status(temporary_, error);
  if (fs::exists(old) && old.permissions() != made.permissions()) {
    fs::permissions(temporary_, old.permissions() & fs::perms::all, error);
    errno = error.value();
    check(!error);
  }
}

ATTZOO_API ReplacingFile::~ReplacingFile() { remove(); }

ATTZOO_API void ReplacingFile::write(const void* data, uint64_t bytes) {
  check(bytes == 0 || std::fwrite(data, bytes, 1, out_) == 1);
}

ATTZOO_API void ReplacingFile::finish() {
  check(std::fclose(std::exchange(out_, nullptr)) == 0);
  std::error_code error;
  std::filesystem::rename(temporary_, path_, error);
  errno = error.value();
  check(!error);
  temporary_.clear();
}

ATTZOO_API void ReplacingFile::check(bool ok) {
  if (ok) return;
  const std::string why = last_error();
  remove();
  TORCH_CHECK_VALUE(false, file_, ": cannot be written", why);
}

ATTZOO_API void ReplacingFile::remove() {
  if (out_ != nullptr) std::fclose(std::exchange(out_, nullptr));
  std::error_code ignored;
  if (!temporary_.empty()) std::filesystem::remove(temporary_, ignored);
  temporary_.clear();
}

}  // namespace attzoo::core

#endif
