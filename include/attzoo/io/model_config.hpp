#pragma once
/// \file
/// The config.json of a published checkpoint, as Hugging Face's transformers writes it, in the
/// options of attzoo's modules: what the weights themselves do not say.

#include <attzoo/config.hpp>
#include <attzoo/grouped.hpp>
#include <attzoo/io/json.hpp>
#include <attzoo/io/name_maps.hpp>
#include <attzoo/module/stack.hpp>
#include <attzoo/module/transformer.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace attzoo {

/// Of GPT-OSS's mixture of experts, which attzoo has no module for.
struct ExpertsOptions {
  int64_t count = 0;      ///< experts of a layer
  int64_t per_token = 4;  ///< of which each token has the best
  double alpha = 1.702;   ///< hidden = (up + 1) gate sigmoid(alpha gate)
  double limit = 7.0;     ///< both are clamped to
};

/// A decoder: an embedding, blocks, a last norm and the output layer.
struct ModelConfig {
  std::string family = {};                           ///< config.json's model_type
  int64_t vocab = 0;                                 ///< tokens that the model knows
  int64_t positions = 0;                             ///< learned ones; 0: none
  int64_t context = 0;                               ///< tokens that it was trained for
  bool tied = false;                                 ///< the output layer is the embedding
  std::vector<int64_t> stop = {};                    ///< tokens that end a text
  GroupedSelfAttentionOptions attention = {};        ///< of all layers, but for the window
  std::vector<std::optional<int64_t>> windows = {};  ///< sliding_window of each layer
  TransformerBlockOptions block = {};                ///< of all layers
  std::optional<ExpertsOptions> experts = {};        ///< in the place of the blocks' MLPs
  NameMap names = {};                                ///< what load_state_dict needs

  /// The options of one layer's attention. Throws c10::IndexError if there is no such layer.
  ATTZOO_API GroupedSelfAttentionOptions attention_of(size_t layer) const;

  /// All blocks, with random weights. In a module that registers them as `layers`, and the rest as
  /// io/name_maps.hpp says (`embed`, `positions`, `norm`, `lm_head`), the weights load by `names`.
  /// Throws c10::ValueError for a model with experts, and what the blocks do.
  ATTZOO_API Stack layers() const;
};

/// Reads the config.json of a GPT-2, Llama, Mistral, Qwen2, Qwen3 or GPT-OSS checkpoint; `path` is
/// the checkpoint's folder or the file itself. Throws one c10::ValueError that names the file and
/// lists all keys that are missing, wrong, not supported, or not known to change nothing: weights
/// under options that were guessed would give wrong numbers. Example:
/// ```
/// const auto config = read_config(folder);
/// Model model(config);  // embed, positions, layers = config.layers(), norm, lm_head
/// load_state_dict(model, folder, config.names, {.convert_dtype = true});
/// ```
ATTZOO_API ModelConfig read_config(const std::filesystem::path& path);

namespace core {

/// The same from a text that is read already; errors begin with `file`.
ATTZOO_API ModelConfig parse_config(const Json& json, const std::string& file);

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_IO
#include <attzoo/io/model_config.ipp>
#endif
