#pragma once

#include <attzoo/core/layers/adaptable_linear.hpp>
#include <attzoo/io/adapter.hpp>
#include <attzoo/io/checkpoint.hpp>
#include <attzoo/io/file.hpp>
#include <attzoo/io/json.hpp>
#include <attzoo/io/safetensors.hpp>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

namespace attzoo::core {

inline constexpr const char* kAdapterConfig = "adapter_config.json";
inline constexpr const char* kAdapterModel = "adapter_model.safetensors";
inline constexpr std::string_view kPeftPrefix = "base_model.model.";
inline constexpr std::string_view kWeight = ".weight";

// ---- what a map makes of a weight ---------------------------------------------------------------

/// How the rows of one of our weights lie in an upstream one [out, in].
struct WeightRows {
  torch::Tensor rows;       ///< ours, by their places upstream
  bool transposed = false;  ///< upstream has it as [in, out]
};

/// Finds it by numbers that say where they are; nothing where columns move, or numbers change.
ATTZOO_API std::optional<WeightRows> rows_of(const TensorChange& change, int64_t out, int64_t in) {
  const auto row = torch::arange(out, torch::kInt32), column = torch::arange(in, torch::kInt32);
  if (!change) return WeightRows{row};
  for (const bool transposed : {false, true}) {
    const auto changed = [&](const torch::Tensor& t) {
      const auto whole = t.expand({out, in});
      return change(transposed ? whole.t() : whole);
    };
    try {
      const auto rows = changed(row.unsqueeze(1)), columns = changed(column);
      if (rows.dim() != 2 || rows.size(1) != in || columns.sizes() != rows.sizes()) continue;
      const auto first = rows.select(1, 0).contiguous();
      if (torch::equal(rows, first.unsqueeze(1).expand_as(rows)) &&
          torch::equal(columns, column.expand_as(columns))) {
        return WeightRows{first, transposed};
      }
    } catch (const c10::Error&) {  // a shape that the change cannot take
    }
  }
  return std::nullopt;
}

/// The upstream module of one of our layers; else `why` there is none.
struct UpstreamLayer {
  std::string module;
  WeightRows weight;
};

ATTZOO_API std::optional<UpstreamLayer> upstream_layer(const NamedLayer& named,
                                                       const std::set<std::string>& own,
                                                       const NameMap& names, std::string& why) {
  why.clear();
  const auto first = [&](const std::string& reason) {  // the first rule would have been the one
    if (why.empty()) why = reason;
  };
  for (const auto& rule : names.rules()) {
    for (const auto& target : rule.to) {
      const auto pieces = match_name(target.name, named.name + std::string(kWeight));
      if (!pieces || !std::all_of(rule.to.begin(), rule.to.end(), [&](const auto& part) {
            return own.count(fill_name(part.name, *pieces)) > 0;
          })) {
        continue;  // another rule may need fewer
      }
      const auto from = fill_name(rule.from, *pieces);
      if (rule.to.size() > 1) {
        first("is a part of " + printable(from) + ", where several LoRA have no place");
        continue;
      }
      const auto& w = named.layer->weight;
      const auto weight = rows_of(target.change, w.size(0), w.size(1));
      if (!weight || !from.ends_with(kWeight)) {
        first(printable(from) + (weight ? " is no name of a weight" : " is not its rows"));
        continue;
      }
      return UpstreamLayer{from.substr(0, from.size() - kWeight.size()), *weight};
    }
  }
  first("has no upstream name");
  return std::nullopt;
}

// ---- adapter_config.json ------------------------------------------------------------------------

/// What a config says of each layer.
struct LoraConfig {
  int64_t rank = 0;
  double alpha = 0, dropout = 0;
};

/// Reads it; `wrong` gets a line for each complaint.
ATTZOO_API LoraConfig parse_lora_config(const Json& json, std::string& wrong) {
  const auto complain = [&](const std::string& what) { wrong += "\n  " + what; };
  const auto number = [&](const char* key) {
    if (json.contains(key) && json[key].is_number()) return json[key].number();
    complain(c10::str(key, ": expected a number"));
    return std::nan("");
  };
  LoraConfig config;
  config.alpha = number("lora_alpha");
  config.dropout = json.contains("lora_dropout") ? number("lora_dropout") : 0;
  if (json.contains("r") && json["r"].is<int64_t>()) config.rank = json["r"].integer();
  if (config.rank <= 0) complain("r: expected an integer > 0");
  if (config.alpha <= 0 || !std::isfinite(config.alpha)) complain("lora_alpha: expected > 0");
  if (config.dropout < 0 || config.dropout > 1) complain("lora_dropout: expected in [0, 1]");
  if (!json.contains("peft_type") || json["peft_type"].dump() != "\"LORA\"") {
    complain("peft_type: expected \"LORA\"");
  }
  // Keys that say nothing about the adapter's numbers. The layers are those that the file has.
  static constexpr std::string_view kOthers =
      ",auto_mapping,base_model_name_or_path,corda_config,eva_config,exclude_modules,"
      "fan_in_fan_out,inference_mode,layers_pattern,layers_to_transform,loftq_config,lora_alpha,"
      "lora_dropout,megatron_config,megatron_core,peft_type,peft_version,qalora_group_size,r,"
      "revision,runtime_config,target_modules,task_type,use_rslora,";
  // Values with which all other keys change nothing.
  static const std::set<std::string> kNothing = {"null", "false", "{}", "[]"};
  static const std::set<std::string> kPlainInits = {"true", "\"gaussian\"", "\"eva\"",
                                                    "\"orthogonal\""};
  for (const auto& [key, value] : json.object()) {
    const auto text = value.dump();
    const bool harmless = kOthers.find("," + key + ",") != std::string_view::npos ||
                          kNothing.count(text) > 0 || (key == "bias" && text == "\"none\"") ||
                          (key == "init_lora_weights" && kPlainInits.count(text) > 0);
    if (!harmless) complain(printable(key) + ": " + printable(text) + " is not supported");
  }
  if (json.contains("use_rslora") && json["use_rslora"].dump() == "true") {
    config.alpha *= std::sqrt(static_cast<double>(config.rank));
  }
  return config;
}

/// What PEFT reads.
ATTZOO_API std::string dump_lora_config(const LoraConfig& config, Json::Array modules,
                                        bool transposed) {
  const auto whole = static_cast<int64_t>(std::min(config.alpha, 1e15));
  const bool is_whole = static_cast<double>(whole) == config.alpha;
  return Json(Json::Object{{"auto_mapping", nullptr},
                           {"base_model_name_or_path", nullptr},
                           {"bias", "none"},
                           {"fan_in_fan_out", transposed},
                           {"inference_mode", true},
                           {"init_lora_weights", true},
                           {"lora_alpha", is_whole ? Json(whole) : Json(config.alpha)},
                           {"lora_dropout", config.dropout},
                           {"modules_to_save", nullptr},
                           {"peft_type", "LORA"},
                           {"r", config.rank},
                           {"target_modules", std::move(modules)},
                           {"task_type", nullptr},
                           {"use_dora", false},
                           {"use_rslora", false}})
      .dump(2);
}

// ---- loading ------------------------------------------------------------------------------------

/// The matrices of an upstream module.
struct UpstreamLora {
  torch::Tensor A, B;
};

/// Adapters on their way into a module. Every complaint is a line of `wrong`.
class LoraMapping {
 public:
  /// One of our layers and what it gets.
  struct Given {
    NamedLayer named;
    torch::Tensor A, B;
  };

  LoraMapping(const torch::nn::Module& module, const NameMap& names, int64_t rank,
              const LoadOptions& options)
      : all_(adaptable_layers(module)), names_(names), rank_(rank), options_(options) {
    for (const auto& named : all_) layers_.emplace(named.name, named);
    for (const auto& [name, tensor] : state_dict(module)) own_.insert(name);
  }

  std::vector<Given> map(const std::map<std::string, torch::Tensor>& tensors, std::string& wrong) {
    std::map<std::string, UpstreamLora> upstream;
    for (const auto& [name, tensor] : tensors) sort(name, tensor, upstream);
    for (const auto& [name, lora] : upstream) place(name, lora);
    if (upstream.empty()) complain("missing: there is no adapter");
    const bool any = std::any_of(layers_.begin(), layers_.end(),
                                 [](const auto& l) { return l.second.layer->has_lora(); });
    for (const auto& [name, named] : layers_) {
      const bool given = places_.count(named.layer.get()) > 0;
      if (any && named.layer->has_lora() && !given) complain("missing: the LoRA of " + name);
      if (any && !named.layer->has_lora() && given) {
        complain(name + ": has no LoRA, but other layers have");
      }
    }
    wrong += wrong_;
    std::vector<Given> ordered;  // as the module has them
    for (const auto& named : all_) {
      if (const auto place = places_.extract(named.layer.get())) {
        ordered.push_back(given_[place.mapped()]);
      }
    }
    return ordered;
  }

 private:
  void complain(const std::string& what) { wrong_ += "\n  " + what; }

  void sort(const std::string& name, const torch::Tensor& tensor,
            std::map<std::string, UpstreamLora>& upstream) {
    for (const auto& [end, which] : {std::pair{".lora_A.weight", &UpstreamLora::A},
                                     std::pair{".lora_B.weight", &UpstreamLora::B}}) {
      if (!name.starts_with(kPeftPrefix) || !name.ends_with(end)) continue;
      const auto begin = kPeftPrefix.size(), length = std::string_view(end).size();
      if (name.size() <= begin + length) continue;
      upstream[name.substr(begin, name.size() - length - begin)].*which = tensor;
      return;
    }
    complain("extra: " + printable(name));
  }

  void place(const std::string& upstream, const UpstreamLora& lora) {
    if (!lora.A.defined() || !lora.B.defined()) {
      return complain("missing: " + printable(upstream) +
                      (lora.A.defined() ? ".lora_B.weight" : ".lora_A.weight"));
    }
    if (lora.A.dim() != 2 || lora.B.dim() != 2 || lora.A.size(0) != rank_ ||
        lora.B.size(1) != rank_) {
      return complain(c10::str(printable(upstream), ": expected A [", rank_, ", in] and B [out, ",
                               rank_, "], got ", lora.A.sizes(), " and ", lora.B.sizes()));
    }
    for (const auto& rule : names_.rules()) {
      const auto pieces = match_name(rule.from, upstream + std::string(kWeight));
      if (!pieces) continue;
      if (!rule.refused.empty()) return complain(printable(upstream) + ": " + rule.refused);
      const bool has_all = std::all_of(rule.to.begin(), rule.to.end(), [&](const auto& target) {
        return own_.count(fill_name(target.name, *pieces)) > 0;
      });
      if (!has_all || rule.to.empty()) continue;
      for (const auto& target : rule.to)
        give(target, fill_name(target.name, *pieces), upstream, lora);
      return;
    }
    complain("extra: " + printable(upstream) + " (the module has no such layer)");
  }

  void give(const NameTarget& target, const std::string& name, const std::string& upstream,
            const UpstreamLora& lora) {
    const auto layer = name.ends_with(kWeight)
                           ? layers_.find(name.substr(0, name.size() - kWeight.size()))
                           : layers_.end();
    const auto from = name + " (from " + printable(upstream) + "): ";
    if (layer == layers_.end()) return complain(from + "is no layer that can have LoRA");
    const auto& own = *layer->second.layer;
    if (lora.A.size(1) != own.weight.size(1)) {
      return complain(
          c10::str(from, "A ", lora.A.sizes(), " does not fit the weight ", own.weight.sizes()));
    }
    const auto rows = rows_of(target.change, lora.B.size(0), lora.A.size(1));
    if (!rows) return complain(from + "is not rows of the upstream weight");
    const auto B = lora.B.index_select(0, rows->rows.to(lora.B.device()));
    const auto like = own.weight.options().requires_grad(false);
    const auto check = [&](const char* which, const torch::Tensor& t,
                           const torch::Tensor& expected) {
      const auto why = cannot_copy(expected, t, t, options_.convert_dtype);
      if (!why.empty()) complain(from + which + " " + why);
      return why.empty();
    };
    const auto &w = own.weight, &A = lora.A;
    const auto expected_A = own.has_lora() ? own.lora_A() : torch::empty({rank_, w.size(1)}, like),
               expected_B = own.has_lora() ? own.lora_B() : torch::empty({w.size(0), rank_}, like);
    const bool A_fits = check("A", A, expected_A), B_fits = check("B", B, expected_B);
    const auto [place, fresh] = places_.emplace(&own, given_.size());
    if (fresh) {
      given_.push_back({layer->second, A.to(like).clone(), B.to(like)});
    } else if (A_fits && B_fits &&
               !(torch::equal(given_[place->second].A, A.to(like)) &&
                 torch::equal(given_[place->second].B, B.to(like)))) {
      complain(from + "is the module's " + given_[place->second].named.name +
               ", but other numbers are given");
    }
  }

  std::vector<NamedLayer> all_;
  std::map<std::string, NamedLayer> layers_;  // the same by name
  std::set<std::string> own_;                 // names of all our tensors
  const NameMap& names_;
  int64_t rank_;
  LoadOptions options_;
  std::vector<Given> given_;
  std::map<const void*, size_t> places_;  // of a layer in given_
  std::string wrong_;
};

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API void save_lora(ConstModuleRef module, const std::filesystem::path& folder,
                          const NameMap& names) {
  const auto layers = core::adapted_layers(*module);
  TORCH_CHECK_VALUE(!layers.empty(), "save_lora: the module ", module->name(), " has no LoRA");
  std::set<std::string> own;
  for (const auto& [name, tensor] : state_dict(*module)) own.insert(name);
  std::map<std::string, torch::Tensor> tensors;
  core::Json::Array modules;
  std::string wrong;
  bool transposed = false;
  const auto& first = *layers[0].layer;
  const core::LoraConfig config{first.rank(), first.lora().alpha, first.lora().dropout};
  for (const auto& named : layers) {
    const auto& layer = *named.layer;
    if (layer.rank() != config.rank || layer.lora().alpha != config.alpha ||
        layer.lora().dropout != config.dropout) {
      wrong += "\n  " + named.name + ": rank, alpha or dropout are not those of " + layers[0].name;
    }
    std::string why;
    const auto upstream = core::upstream_layer(named, own, names, why);
    if (!upstream) {
      wrong += "\n  " + named.name + ": " + why;
      continue;
    }
    transposed = transposed || upstream->weight.transposed;
    const auto B = torch::empty_like(layer.lora_B()).detach();
    B.index_copy_(0, upstream->weight.rows.to(B.device(), torch::kInt64), layer.lora_B().detach());
    const auto begin = std::string(core::kPeftPrefix) + upstream->module;
    tensors[begin + ".lora_A.weight"] = layer.lora_A().detach();
    if (!tensors.emplace(begin + ".lora_B.weight", B).second) {
      wrong += "\n  " + named.name + ": " + upstream->module + " is another layer's name";
    }
    modules.emplace_back(upstream->module);
  }
  TORCH_CHECK_VALUE(wrong.empty(), "save_lora: PEFT has no form for the LoRA of the module ",
                    module->name(), ":", wrong);
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  TORCH_CHECK_VALUE(!failed, core::named("save_lora", folder), ": ", failed.message());
  save_safetensors(folder / core::kAdapterModel, tensors, {{"format", "pt"}});
  const auto text = core::dump_lora_config(config, std::move(modules), transposed) + "\n";
  const auto path = folder / core::kAdapterConfig;
  core::ReplacingFile file(path, core::named("save_lora", path));
  file.write(text.data(), text.size());
  file.finish();
}

ATTZOO_API void save_lora(ConstModuleRef module, const std::filesystem::path& folder) {
  save_lora(module, folder, NameMap().rename("*", "*"));
}

ATTZOO_API std::vector<std::string> load_lora(ModuleRef module, const std::filesystem::path& folder,
                                              const NameMap& names, const LoadOptions& options) {
  const torch::NoGradGuard no_grad;
  const auto who = core::named("load_lora", folder);
  const auto path = folder / core::kAdapterConfig;
  const auto file = core::named("load_lora", path);
  std::string wrong;
  const auto config = core::naming(
      file, [&] { return core::parse_lora_config(core::read_json(path, file), wrong); });
  TORCH_CHECK_VALUE(wrong.empty(), file, ": the config is not that of a LoRA known here:", wrong);
  const auto tensors = open_checkpoint(folder / core::kAdapterModel).tensors;
  const auto given = core::LoraMapping(*module, names, config.rank, options).map(tensors, wrong);
  TORCH_CHECK_VALUE(wrong.empty(), who, ": the adapter does not fit the module ", module->name(),
                    ":", wrong);
  std::vector<std::string> loaded;
  bool added = false;
  for (const auto& [named, A, B] : given) {
    auto& layer = *named.layer;
    loaded.push_back(named.name);
    if (layer.has_lora()) {
      layer.lora_A().copy_(A);
      layer.lora_B().copy_(B);
      layer.lora().alpha = config.alpha;
      layer.lora().dropout = config.dropout;
    } else {
      layer.add_lora(A, B, config.alpha, config.dropout);
      added = true;
    }
  }
  if (added) core::freeze_all_but_lora(*module);
  return loaded;
}

ATTZOO_API std::vector<std::string> load_lora(ModuleRef module, const std::filesystem::path& folder,
                                              const LoadOptions& options) {
  return load_lora(module, folder, NameMap().rename("*", "*"), options);
}

}  // namespace attzoo
