#pragma once

#include <attzoo/io/file.hpp>
#include <attzoo/io/json.hpp>

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <cerrno>
#include <random>
#include <system_error>
#include <utility>

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
