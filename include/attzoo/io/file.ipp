#pragma once

#include <attzoo/io/file.hpp>
#include <attzoo/io/json.hpp>

#include <c10/util/Exception.h>

#include <cerrno>
#include <system_error>

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
  std::error_code error;
  const auto status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found && !must_exist) return;
  TORCH_CHECK_VALUE(fs::exists(status), file, ": cannot be opened: ", error.message());
  TORCH_CHECK_VALUE(fs::is_regular_file(status), file, ": ", printable(path.string(), 4096), " is ",
                    fs::is_directory(status) ? "a directory" : "a device, pipe or socket",
                    ", expected a regular file");
}

ATTZOO_API ReplacingFile::ReplacingFile(const std::filesystem::path& path, const std::string& file)
    : path_(path), temporary_(path), file_(file) {
  temporary_ += ".partial";
  check_regular(path, false, file);
  check_regular(temporary_, false, file);
  errno = 0;
  out_.open(temporary_, std::ios::binary | std::ios::trunc);
  check(out_.is_open());
}

ATTZOO_API ReplacingFile::~ReplacingFile() {
  if (!out_.is_open() || done_) return;
  out_.close();
  remove();
}

ATTZOO_API void ReplacingFile::write(const void* data, uint64_t bytes) {
  check(out_.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes)).good());
}

ATTZOO_API void ReplacingFile::finish() {
  out_.close();
  done_ = true;
  if (!out_.fail()) {
    std::error_code error;
    std::filesystem::rename(temporary_, path_, error);
    if (!error) return;
    errno = error.value();
  }
  const std::string why = last_error();
  remove();
  TORCH_CHECK_VALUE(false, file_, ": cannot be written", why);
}

ATTZOO_API void ReplacingFile::check(bool ok) const {
  TORCH_CHECK_VALUE(ok, file_, ": cannot be written", last_error());
}

ATTZOO_API void ReplacingFile::remove() const {
  std::error_code ignored;
  std::filesystem::remove(temporary_, ignored);
}

}  // namespace attzoo::core
