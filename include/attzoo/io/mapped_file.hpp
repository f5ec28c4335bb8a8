#pragma once
/// \file
/// A file as memory, so that what is large is read where it is used and need not fit in twice.

#include <attzoo/config.hpp>

#include <cstdint>
#include <filesystem>
#include <string>

namespace attzoo::core {

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

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/io/mapped_file.ipp>
#endif
