#pragma once
/// \file
/// Which parameters of a module learn, by patterns of their names.

#include <attzoo/config.hpp>
#include <attzoo/module/module_ref.hpp>

#include <string>
#include <vector>

namespace attzoo {

/// The parameters whose names match one of the patterns stop learning: no gradient is asked for,
/// and one that they have is dropped, so that no optimizer moves them. In a pattern `*` stands for
/// any characters, none and dots among them; without patterns it is all parameters. Gives the names
/// of those that match. Throws c10::ValueError for a pattern that matches none, and then changes
/// nothing. Example:
/// `freeze(model, {"embed.*", "layers.*.mlp_*"});`
ATTZOO_API std::vector<std::string> freeze(ModuleRef module,
                                           const std::vector<std::string>& patterns = {"*"});

/// They learn again, those of floating dtypes.
ATTZOO_API std::vector<std::string> unfreeze(ModuleRef module,
                                             const std::vector<std::string>& patterns = {"*"});

}  // namespace attzoo

#ifdef ATTZOO_DEFINE_MODULE

#include <attzoo/core/layers/adaptable_linear.hpp>

#include <torch/types.h>

#include <algorithm>
#include <string_view>
#include <utility>

namespace attzoo::core {

/// Whether the whole name matches a pattern in which `*` stands for any characters.
ATTZOO_API bool matches_pattern(std::string_view pattern, std::string_view name) {
  const auto star = pattern.find('*');
  if (star == std::string_view::npos) return pattern == name;
  if (!name.starts_with(pattern.substr(0, star))) return false;
  const auto rest = pattern.substr(star + 1);
  for (size_t at = star; at <= name.size(); ++at) {
    if (matches_pattern(rest, name.substr(at))) return true;
  }
  return false;
}

/// Name and parameter of all that match.
ATTZOO_API std::vector<std::pair<std::string, torch::Tensor>> matching_parameters(
    const char* who, const torch::nn::Module& module, const std::vector<std::string>& patterns) {
  const auto all = module.named_parameters();
  std::string wrong;
  for (const auto& pattern : patterns) {
    const bool any = std::any_of(all.begin(), all.end(), [&](const auto& item) {
      return matches_pattern(pattern, item.key());
    });
    if (!any) wrong += (wrong.empty() ? "\"" : ", \"") + pattern + "\"";
  }
  if (!wrong.empty()) {
    wrong += all.is_empty() ? "; it has none" : "; it has";
    for (const auto& name : all.keys()) wrong += "\n  " + name;
  }
  TORCH_CHECK_VALUE(wrong.empty(), who, ": no parameter of ", module.name(), " matches ", wrong);
  std::vector<std::pair<std::string, torch::Tensor>> found;
  for (const auto& item : all) {
    const bool matches = std::any_of(patterns.begin(), patterns.end(), [&](const auto& pattern) {
      return matches_pattern(pattern, item.key());
    });
    if (matches) found.emplace_back(item.key(), item.value());
  }
  return found;
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API std::vector<std::string> freeze(ModuleRef module,
                                           const std::vector<std::string>& patterns) {
  std::vector<std::string> names;
  for (auto& [name, parameter] : core::matching_parameters("freeze", *module, patterns)) {
    core::freeze_parameter(parameter);
    names.push_back(name);
  }
  return names;
}

ATTZOO_API std::vector<std::string> unfreeze(ModuleRef module,
                                             const std::vector<std::string>& patterns) {
  std::vector<std::string> names;
  for (auto& [name, parameter] : core::matching_parameters("unfreeze", *module, patterns)) {
    if (torch::isFloatingType(parameter.scalar_type())) parameter.set_requires_grad(true);
    names.push_back(name);
  }
  return names;
}

}  // namespace attzoo

#endif
