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

#ifndef ATTZOO_COMPILED
#include <attzoo/io/checkpoint.ipp>
#endif
