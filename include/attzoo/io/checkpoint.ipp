#pragma once

#include <attzoo/io/checkpoint.hpp>
#include <attzoo/io/file.hpp>
#include <attzoo/io/json.hpp>
#include <attzoo/io/mapped_file.hpp>
#include <attzoo/io/safetensors_header.hpp>

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <string_view>
#include <utility>

namespace attzoo::core {

inline constexpr const char* kCheckpointFile = "model.safetensors";
inline constexpr const char* kCheckpointIndex = "model.safetensors.index.json";

/// One tensor of a mapped file: a view, or a copy where its numbers are not aligned.
ATTZOO_API torch::Tensor mapped_tensor(const std::shared_ptr<MappedFile>& mapped, char* begin,
                                       const SafeTensorsEntry& e) {
  const auto bytes = static_cast<size_t>(e.end - e.begin);
  if (bytes > 0 && reinterpret_cast<uintptr_t>(begin) % c10::elementSize(e.dtype) == 0) {
    return torch::from_blob(
        begin, e.shape, [mapped](void*) {}, e.dtype);
  }
  auto t = torch::empty(e.shape, e.dtype);
  if (bytes > 0) std::memcpy(t.data_ptr(), begin, bytes);
  return t;
}

ATTZOO_API SafeTensors map_safetensors(const std::filesystem::path& path, const std::string& file) {
  const auto mapped = std::make_shared<MappedFile>(path, file);
  const char* next = mapped->data();
  const auto read = [&](char* to, uint64_t bytes) {
    std::memcpy(to, next, bytes);
    next += bytes;
    return true;
  };
  auto header = read_safetensors_header(read, mapped->size(), file);
  SafeTensors result{{}, std::move(header.metadata)};
  for (const auto& e : header.entries) {
    const auto where = tensor_in(file, e.name);
    auto t = naming(where, [&] {
      return mapped_tensor(mapped, mapped->data() + header.data_begin + e.begin, e);
    });
    check_bool_bytes(t, where);
    result.tensors[e.name] = std::move(t);
  }
  return result;
}

ATTZOO_API Json read_json(const std::filesystem::path& path, const std::string& file) {
  const MappedFile text(path, file);
  TORCH_CHECK_VALUE(text.size() <= kMaxSafeTensorsHeader, file, ": ", text.size(),
                    " bytes are over the limit of ", kMaxSafeTensorsHeader);
  return naming(file, [&] { return Json::parse({text.data(), text.size()}); });
}

/// The files that an index names, each with the tensors that it should hold.
ATTZOO_API std::map<std::string, std::set<std::string>> read_index(
    const std::filesystem::path& path, const std::string& file) {
  const auto index = read_json(path, file);
  return naming(file, [&] {
    std::map<std::string, std::set<std::string>> shards;
    for (const auto& [name, shard] : index["weight_map"].object()) {
      shards[naming(tensor_in(file, name), [&s = shard] { return s.string(); })].insert(name);
    }
    return shards;
  });
}

/// A line for an error: the names, of how many there are.
ATTZOO_API std::string list_names(const std::set<std::string>& names) {
  std::string line;
  for (const auto& name : names) line += (line.empty() ? "\"" : ", \"") + printable(name) + "\"";
  return line;
}

ATTZOO_API SafeTensors open_shards(const std::filesystem::path& path, const std::string& file) {
  const auto shards = read_index(path, file);
  SafeTensors result;
  std::string wrong;
  std::map<std::string, std::string> found;  // tensor -> file
  for (const auto& [shard, wanted] : shards) {
    const auto complain = [&, &s = shard](const std::string& what) {
      wrong += "\n  " + printable(s, 4096) + what;
    };
    const std::filesystem::path name(shard);
    if (name.empty() || name != name.filename() || shard == "." || shard == "..") {
      complain(": is no name of a file in the folder of the index");
      continue;
    }
    SafeTensors part;
    try {
      part = map_safetensors(path.parent_path() / name, "");
    } catch (const c10::Error& error) {
      complain(error.what_without_backtrace());
      continue;
    }
    auto lacks = wanted;
    std::set<std::string> unnamed;
    for (auto& [tensor, numbers] : part.tensors) {
      const auto [first, fresh] = found.try_emplace(tensor, shard);
      if (!fresh) {
        complain(": holds \"" + printable(tensor) + "\", which is in " + first->second + " too");
      } else if (lacks.count(tensor) == 0) {
        unnamed.insert(tensor);
      }
      lacks.erase(tensor);
      result.tensors[tensor] = std::move(numbers);
    }
    if (!lacks.empty()) complain(": lacks " + list_names(lacks) + ", which the index places there");
    if (!unnamed.empty()) {
      complain(": holds " + list_names(unnamed) + ", which the index does not place there");
    }
    result.metadata.merge(part.metadata);
  }
  TORCH_CHECK_VALUE(wrong.empty(), file, ": the index and its files do not agree:", wrong);
  return result;
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API SafeTensors open_checkpoint(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  const std::string file = core::named("open_checkpoint", path);
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) {
    return path.extension() == ".json" ? core::open_shards(path, file)
                                       : core::map_safetensors(path, file);
  }
  const auto whole = path / core::kCheckpointFile, index = path / core::kCheckpointIndex;
  const bool has_whole = fs::exists(whole, ignored), has_index = fs::exists(index, ignored);
  TORCH_CHECK_VALUE(has_whole != has_index, file, ": the folder has ",
                    has_whole ? "both " : "neither ", core::kCheckpointFile,
                    has_whole ? " and " : " nor ", core::kCheckpointIndex,
                    has_whole ? "; give the path of the one that is meant" : "");
  return has_whole ? core::map_safetensors(whole, core::named("open_checkpoint", whole))
                   : core::open_shards(index, core::named("open_checkpoint", index));
}

}  // namespace attzoo
