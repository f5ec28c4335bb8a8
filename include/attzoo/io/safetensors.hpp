#pragma once
/// \file
/// Named tensors in safetensors files (https://github.com/huggingface/safetensors), so that weights
/// trained in Python load by name, strictly.
///
/// A file is a header length (8 bytes, little endian), a JSON header
/// {"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__": {string: string}}, and the
/// data.

#include <attzoo/config.hpp>

#include <torch/nn/module.h>
#include <torch/types.h>

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

/// Parameters and buffers of a module by their names, as in Python's state_dict.
ATTZOO_API std::map<std::string, torch::Tensor> state_dict(const torch::nn::Module& module);

/// Copies tensors into the parameters and buffers of the same names, on whatever device they are.
/// Strict: every tensor of the module must be given, with its shape and dtype, and no other, but
/// for `alibi_bias`, which the Python library saves and nothing needs. Throws one c10::ValueError
/// that lists everything missing, extra and unfit (also undefined, sparse and meta tensors, on
/// either side), and then changes nothing.
ATTZOO_API void load_state_dict(torch::nn::Module& module,
                                const std::map<std::string, torch::Tensor>& state);

/// The same from a safetensors file; `load_state_dict(*attn, "attn.safetensors")`.
ATTZOO_API void load_state_dict(torch::nn::Module& module, const std::filesystem::path& path);

/// Saves all parameters and buffers: `save_state_dict(*attn, "attn.safetensors")`.
ATTZOO_API void save_state_dict(const torch::nn::Module& module, const std::filesystem::path& path);

}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/io/safetensors.ipp>
#endif
