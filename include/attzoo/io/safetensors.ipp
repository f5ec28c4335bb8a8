#pragma once

#include <attzoo/core/storage.hpp>
#include <attzoo/io/file.hpp>
#include <attzoo/io/json.hpp>
#include <attzoo/io/safetensors.hpp>

#include <ATen/MemoryOverlap.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <fstream>
#include <new>
#include <system_error>
#include <utility>
#include <vector>

namespace attzoo::core {

static_assert(std::endian::native == std::endian::little, "safetensors files are little endian");

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
  TORCH_CHECK_VALUE(false, what.starts_with(where) ? "" : where + ": ", what);
}

/// How errors name a tensor of a file.
ATTZOO_API std::string tensor_in(const std::string& file, const std::string& name) {
  return file + ": tensor \"" + printable(name) + "\"";
}

ATTZOO_API void check_header_size(uint64_t bytes, const std::string& file) {
  TORCH_CHECK_VALUE(bytes <= kMaxSafeTensorsHeader, file, ": a header of ", bytes,
                    " bytes is over the limit of ", kMaxSafeTensorsHeader);
}

/// A truth value is one byte, 0 or 1; C++ may read any other as it likes.
ATTZOO_API void check_bool_bytes(const torch::Tensor& t, const std::string& where) {
  if (t.scalar_type() != torch::kBool || t.numel() == 0) return;
  const int64_t most = t.view(torch::kUInt8).max().item<int64_t>();
  TORCH_CHECK_VALUE(most <= 1, where, ": BOOL bytes must be 0 or 1, got ", most);
}

// ---- reading ------------------------------------------------------------------------------------

/// One tensor of the header, checked against itself and against the size of the data.
struct SafeTensorsEntry {
  std::string name;
  torch::ScalarType dtype;
  std::vector<int64_t> shape;
  int64_t begin, end;  // bytes, relative to the data
};

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

/// The header's text; `in` stands at the data afterwards, `data_size` bytes up to the file's end.
ATTZOO_API std::string read_header(std::ifstream& in, uint64_t file_size, const std::string& file,
                                   int64_t& data_size) {
  uint64_t size = 0;
  TORCH_CHECK_VALUE(
      file_size >= sizeof size && in.read(reinterpret_cast<char*>(&size), sizeof size), file,
      ": truncated, expected 8 bytes of header length, got ", file_size);
  check_header_size(size, file);
  TORCH_CHECK_VALUE(size <= file_size - sizeof size, file, ": truncated, the header should have ",
                    size, " bytes, the file has ", file_size - sizeof size, " more");
  std::string text(size, '\0');
  TORCH_CHECK_VALUE(in.read(text.data(), static_cast<std::streamsize>(size)), file,
                    ": the header cannot be read");
  data_size = static_cast<int64_t>(file_size - sizeof size - size);
  return text;
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

// ---- modules ------------------------------------------------------------------------------------

/// What keeps the numbers of `given` from being copied into `own`; empty if nothing does.
ATTZOO_API std::string cannot_copy(const torch::Tensor& own, const torch::Tensor& given) {
  if (const auto problem = storage_problem(own); !problem.empty()) {
    return "the module's own is " + problem;
  }
  if (own.is_inference() && !c10::InferenceMode::is_enabled()) {
    return "the module's own is an inference tensor, which only InferenceMode may write";
  }
  if (at::has_internal_overlap(own) == at::MemOverlap::Yes) {
    return c10::str("the module's own ", own.sizes(), " shares memory between its elements");
  }
  if (const auto problem = storage_problem(given); !problem.empty()) {
    return "expected a dense tensor, got " + problem;
  }
  if (given.sizes() != own.sizes() || given.scalar_type() != own.scalar_type()) {
    return c10::str("expected ", own.sizes(), " ", own.scalar_type(), ", got ", given.sizes(), " ",
                    given.scalar_type());
  }
  return {};
}

/// One tensor under two names, as in a wrapper around the same module twice, cannot become two.
ATTZOO_API std::string check_shared(const std::map<std::string, torch::Tensor>& own,
                                    const std::map<std::string, torch::Tensor>& state) {
  std::string wrong;
  std::map<const void*, std::string> first;  // by memory
  for (const auto& [name, tensor] : own) {
    if (tensor.numel() == 0) continue;
    const auto [it, fresh] = first.try_emplace(tensor.data_ptr(), name);
    if (!fresh && own.at(it->second).sizes() == tensor.sizes() &&
        !torch::equal(state.at(name).cpu(), state.at(it->second).cpu())) {
      wrong += "\n  " + name + ": is the module's " + it->second + ", but other numbers are given";
    }
  }
  return wrong;
}

/// Copies what fits: every source is ready before the first number changes, so nothing can fail
/// halfway, and no source changes because it is itself a part of the module.
ATTZOO_API void copy_state(const std::map<std::string, torch::Tensor>& own,
                           const std::map<std::string, torch::Tensor>& state) {
  torch::NoGradGuard no_grad;
  std::vector<std::pair<torch::Tensor, torch::Tensor>> copies;  // to, from
  for (const auto& [name, to] : own) {
    auto from = state.at(name).to(to.device());
    const bool own_memory = std::any_of(
        own.begin(), own.end(), [&](const auto& entry) { return entry.second.is_alias_of(from); });
    copies.emplace_back(to, own_memory ? from.clone() : from);
  }
  for (const auto& [to, from] : copies) to.copy_(from);
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API SafeTensors load_safetensors(const std::filesystem::path& path) {
  const std::string file = core::named("load_safetensors", path);
  core::check_regular(path, true, file);
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  TORCH_CHECK_VALUE(in.is_open(), file, ": cannot be opened", core::last_error());
  std::error_code error;
  const auto file_size = static_cast<uint64_t>(std::filesystem::file_size(path, error));
  TORCH_CHECK_VALUE(!error, file, ": cannot be read: ", error.message());
  int64_t data_size = 0;
  const auto text = core::read_header(in, file_size, file, data_size);
  SafeTensors result;
  const auto header = core::naming(file + ": header", [&] {
    auto json = core::Json::parse(text);
    result.metadata = core::parse_metadata(json);
    return json;
  });
  for (const auto& e :
       core::naming(file, [&] { return core::parse_entries(header, data_size, file); })) {
    const auto where = core::tensor_in(file, e.name);
    auto t = core::naming(where, [&] { return torch::empty(e.shape, e.dtype); });
    TORCH_CHECK_VALUE(t.numel() == 0 || in.read(static_cast<char*>(t.data_ptr()), e.end - e.begin),
                      where, " cannot be read");
    core::check_bool_bytes(t, where);
    result.tensors[e.name] = std::move(t);
  }
  return result;
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

ATTZOO_API std::map<std::string, torch::Tensor> state_dict(const torch::nn::Module& module) {
  std::map<std::string, torch::Tensor> state;
  for (const auto& p : module.named_parameters()) state[p.key()] = p.value();
  for (const auto& b : module.named_buffers()) state[b.key()] = b.value();
  return state;
}

ATTZOO_API void load_state_dict(torch::nn::Module& module,
                                const std::map<std::string, torch::Tensor>& state) {
  const auto own = state_dict(module);
  std::string wrong;
  for (const auto& [name, tensor] : own) {
    const auto it = state.find(name);
    if (it == state.end()) {
      wrong += "\n  missing: " + name;
    } else if (const auto why = core::cannot_copy(tensor, it->second); !why.empty()) {
      wrong += "\n  " + name + ": " + why;
    }
  }
  for (const auto& [name, tensor] : state) {
    const bool ignored = name == "alibi_bias" || name.ends_with(".alibi_bias");
    if (!ignored && own.count(name) == 0) wrong += "\n  extra: " + core::printable(name);
  }
  if (wrong.empty()) wrong = core::check_shared(own, state);
  const std::string who = "load_state_dict: the tensors do not fit the module " + module.name();
  TORCH_CHECK_VALUE(wrong.empty(), who, ":", wrong);
  core::naming(who, [&] { core::copy_state(own, state); });
}

ATTZOO_API void load_state_dict(torch::nn::Module& module, const std::filesystem::path& path) {
  const auto tensors = load_safetensors(path).tensors;
  core::naming(core::named("load_state_dict", path), [&] { load_state_dict(module, tensors); });
}

ATTZOO_API void save_state_dict(const torch::nn::Module& module,
                                const std::filesystem::path& path) {
  save_safetensors(path, state_dict(module));
}

}  // namespace attzoo
