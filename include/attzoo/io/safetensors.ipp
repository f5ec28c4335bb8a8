#pragma once

#include <attzoo/core/checks.hpp>
#include <attzoo/io/copy_state.hpp>
#include <attzoo/io/file.hpp>
#include <attzoo/io/json.hpp>
#include <attzoo/io/safetensors.hpp>
#include <attzoo/io/safetensors_header.hpp>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <system_error>
#include <utility>
#include <vector>

namespace attzoo::core {

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
  const std::string file = core::named("load_safetensors", path);
  core::check_regular(path, true, file);
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  TORCH_CHECK_VALUE(in.is_open(), file, ": cannot be opened", core::last_error());
  std::error_code error;
  const auto file_size = static_cast<uint64_t>(std::filesystem::file_size(path, error));
  TORCH_CHECK_VALUE(!error, file, ": cannot be read: ", error.message());
  auto header = core::read_safetensors_header(
      [&](char* to, uint64_t bytes) {
        return in.read(to, static_cast<std::streamsize>(bytes)).good();
      },
      file_size, file);
  SafeTensors result;
  result.metadata = std::move(header.metadata);
  for (const auto& e : header.entries) {
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
    } else if (const auto why = core::cannot_copy(tensor, it->second, it->second); !why.empty()) {
      wrong += "\n  " + name + ": " + why;
    }
  }
  for (const auto& [name, tensor] : state) {
    const bool ignored = name == "alibi_bias" || name.ends_with(".alibi_bias");
    if (!ignored && own.count(name) == 0) wrong += "\n  extra: " + core::printable(name);
  }
  const bool strangers = !own.empty() && !state.empty() &&
                         std::none_of(state.begin(), state.end(), [&](const auto& entry) {
                           return own.count(entry.first) > 0;
                         });
  if (strangers) wrong += "\n  " + core::no_name_fits(own, state);
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
