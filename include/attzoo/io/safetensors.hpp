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

#ifndef ATTZOO_COMPILED
#include <attzoo/io/safetensors.ipp>
#endif
