#pragma once
/// \file
/// Named tensors in safetensors files (https://github.com/huggingface/safetensors), so that weights
/// trained in Python load by name, strictly.
///
/// A file is a header length (8 bytes, little endian), a JSON header
/// {"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__": {string: string}}, and the
/// data.

#include <attzoo/core/json.hpp>

#include <torch/nn/module.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace attzoo {

static_assert(std::endian::native == std::endian::little, "safetensors files are little endian");

/// What a safetensors file holds.
struct SafeTensors {
  std::map<std::string, torch::Tensor> tensors;  ///< on the CPU, contiguous
  std::map<std::string, std::string> metadata;
};

namespace core {

inline constexpr std::pair<const char*, torch::ScalarType> kSafeTensorsDtypes[] = {
    {"F64", torch::kFloat64},   {"F32", torch::kFloat32}, {"F16", torch::kHalf},
    {"BF16", torch::kBFloat16}, {"I64", torch::kInt64},   {"I32", torch::kInt32},
    {"I16", torch::kInt16},     {"I8", torch::kInt8},     {"U8", torch::kUInt8},
    {"BOOL", torch::kBool}};

inline constexpr uint64_t kMaxSafeTensorsHeader = 100'000'000;  // the format's own limit

/// One tensor of the header, checked against itself and against the size of the data.
struct SafeTensorsEntry {
  std::string name;
  torch::ScalarType dtype;
  std::vector<int64_t> shape;
  int64_t begin, end;  // bytes, relative to the data

  static SafeTensorsEntry parse(const std::string& name, const Json& json, int64_t data_size,
                                const std::string& where) {
    SafeTensorsEntry e{name, torch::kFloat32, {}, 0, 0};
    const auto& dtype = json["dtype"].string();
    const auto* known = std::find_if(std::begin(kSafeTensorsDtypes), std::end(kSafeTensorsDtypes),
                                     [&](const auto& d) { return dtype == d.first; });
    TORCH_CHECK_VALUE(known != std::end(kSafeTensorsDtypes), where, ": unknown dtype ", dtype);
    e.dtype = known->second;
    int64_t bytes = static_cast<int64_t>(c10::elementSize(e.dtype));
    for (const auto& d : json["shape"].array()) {
      e.shape.push_back(d.integer());
      TORCH_CHECK_VALUE(e.shape.back() >= 0, where, ": a negative size in the shape ", e.shape);
      TORCH_CHECK_VALUE(!__builtin_mul_overflow(bytes, e.shape.back(), &bytes), where,
                        ": the shape ", e.shape, " overflows");
    }
    const auto& offsets = json["data_offsets"].array();
    TORCH_CHECK_VALUE(offsets.size() == 2, where, ": data_offsets must be [begin, end]");
    e.begin = offsets[0].integer();
    e.end = offsets[1].integer();
    TORCH_CHECK_VALUE(0 <= e.begin && e.begin <= e.end && e.end <= data_size, where,
                      ": data_offsets [", e.begin, ", ", e.end, "] do not lie in the ", data_size,
                      " bytes of data");
    TORCH_CHECK_VALUE(e.end - e.begin == bytes, where, ": shape ", e.shape, " of ", dtype,
                      " needs ", bytes, " bytes, data_offsets give ", e.end - e.begin);
    return e;
  }
};

/// The entries of a header in the order of their data, which must follow each other without gap.
inline std::vector<SafeTensorsEntry> parse_entries(const Json& header, int64_t data_size,
                                                   const std::string& file) {
  std::vector<SafeTensorsEntry> entries;
  for (const auto& [name, json] : header.object()) {
    if (name == "__metadata__") continue;
    entries.push_back(
        SafeTensorsEntry::parse(name, json, data_size, file + ": tensor \"" + name + "\""));
  }
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t at = 0;
  for (const auto& e : entries) {
    TORCH_CHECK_VALUE(e.begin == at, file, ": tensor \"", e.name, "\" begins at byte ", e.begin,
                      " of the data, expected ", at,
                      " (tensors may neither overlap nor leave gaps)");
    at = e.end;
  }
  TORCH_CHECK_VALUE(at == data_size, file, ": the tensors end at byte ", at, " of ", data_size,
                    " bytes of data");
  return entries;
}

}  // namespace core

/// Reads a safetensors file whole. Throws c10::Error that names the file, and the tensor, where it
/// cannot be read, is truncated or oversized, or where the header is malformed.
inline SafeTensors load_safetensors(const std::filesystem::path& path) {
  const std::string file = "load_safetensors: " + path.string();
  std::ifstream in(path, std::ios::binary);
  TORCH_CHECK_VALUE(in.is_open(), file, ": cannot be opened");
  const auto file_size = static_cast<uint64_t>(std::filesystem::file_size(path));
  uint64_t header_size = 0;
  TORCH_CHECK_VALUE(file_size >= sizeof header_size &&
                        in.read(reinterpret_cast<char*>(&header_size), sizeof header_size),
                    file, ": truncated, expected 8 bytes of header length, got ", file_size);
  TORCH_CHECK_VALUE(header_size <= core::kMaxSafeTensorsHeader, file, ": a header of ", header_size,
                    " bytes is over the limit of ", core::kMaxSafeTensorsHeader);
  TORCH_CHECK_VALUE(header_size <= file_size - sizeof header_size, file,
                    ": truncated, the header should have ", header_size, " bytes, the file has ",
                    file_size - sizeof header_size, " more");
  std::string text(header_size, '\0');
  in.read(text.data(), static_cast<std::streamsize>(header_size));
  SafeTensors result;
  const auto data_size = static_cast<int64_t>(file_size - sizeof header_size - header_size);
  try {
    const auto header = core::Json::parse(text);
    if (header.contains("__metadata__")) {
      for (const auto& [key, value] : header["__metadata__"].object()) {
        result.metadata[key] = value.string();
      }
    }
    for (const auto& e : core::parse_entries(header, data_size, file)) {
      auto t = torch::empty(e.shape, e.dtype);
      TORCH_CHECK_VALUE(
          t.numel() == 0 || in.read(static_cast<char*>(t.data_ptr()), e.end - e.begin), file,
          ": tensor \"", e.name, "\" cannot be read");
      result.tensors[e.name] = std::move(t);
    }
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    TORCH_CHECK_VALUE(false, what.starts_with(file) ? "" : file + ": header: ", what);
  }
  return result;
}

/// Writes tensors of any strides and any device. The file appears whole or not at all.
/// Throws c10::Error for a dtype that the format lacks, and where the file cannot be written.
inline void save_safetensors(const std::filesystem::path& path,
                             const std::map<std::string, torch::Tensor>& tensors,
                             const std::map<std::string, std::string>& metadata = {}) {
  const std::string file = "save_safetensors: " + path.string();
  core::Json::Object header;
  if (!metadata.empty()) {
    core::Json::Object strings;
    for (const auto& [key, value] : metadata) strings[key] = value;
    header["__metadata__"] = strings;
  }
  std::vector<torch::Tensor> data;
  int64_t at = 0;
  for (const auto& [name, tensor] : tensors) {
    TORCH_CHECK_VALUE(tensor.defined() && name != "__metadata__", file, ": tensor \"", name,
                      "\" is undefined or has a reserved name");
    const auto* dtype =
        std::find_if(std::begin(core::kSafeTensorsDtypes), std::end(core::kSafeTensorsDtypes),
                     [type = tensor.scalar_type()](const auto& d) { return d.second == type; });
    TORCH_CHECK_TYPE(dtype != std::end(core::kSafeTensorsDtypes), file, ": tensor \"", name,
                     "\" has the dtype ", tensor.scalar_type(), ", which the format lacks");
    data.push_back(tensor.detach().to(torch::kCPU).contiguous());
    const auto bytes = static_cast<int64_t>(data.back().nbytes());
    core::Json::Array shape;
    for (const int64_t d : tensor.sizes()) shape.emplace_back(d);
    header[name] = core::Json::Object{{"dtype", dtype->first},
                                      {"shape", shape},
                                      {"data_offsets", core::Json::Array{at, at + bytes}}};
    at += bytes;
  }
  std::string text = core::Json(std::move(header)).dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data are aligned
  const auto header_size = static_cast<uint64_t>(text.size());

  auto temporary = path;
  temporary += ".partial";
  {
    std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
    out.write(reinterpret_cast<const char*>(&header_size), sizeof header_size);
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    for (const auto& t : data) {
      out.write(static_cast<const char*>(t.data_ptr()), static_cast<std::streamsize>(t.nbytes()));
    }
    out.flush();
    TORCH_CHECK_VALUE(out.good(), file, ": cannot be written");
  }
  std::filesystem::rename(temporary, path);
}

/// Parameters and buffers of a module by their names, as in Python's state_dict.
inline std::map<std::string, torch::Tensor> state_dict(const torch::nn::Module& module) {
  std::map<std::string, torch::Tensor> state;
  for (const auto& p : module.named_parameters()) state[p.key()] = p.value();
  for (const auto& b : module.named_buffers()) state[b.key()] = b.value();
  return state;
}

/// Copies tensors into the parameters and buffers of the same names, on whatever device they are.
/// Strict: every tensor of the module must be given, with its shape and dtype, and no other, but
/// for `alibi_bias`, which the Python library saves and nothing needs. Throws one c10::ValueError
/// that lists everything missing, extra and unfit, and then changes nothing.
inline void load_state_dict(torch::nn::Module& module,
                            const std::map<std::string, torch::Tensor>& state) {
  const auto own = state_dict(module);
  std::string wrong;
  for (const auto& [name, tensor] : own) {
    const auto it = state.find(name);
    if (it == state.end()) {
      wrong += "\n  missing: " + name;
    } else if (it->second.sizes() != tensor.sizes() ||
               it->second.scalar_type() != tensor.scalar_type()) {
      wrong += c10::str("\n  ", name, ": expected ", tensor.sizes(), " ", tensor.scalar_type(),
                        ", got ", it->second.sizes(), " ", it->second.scalar_type());
    }
  }
  for (const auto& [name, tensor] : state) {
    const bool ignored = name == "alibi_bias" || name.ends_with(".alibi_bias");
    if (!ignored && own.count(name) == 0) wrong += "\n  extra: " + name;
  }
  TORCH_CHECK_VALUE(wrong.empty(), "load_state_dict: the tensors do not fit the module ",
                    module.name(), ":", wrong);
  torch::NoGradGuard no_grad;
  for (auto [name, tensor] : own) tensor.copy_(state.at(name));
}

/// The same from a safetensors file; `load_state_dict(*attn, "attn.safetensors")`.
inline void load_state_dict(torch::nn::Module& module, const std::filesystem::path& path) {
  load_state_dict(module, load_safetensors(path).tensors);
}

/// Saves all parameters and buffers: `save_state_dict(*attn, "attn.safetensors")`.
inline void save_state_dict(const torch::nn::Module& module, const std::filesystem::path& path) {
  save_safetensors(path, state_dict(module));
}

}  // namespace attzoo
