#pragma once

#include <attzoo/io/file.hpp>
#include <attzoo/io/mapped_file.hpp>

#include <c10/util/Exception.h>

#include <cerrno>

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

}  // namespace attzoo::core
