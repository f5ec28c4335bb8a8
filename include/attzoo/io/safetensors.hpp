#pragma once
/// \file
/// Named tensors in safetensors files (https://github.com/huggingface/safetensors), so that weights
/// trained in Python load by name, strictly.
///
/// A file is a header length (8 bytes, little endian), a JSON header
/// {"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__": {string: string}}, and the
/// data.

#include <attzoo/core/storage.hpp>
#include <attzoo/io/json.hpp>

#include <ATen/MemoryOverlap.h>
#include <torch/nn/module.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <new>
#include <string>
#include <system_error>
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

/// How errors name a file: whole, as long as paths can be.
inline std::string named(const char* who, const std::filesystem::path& path) {
  return std::string(who) + ": " + printable(path.string(), 4096);
}

/// How errors name a tensor of a file.
inline std::string tensor_in(const std::string& file, const std::string& name) {
  return file + ": tensor \"" + printable(name) + "\"";
}

/// What the last failed call of the operating system has to say.
inline std::string last_error() {
  return errno != 0 ? ": " + std::generic_category().message(errno) : std::string();
}

/// Only regular files are read or replaced: to open a pipe waits, and a device never ends.
inline void check_regular(const std::filesystem::path& path, bool must_exist,
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

/// A truth value is one byte, 0 or 1; C++ may read any other as it likes.
inline void check_bool_bytes(const torch::Tensor& t, const std::string& where) {
  if (t.scalar_type() != torch::kBool || t.numel() == 0) return;
  const int64_t most = t.view(torch::kUInt8).max().item<int64_t>();
  TORCH_CHECK_VALUE(most <= 1, where, ": BOOL bytes must be 0 or 1, got ", most);
}

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
    TORCH_CHECK_VALUE(known != std::end(kSafeTensorsDtypes), where, ": unknown dtype ",
                      printable(dtype));
    e.dtype = known->second;
    const auto& shape = json["shape"].array();
    TORCH_CHECK_VALUE(shape.size() <= kMaxSafeTensorsRank, where, ": the shape has ", shape.size(),
                      " dimensions, expected at most ", kMaxSafeTensorsRank);
    // Strides must fit too, so a size of 0 does not excuse the others.
    auto span = static_cast<int64_t>(c10::elementSize(e.dtype));
    bool empty = false;
    for (const auto& d : shape) {
      e.shape.push_back(d.integer());
      TORCH_CHECK_VALUE(e.shape.back() >= 0, where, ": a negative size in the shape ", e.shape);
      empty = empty || e.shape.back() == 0;
      TORCH_CHECK_VALUE(!__builtin_mul_overflow(span, std::max<int64_t>(e.shape.back(), 1), &span),
                        where, ": the shape ", e.shape, " overflows");
    }
    const int64_t bytes = empty ? 0 : span;
    const auto& offsets = json["data_offsets"].array();
    TORCH_CHECK_VALUE(offsets.size() == 2, where, ": data_offsets must be [begin, end], got ",
                      offsets.size(), " numbers");
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
    const auto where = tensor_in(file, name);
    entries.push_back(naming(where, [&, &n = name, &j = json] {
      return SafeTensorsEntry::parse(n, j, data_size, where);
    }));
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

/// A copy of t's numbers as they are meant: contiguous, on the CPU, and without the bits by which
/// LibTorch puts a negation or a conjugation off.
inline torch::Tensor saved_numbers(const torch::Tensor& t) {
  const auto own = t._is_zerotensor() ? torch::zeros(t.sizes(), t.options()) : t.detach();
  return own.resolve_conj().resolve_neg().to(torch::kCPU).contiguous();
}

/// A file that takes the place of `path` when it is complete, and leaves nothing behind if not.
class ReplacingFile {
 public:
  ReplacingFile(const std::filesystem::path& path, const std::string& file)
      : path_(path), temporary_(path), file_(file) {
    temporary_ += ".partial";
    check_regular(path, false, file);
    check_regular(temporary_, false, file);
    errno = 0;
    out_.open(temporary_, std::ios::binary | std::ios::trunc);
    check(out_.is_open());
  }
  ~ReplacingFile() {
    if (!out_.is_open() || done_) return;
    out_.close();
    remove();
  }
  ReplacingFile(const ReplacingFile&) = delete;
  ReplacingFile& operator=(const ReplacingFile&) = delete;

  void write(const void* data, uint64_t bytes) {
    check(out_.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes)).good());
  }
  void finish() {
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

 private:
  void check(bool ok) const { TORCH_CHECK_VALUE(ok, file_, ": cannot be written", last_error()); }
  void remove() const {
    std::error_code ignored;
    std::filesystem::remove(temporary_, ignored);
  }

  std::filesystem::path path_, temporary_;
  std::string file_;
  std::ofstream out_;
  bool done_ = false;
};

}  // namespace core

/// Reads a safetensors file whole. Throws c10::Error that names the file, and the tensor, where it
/// is no regular file, cannot be read, is truncated or oversized, where the header is malformed or
/// not UTF-8, and where a BOOL is neither 0 nor 1.
inline SafeTensors load_safetensors(const std::filesystem::path& path) {
  const std::string file = core::named("load_safetensors", path);
  core::check_regular(path, true, file);
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  TORCH_CHECK_VALUE(in.is_open(), file, ": cannot be opened", core::last_error());
  std::error_code error;
  const auto file_size = static_cast<uint64_t>(std::filesystem::file_size(path, error));
  TORCH_CHECK_VALUE(!error, file, ": cannot be read: ", error.message());
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
  TORCH_CHECK_VALUE(in.read(text.data(), static_cast<std::streamsize>(header_size)), file,
                    ": the header cannot be read");
  SafeTensors result;
  const auto data_size = static_cast<int64_t>(file_size - sizeof header_size - header_size);
  const auto header = core::naming(file + ": header", [&] {
    auto json = core::Json::parse(text);
    if (json.contains("__metadata__")) {
      for (const auto& [key, value] : json["__metadata__"].object()) {
        result.metadata[key] = value.string();
      }
    }
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

/// Writes tensors of any strides and any device. The file appears whole or not at all.
/// Throws c10::Error for a tensor that is undefined, sparse, nested or without numbers (meta), for
/// a dtype that the format lacks, a name or metadata that are not UTF-8, and where the file cannot
/// be written; then whatever was there before is left as it was.
inline void save_safetensors(const std::filesystem::path& path,
                             const std::map<std::string, torch::Tensor>& tensors,
                             const std::map<std::string, std::string>& metadata = {}) {
  const std::string file = core::named("save_safetensors", path);
  const auto check_utf8 = [&](const char* what, const std::string& text) {
    TORCH_CHECK_VALUE(core::find_not_utf8(text) == std::string::npos, file, ": the ", what, " \"",
                      core::printable(text), "\" is not UTF-8");
  };
  core::Json::Object header;
  if (!metadata.empty()) {
    core::Json::Object strings;
    for (const auto& [key, value] : metadata) {
      check_utf8("metadata key", key);
      check_utf8(("metadata of " + core::printable(key)).c_str(), value);
      strings[key] = value;
    }
    header["__metadata__"] = strings;
  }
  const auto dtype_name = [](torch::ScalarType type) {
    const auto* dtype =
        std::find_if(std::begin(core::kSafeTensorsDtypes), std::end(core::kSafeTensorsDtypes),
                     [&](const auto& d) { return d.second == type; });
    return dtype == std::end(core::kSafeTensorsDtypes) ? nullptr : dtype->first;
  };
  for (const auto& [name, tensor] : tensors) {
    check_utf8("name of tensor", name);
    const auto where = core::tensor_in(file, name);
    TORCH_CHECK_VALUE(name != "__metadata__", where, " has a reserved name");
    const auto problem = core::storage_problem(tensor);
    TORCH_CHECK_VALUE(problem.empty(), where, " must be a dense tensor, got ", problem);
    TORCH_CHECK_TYPE(dtype_name(tensor.scalar_type()), where, " has the dtype ",
                     tensor.scalar_type(), ", which the format lacks");
    TORCH_CHECK_VALUE(static_cast<size_t>(tensor.dim()) <= core::kMaxSafeTensorsRank, where,
                      " has ", tensor.dim(), " dimensions, expected at most ",
                      core::kMaxSafeTensorsRank);
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
    header[name] = core::Json::Object{{"dtype", dtype_name(tensor.scalar_type())},
                                      {"shape", shape},
                                      {"data_offsets", core::Json::Array{at, at + bytes}}};
    at += bytes;
  }
  std::string text = core::Json(std::move(header)).dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data are aligned
  const auto header_size = static_cast<uint64_t>(text.size());
  TORCH_CHECK_VALUE(header_size <= core::kMaxSafeTensorsHeader, file, ": a header of ", header_size,
                    " bytes is over the limit of ", core::kMaxSafeTensorsHeader);

  core::ReplacingFile out(path, file);
  out.write(&header_size, sizeof header_size);
  out.write(text.data(), text.size());
  for (const auto& t : data) out.write(t.data_ptr(), t.nbytes());
  out.finish();
}

/// Parameters and buffers of a module by their names, as in Python's state_dict.
inline std::map<std::string, torch::Tensor> state_dict(const torch::nn::Module& module) {
  std::map<std::string, torch::Tensor> state;
  for (const auto& p : module.named_parameters()) state[p.key()] = p.value();
  for (const auto& b : module.named_buffers()) state[b.key()] = b.value();
  return state;
}

namespace core {

/// What keeps the numbers of `given` from being copied into `own`; empty if nothing does.
inline std::string cannot_copy(const torch::Tensor& own, const torch::Tensor& given) {
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
inline std::string check_shared(const std::map<std::string, torch::Tensor>& own,
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
inline void copy_state(const std::map<std::string, torch::Tensor>& own,
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

}  // namespace core

/// Copies tensors into the parameters and buffers of the same names, on whatever device they are.
/// Strict: every tensor of the module must be given, with its shape and dtype, and no other, but
/// for `alibi_bias`, which the Python library saves and nothing needs. Throws one c10::ValueError
/// that lists everything missing, extra and unfit (also undefined, sparse and meta tensors, on
/// either side), and then changes nothing.
inline void load_state_dict(torch::nn::Module& module,
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

/// The same from a safetensors file; `load_state_dict(*attn, "attn.safetensors")`.
inline void load_state_dict(torch::nn::Module& module, const std::filesystem::path& path) {
  const auto tensors = load_safetensors(path).tensors;
  core::naming(core::named("load_state_dict", path), [&] { load_state_dict(module, tensors); });
}

/// Saves all parameters and buffers: `save_state_dict(*attn, "attn.safetensors")`.
inline void save_state_dict(const torch::nn::Module& module, const std::filesystem::path& path) {
  save_safetensors(path, state_dict(module));
}

}  // namespace attzoo
