#pragma once
/// \file
/// Checkpoints as they are published: one safetensors file, or several of them (shards) with an
/// index, mapped into memory instead of read.

#include <attzoo/io/json.hpp>
#include <attzoo/io/safetensors.hpp>

namespace attzoo {

/// Opens a checkpoint without reading its numbers. `path` is
/// - a safetensors file,
/// - an index, `model.safetensors.index.json`: {"weight_map": {"name of a tensor": "file in the
///   same folder"}}, or
/// - a folder with a `model.safetensors` or a `model.safetensors.index.json`.
///
/// The tensors are views of the files, which are mapped privately: a page is read when it is first
/// touched, and may be dropped and read again when memory is short, so that a file of 10 GB needs
/// no 10 GB beside the module that it is loaded into. To write into a tensor is allowed and does
/// not change the file. A file stays mapped while any of its tensors lives; until then nobody may
/// write into it or shorten it (to replace it by another of its name is fine). A tensor whose place
/// in the file does not suit its dtype is copied. Where the system has no mmap, files are read.
///
/// Metadata are those of the files; where two give one key, the first file by name has the word.
///
/// Throws c10::ValueError as load_safetensors does. For an index it is one error that lists all
/// that is wrong: files that are absent or broken, tensors that the index places in a file that
/// lacks them, tensors that it does not name, and tensors that are in two files.
/// Example: `load_state_dict(*model, open_checkpoint("Llama-3.2-1B").tensors, names::llama());`
ATTZOO_API SafeTensors open_checkpoint(const std::filesystem::path& path);

namespace core {

/// A JSON file beside the tensors, as an index. Throws c10::ValueError that begins with `file`
/// where the path is no regular file, cannot be read, has more than 100 MB, or is no JSON.
ATTZOO_API Json read_json(const std::filesystem::path& path, const std::string& file);

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_IO

#include <attzoo/io/file.hpp>

#include <set>
#include <utility>

namespace attzoo::core {

inline constexpr const char* kCheckpointFile = "model.safetensors";
inline constexpr const char* kCheckpointIndex = "model.safetensors.index.json";

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

#endif
