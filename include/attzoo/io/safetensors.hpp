#pragma once
/// \file
/// Named tensors in safetensors files (https://github.com/huggingface/safetensors).
///
/// A file is a header length (8 bytes, little endian), a JSON header
/// {"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__": {string: string}}, and the
/// data.

#include <attzoo/config.hpp>

#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

namespace attzoo {

/// What a safetensors file holds.
struct SafeTensors {
  std::map<std::string, torch::Tensor> tensors;  ///< on the CPU, contiguous
  std::map<std::string, std::string> metadata;
};

/// Reads a safetensors file whole. Throws c10::Error that names the file, and the tensor, where it
/// is no regular file, cannot be read, is truncated or oversized, where the header is malformed or
/// not UTF-8, and where a BOOL is neither 0 nor 1.
ATTZOO_API SafeTensors load_safetensors(const std::filesystem::path& path);

/// Writes tensors of any strides and any device. The file appears whole or not at all, that of one
/// writer where several write the same path, with the permissions of the file that it replaces.
/// Throws c10::Error for a tensor that is undefined, sparse, nested or without numbers (meta), for
/// a dtype that the format lacks, a name or metadata that are not UTF-8, and where the file cannot
/// be written; then whatever was there before is left as it was.
ATTZOO_API void save_safetensors(const std::filesystem::path& path,
                                 const std::map<std::string, torch::Tensor>& tensors,
                                 const std::map<std::string, std::string>& metadata = {});

namespace core {

inline constexpr uint64_t kMaxSafeTensorsHeader = 100'000'000;  // the format's own limit

/// How errors name a tensor of a file.
ATTZOO_API std::string tensor_in(const std::string& file, const std::string& name);

/// A file mapped into memory: tensors are views that hold the mapping, and copies where their
/// numbers do not stand at an address for their dtype, or all of them with `copies`. Throws
/// c10::ValueError that begins with `file`, as load_safetensors.
ATTZOO_API SafeTensors map_safetensors(const std::filesystem::path& path, const std::string& file,
                                       bool copies = false);

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_IO

#include <attzoo/core/checks.hpp>
#include <attzoo/io/file.hpp>
#include <attzoo/io/json.hpp>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

namespace attzoo::core {

static_assert(std::endian::native == std::endian::little, "safetensors files are little endian");

/// The dtypes of the format by the names that it gives them.
inline constexpr std::pair<const char*, torch::ScalarType> kSafeTensorsDtypes[] = {
    {"F64", torch::kFloat64},   {"F32", torch::kFloat32}, {"F16", torch::kHalf},
    {"BF16", torch::kBFloat16}, {"I64", torch::kInt64},   {"I32", torch::kInt32},
    {"I16", torch::kInt16},     {"I8", torch::kInt8},     {"U8", torch::kUInt8},
    {"BOOL", torch::kBool}};

inline constexpr size_t kMaxSafeTensorsRank = 64;  // LibTorch's

// ---- the header, held against itself and the size of the data before there is a tensor ----------

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
  uint64_t data_begin;  // bytes, relative to the file
};

ATTZOO_API std::string tensor_in(const std::string& file, const std::string& name) {
  return file + ": tensor \"" + printable(name) + "\"";
}

/// Throws c10::ValueError for a header that is longer than the format allows.
ATTZOO_API void check_header_size(uint64_t bytes, const std::string& file) {
  TORCH_CHECK_VALUE(bytes <= kMaxSafeTensorsHeader, file, ": a header of ", bytes,
                    " bytes is over the limit of ", kMaxSafeTensorsHeader,
                    "; is it a safetensors file?");
}

/// Throws c10::ValueError for a truth value that is neither 0 nor 1: C++ may read any other as it
/// likes.
ATTZOO_API void check_bool_bytes(const torch::Tensor& t, const std::string& where) {
  if (t.scalar_type() != torch::kBool || t.numel() == 0) return;
  const int64_t most = t.view(torch::kUInt8).max().item<int64_t>();
  TORCH_CHECK_VALUE(most <= 1, where, ": BOOL bytes must be 0 or 1, got ", most);
}

ATTZOO_API torch::ScalarType parse_dtype(const std::string& name, const std::string& where) {
  for (const auto& [known, dtype] : kSafeTensorsDtypes) {
    if (name == known) return dtype;
  }
  TORCH_CHECK_VALUE(false, where, ": unknown dtype ", printable(name));
}

/// The bytes of a tensor, having read its shape.
ATTZOO_API int64_t parse_shape(const Json::Array& sizes, SafeTensorsEntry& e,
                               const std::string& where) {
  TORCH_CHECK_VALUE(sizes.size() <= kMaxSafeTensorsRank, where, ": the shape has ", sizes.size(),
                    " dimensions, expected at most ", kMaxSafeTensorsRank);
  // Strides must fit too, so a size of 0 does not excuse the others.
  auto span = static_cast<int64_t>(c10::elementSize(e.dtype));
  bool empty = false;
  for (const auto& json : sizes) {
    const int64_t size = json.integer();
    e.shape.push_back(size);
    TORCH_CHECK_VALUE(size >= 0, where, ": a negative size in the shape ", e.shape);
    empty = empty || size == 0;
    TORCH_CHECK_VALUE(!__builtin_mul_overflow(span, std::max<int64_t>(size, 1), &span), where,
                      ": the shape ", e.shape, " overflows");
  }
  return empty ? 0 : span;
}

ATTZOO_API SafeTensorsEntry parse_entry(const std::string& name, const Json& json,
                                        int64_t data_size, const std::string& where) {
  const auto& dtype = json["dtype"].string();
  SafeTensorsEntry e{name, parse_dtype(dtype, where), {}, 0, 0};
  const int64_t bytes = parse_shape(json["shape"].array(), e, where);
  const auto& offsets = json["data_offsets"].array();
  TORCH_CHECK_VALUE(offsets.size() == 2, where, ": data_offsets must be [begin, end], got ",
                    offsets.size(), " numbers");
  e.begin = offsets[0].integer();
  e.end = offsets[1].integer();
  TORCH_CHECK_VALUE(0 <= e.begin && e.begin <= e.end && e.end <= data_size, where,
                    ": data_offsets [", e.begin, ", ", e.end, "] do not lie in the ", data_size,
                    " bytes of data");
  TORCH_CHECK_VALUE(e.end - e.begin == bytes, where, ": shape ", e.shape, " of ", dtype, " needs ",
                    bytes, " bytes, data_offsets give ", e.end - e.begin);
  return e;
}

/// The entries of a header in the order of their data, which must follow each other without gap.
ATTZOO_API std::vector<SafeTensorsEntry> parse_entries(const Json& header, int64_t data_size,
                                                       const std::string& file) {
  std::vector<SafeTensorsEntry> entries;
  for (const auto& [name, json] : header.object()) {
    if (name == "__metadata__") continue;
    const auto where = tensor_in(file, name);
    entries.push_back(
        naming(where, [&, &n = name, &j = json] { return parse_entry(n, j, data_size, where); }));
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t at = 0;
  for (const auto& e : entries) {
    TORCH_CHECK_VALUE(e.begin == at, tensor_in(file, e.name), " begins at byte ", e.begin,
                      " of the data, expected ", at,
                      " (tensors may neither overlap nor leave gaps)");
    at = e.end;
  }
  TORCH_CHECK_VALUE(at == data_size, file, ": the tensors end at byte ", at, " of ", data_size,
                    " bytes of data");
  return entries;
}

ATTZOO_API std::map<std::string, std::string> parse_metadata(const Json& header) {
  std::map<std::string, std::string> metadata;
  if (!header.contains("__metadata__")) return metadata;
  for (const auto& [key, value] : header["__metadata__"].object()) metadata[key] = value.string();
  return metadata;
}

/// From the bytes of a file. Throws c10::ValueError that begins with `file` and says what is wrong,
/// of which tensor.
ATTZOO_API SafeTensorsHeader parse_safetensors_header(std::string_view bytes,
                                                      const std::string& file) {
  uint64_t size = 0;
  TORCH_CHECK_VALUE(bytes.size() >= sizeof size, file,
                    ": truncated, expected 8 bytes of header length, got ", bytes.size());
  std::memcpy(&size, bytes.data(), sizeof size);
  bytes.remove_prefix(sizeof size);
  check_header_size(size, file);
  TORCH_CHECK_VALUE(size <= bytes.size(), file, ": truncated, the header should have ", size,
                    " bytes, the file has ", bytes.size(), " more");
  SafeTensorsHeader header;
  header.data_begin = sizeof size + size;
  const auto json = naming(file + ": header", [&] {
    auto parsed = Json::parse(bytes.substr(0, size));
    header.metadata = parse_metadata(parsed);
    return parsed;
  });
  const auto data_size = static_cast<int64_t>(bytes.size() - size);
  header.entries = naming(file, [&] { return parse_entries(json, data_size, file); });
  return header;
}

// ---- reading ------------------------------------------------------------------------------------

/// One tensor of a mapped file.
ATTZOO_API torch::Tensor mapped_tensor(const std::shared_ptr<MappedFile>& mapped, char* begin,
                                       const SafeTensorsEntry& e, bool copy) {
  const auto bytes = static_cast<size_t>(e.end - e.begin);
  const bool aligned = reinterpret_cast<uintptr_t>(begin) % c10::elementSize(e.dtype) == 0;
  if (!copy && aligned && bytes > 0) {
    return torch::from_blob(
        begin, e.shape, [mapped](void*) {}, e.dtype);
  }
  auto t = torch::empty(e.shape, e.dtype);
  if (bytes > 0) std::memcpy(t.data_ptr(), begin, bytes);
  return t;
}

ATTZOO_API SafeTensors map_safetensors(const std::filesystem::path& path, const std::string& file,
                                       bool copies) {
  const auto mapped = std::make_shared<MappedFile>(path, file);
  auto header = parse_safetensors_header({mapped->data(), mapped->size()}, file);
  SafeTensors result{{}, std::move(header.metadata)};
  for (const auto& e : header.entries) {
    const auto where = tensor_in(file, e.name);
    auto* begin = mapped->data() + header.data_begin + e.begin;
    auto t = naming(where, [&] { return mapped_tensor(mapped, begin, e, copies); });
    check_bool_bytes(t, where);
    result.tensors[e.name] = std::move(t);
  }
  return result;
}

// ---- writing ------------------------------------------------------------------------------------

/// Null if the format lacks it.
ATTZOO_API const char* dtype_name(torch::ScalarType type) {
  for (const auto& [name, dtype] : kSafeTensorsDtypes) {
    if (dtype == type) return name;
  }
  return nullptr;
}

/// What the format can hold.
ATTZOO_API void check_saved(const std::string& name, const torch::Tensor& tensor,
                            const std::string& where) {
  TORCH_CHECK_VALUE(name != "__metadata__", where, " has a reserved name");
  const auto problem = storage_problem(tensor);
  TORCH_CHECK_VALUE(problem.empty(), where, " must be a dense tensor, got ", problem);
  TORCH_CHECK_TYPE(dtype_name(tensor.scalar_type()), where, " has the dtype ", tensor.scalar_type(),
                   ", which the format lacks");
  TORCH_CHECK_VALUE(static_cast<size_t>(tensor.dim()) <= kMaxSafeTensorsRank, where, " has ",
                    tensor.dim(), " dimensions, expected at most ", kMaxSafeTensorsRank);
}

/// A copy of t's numbers as they are meant: contiguous, on the CPU, and without the bits by which
/// LibTorch puts a negation or a conjugation off.
ATTZOO_API torch::Tensor saved_numbers(const torch::Tensor& t) {
  const auto own = t._is_zerotensor() ? torch::zeros(t.sizes(), t.options()) : t.detach();
  return own.resolve_conj().resolve_neg().to(torch::kCPU).contiguous();
}

ATTZOO_API void check_utf8(const std::string& text, const std::string& what) {
  TORCH_CHECK_VALUE(find_not_utf8(text) == std::string::npos, what, " \"", printable(text),
                    "\" is not UTF-8");
}

ATTZOO_API Json metadata_json(const std::map<std::string, std::string>& metadata,
                              const std::string& file) {
  Json::Object strings;
  for (const auto& [key, value] : metadata) {
    check_utf8(key, file + ": the metadata key");
    check_utf8(value, file + ": the metadata of " + printable(key));
    strings[key] = value;
  }
  return strings;
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API SafeTensors load_safetensors(const std::filesystem::path& path) {
  return core::map_safetensors(path, core::named("load_safetensors", path), /*copies=*/true);
}

ATTZOO_API void save_safetensors(const std::filesystem::path& path,
                                 const std::map<std::string, torch::Tensor>& tensors,
                                 const std::map<std::string, std::string>& metadata) {
  const std::string file = core::named("save_safetensors", path);
  core::Json::Object header;
  if (!metadata.empty()) header["__metadata__"] = core::metadata_json(metadata, file);
  for (const auto& [name, tensor] : tensors) {
    core::check_utf8(name, file + ": the name of tensor");
    core::check_saved(name, tensor, core::tensor_in(file, name));
  }
  std::vector<torch::Tensor> data;
  int64_t at = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto where = core::tensor_in(file, name);
    data.push_back(core::naming(where, [&t = tensor] { return core::saved_numbers(t); }));
    core::check_bool_bytes(data.back(), where);
    const auto bytes = static_cast<int64_t>(data.back().nbytes());
    core::Json::Array shape;
    for (const int64_t d : tensor.sizes()) shape.emplace_back(d);
    header[name] = core::Json::Object{{"dtype", core::dtype_name(tensor.scalar_type())},
                                      {"shape", shape},
                                      {"data_offsets", core::Json::Array{at, at + bytes}}};
    at += bytes;
  }
  std::string text = core::Json(std::move(header)).dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data are aligned
  const auto header_size = static_cast<uint64_t>(text.size());
  core::check_header_size(header_size, file);

  core::ReplacingFile out(path, file);
  out.write(&header_size, sizeof header_size);
  out.write(text.data(), text.size());
  for (const auto& t : data) out.write(t.data_ptr(), t.nbytes());
  out.finish();
}

}  // namespace attzoo

#endif
