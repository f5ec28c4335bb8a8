#pragma once

#include <attzoo/io/safetensors_header.hpp>

#include <algorithm>
#include <bit>

namespace attzoo::core {

static_assert(std::endian::native == std::endian::little, "safetensors files are little endian");

ATTZOO_API std::string tensor_in(const std::string& file, const std::string& name) {
  return file + ": tensor \"" + printable(name) + "\"";
}

ATTZOO_API void check_header_size(uint64_t bytes, const std::string& file) {
  TORCH_CHECK_VALUE(bytes <= kMaxSafeTensorsHeader, file, ": a header of ", bytes,
                    " bytes is over the limit of ", kMaxSafeTensorsHeader,
                    "; is it a safetensors file?");
}

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

ATTZOO_API SafeTensorsHeader parse_safetensors_header(const std::string& text, int64_t data_size,
                                                      const std::string& file) {
  SafeTensorsHeader header;
  const auto json = naming(file + ": header", [&] {
    auto parsed = Json::parse(text);
    header.metadata = parse_metadata(parsed);
    return parsed;
  });
  header.entries = naming(file, [&] { return parse_entries(json, data_size, file); });
  return header;
}

}  // namespace attzoo::core
