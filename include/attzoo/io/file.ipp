#pragma once

#include <attzoo/io/file.hpp>
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
