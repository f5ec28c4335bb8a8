#pragma once
/// \file
/// The parameters and buffers of a module by name: saved, and loaded from tensors of the same names
/// or of another library's.

#include <attzoo/config.hpp>
#include <attzoo/io/name_map.hpp>

#include <torch/nn/module.h>
#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace attzoo {

/// Parameters and buffers of a module by their names, as in Python's state_dict.
ATTZOO_API std::map<std::string, torch::Tensor> state_dict(const torch::nn::Module& module);

/// Saves all parameters and buffers: `save_state_dict(*attn, "attn.safetensors")`.
ATTZOO_API void save_state_dict(const torch::nn::Module& module, const std::filesystem::path& path);

/// Copies tensors into the parameters and buffers of the same names, on whatever device they are.
/// Strict: every tensor of the module must be given, with its shape and dtype, and no other, but
/// for `alibi_bias`, which the Python library saves and nothing needs. A parameter that a module
/// has under two names is given by either. Throws one c10::ValueError that lists everything
/// missing, extra and unfit (also undefined, sparse and meta tensors, on either side), and then
/// changes nothing.
ATTZOO_API void load_state_dict(torch::nn::Module& module,
                                const std::map<std::string, torch::Tensor>& state);

/// The same from a safetensors file; `load_state_dict(*attn, "attn.safetensors")`.
ATTZOO_API void load_state_dict(torch::nn::Module& module, const std::filesystem::path& path);

/// How load_state_dict treats what is not exactly as the module has it.
struct LoadOptions {
  /// Floating tensors may have another floating dtype than the module's, as bfloat16 checkpoints
  /// have, and are rounded to it. A finite number that would become infinite is an error.
  bool convert_dtype = false;
};

/// Copies tensors that another library has named into a module's parameters and buffers. Strict:
/// every tensor of the module must come of one that is given, in its shape and dtype, and every one
/// given must go somewhere, unless the map ignores it. Throws one c10::ValueError that lists, by
/// both names, all that is missing, extra, given twice, of a wrong shape or dtype, or refused, and
/// then changes nothing. Example:
/// `load_state_dict(*attn, tensors_under(tensors, "model.layers.3.self_attn."), names::llama());`
ATTZOO_API void load_state_dict(torch::nn::Module& module,
                                const std::map<std::string, torch::Tensor>& tensors,
                                const NameMap& names, const LoadOptions& options = {});

/// The same from a checkpoint: open_checkpoint(path) says what `path` may be.
ATTZOO_API void load_state_dict(torch::nn::Module& module, const std::filesystem::path& path,
                                const NameMap& names, const LoadOptions& options = {});

/// The parameters and buffers of a module under another library's names and laid out as it has
/// them: what load_state_dict with this map takes back. Of several upstream names the first in the
/// map counts, for whole models that with a leading `model.`. Throws one c10::ValueError that lists
/// all tensors without an upstream name, and rules without a way back. Rearranged tensors are
/// copies.
ATTZOO_API std::map<std::string, torch::Tensor> state_dict(const torch::nn::Module& module,
                                                           const NameMap& names);

/// Saves them: `save_state_dict(*model, "model.safetensors", names::llama())`.
ATTZOO_API void save_state_dict(const torch::nn::Module& module, const std::filesystem::path& path,
                                const NameMap& names);

/// The tensors whose names begin with `prefix`, named by the rest. Throws c10::ValueError if there
/// is none.
ATTZOO_API std::map<std::string, torch::Tensor> tensors_under(
    const std::map<std::string, torch::Tensor>& tensors, const std::string& prefix);

namespace core {

/// Whether the tensors fit a module whose parameters and buffers have these sizes, before there is
/// one: throws c10::ValueError that begins with `who` and lists, as load_state_dict, what is
/// missing, extra or of another shape.
ATTZOO_API void check_sizes(const std::map<std::string, std::vector<int64_t>>& sizes,
                            const std::map<std::string, torch::Tensor>& tensors,
                            const NameMap& names, const std::string& who);

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_IO
#include <attzoo/io/state_dict.ipp>
#endif
