#pragma once
/// \file
/// The header of a safetensors file, held against itself and against the size of the data before a
/// tensor is made of it.

#include <attzoo/config.hpp>
#include <attzoo/io/json.hpp>

#include <c10/util/Exception.h>
#include <torch/types.h>

#include <cstdint>
#include <map>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace attzoo::core {

/// The dtypes of the format by the names that it gives them.
inline constexpr std::pair<const char*, torch::ScalarType> kSafeTensorsDtypes[] = {
    {"F64", torch::kFloat64},   {"F32", torch::kFloat32}, {"F16", torch::kHalf},
    {"BF16", torch::kBFloat16}, {"I64", torch::kInt64},   {"I32", torch::kInt32},
    {"I16", torch::kInt16},     {"I8", torch::kInt8},     {"U8", torch::kUInt8},
    {"BOOL", torch::kBool}};

inline constexpr uint64_t kMaxSafeTensorsHeader = 100'000'000;  // the format's own limit
inline constexpr size_t kMaxSafeTensorsRank = 64;               // LibTorch's

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

/// How errors name a tensor of a file.
ATTZOO_API std::string tensor_in(const std::string& file, const std::string& name);

/// Throws c10::ValueError for a header that is longer than the format allows.
ATTZOO_API void check_header_size(uint64_t bytes, const std::string& file);

/// Throws c10::ValueError for a truth value that is neither 0 nor 1: C++ may read any other as it
/// likes.
ATTZOO_API void check_bool_bytes(const torch::Tensor& t, const std::string& where);

/// One tensor of the header, checked against itself and against the size of the data.
struct SafeTensorsEntry {
  std::string name;
  torch::ScalarType dtype;
  std::vector<int64_t> shape;
  int64_t begin, end;  // bytes, relative to the data
};

/// What stands before the data of a file.
struct SafeTensorsHeader {
  std::vector<SafeTensorsEntry> entries;  // in the order of their data, without gap
  std::map<std::string, std::string> metadata;
  int64_t data_begin;  // bytes, relative to the file
};

/// From the header's text and the bytes of data that follow. Throws c10::ValueError that begins
/// with `file` and says what is wrong, of which tensor.
ATTZOO_API SafeTensorsHeader parse_safetensors_header(const std::string& text, int64_t data_size,
                                                      const std::string& file);

/// Reads the header of a file of `file_size` bytes. `read(to, bytes)` copies the next bytes of the
/// file and says whether it could. Throws as parse_safetensors_header.
template <class Read>
SafeTensorsHeader read_safetensors_header(Read&& read, uint64_t file_size,
                                          const std::string& file) {
  uint64_t size = 0;
  TORCH_CHECK_VALUE(file_size >= sizeof size && read(reinterpret_cast<char*>(&size), sizeof size),
                    file, ": truncated, expected 8 bytes of header length, got ", file_size);
  check_header_size(size, file);
  TORCH_CHECK_VALUE(size <= file_size - sizeof size, file, ": truncated, the header should have ",
                    size, " bytes, the file has ", file_size - sizeof size, " more");
  std::string text(size, '\0');
  TORCH_CHECK_VALUE(read(text.data(), size), file, ": the header cannot be read");
  auto header =
      parse_safetensors_header(text, static_cast<int64_t>(file_size - sizeof size - size), file);
  header.data_begin = static_cast<int64_t>(sizeof size + size);
  return header;
}

}  // namespace attzoo::core

#ifndef ATTZOO_COMPILED
#include <attzoo/io/safetensors_header.ipp>
#endif
