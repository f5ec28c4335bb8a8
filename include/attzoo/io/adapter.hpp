#pragma once
/// \file
/// Adapters (LoRA) as Hugging Face's PEFT saves them: a folder with `adapter_config.json` and
/// `adapter_model.safetensors`, whose tensors are named `base_model.model.`, then the upstream
/// module, then `.lora_A.weight` [rank, in] or `.lora_B.weight` [out, rank].

#include <attzoo/config.hpp>
#include <attzoo/io/name_map.hpp>
#include <attzoo/io/state_dict.hpp>
#include <attzoo/module/lora.hpp>

#include <filesystem>
#include <string>
#include <vector>

namespace attzoo {

/// Saves all LoRA of a module under the upstream names that the weights beside it have, so that
/// PEFT's `PeftModel.from_pretrained(base, folder)` takes it: where a map permutes a weight's rows,
/// those of B are permuted, too. (A transposed weight, as GPT-2's, changes nothing: the matrices
/// are in PEFT as they are here, and `fan_in_fan_out` says that their product is turned.) Without a
/// map the names are attzoo's own. Makes the folder if there is none; `task_type` and
/// `base_model_name_or_path` stay null in the config.
///
/// Throws one c10::ValueError, and writes nothing, if there is no LoRA, if layers differ in rank,
/// alpha or dropout, and for each layer without an upstream name or that is a part of a larger one
/// upstream, as w_q is of GPT-2's c_attn: several A have no place there. Example:
/// `save_lora(model, "adapter", names::llama());`
ATTZOO_API void save_lora(ConstModuleRef module, const std::filesystem::path& folder,
                          const NameMap& names);
ATTZOO_API void save_lora(ConstModuleRef module, const std::filesystem::path& folder);

/// Gives a module the LoRA that save_lora() or PEFT has saved, with its alpha and dropout; all
/// other parameters stop learning, as in add_lora(). Of an upstream layer that is several here each
/// gets the same A and its rows of B. If the module has LoRA, of the same ranks in the same layers,
/// it is written over in place. Gives the names of the layers.
///
/// Strict: throws one c10::ValueError that lists all that is missing, extra, of a wrong shape or
/// dtype (another floating one may be given with `options.convert_dtype`), and all of the config
/// that is something else than LoRA as add_lora() has it (DoRA, biases that learn, ranks of single
/// layers, an initialisation that changed the base's weights), and then changes nothing. rsLoRA is
/// taken: its factor alpha / sqrt(rank) becomes an alpha. Example:
/// `load_lora(model, "adapter", names::llama());`
ATTZOO_API std::vector<std::string> load_lora(ModuleRef module, const std::filesystem::path& folder,
                                              const NameMap& names,
                                              const LoadOptions& options = {});
ATTZOO_API std::vector<std::string> load_lora(ModuleRef module, const std::filesystem::path& folder,
                                              const LoadOptions& options = {});

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_IO
#include <attzoo/io/adapter.ipp>
#endif
