#pragma once

#include <attzoo/io/name_map.hpp>

#include <c10/util/Exception.h>

#include <algorithm>
#include <cctype>
#include <string_view>
#include <utility>

namespace attzoo::core {

inline constexpr std::string_view kNumber = "{n}";

/// The length of the wildcard that begins at character i of a pattern; 0 if none does.
ATTZOO_API size_t wildcard_at(const std::string& pattern, size_t i) {
  if (pattern[i] == '*') return 1;
  return pattern.compare(i, kNumber.size(), kNumber) == 0 ? kNumber.size() : 0;
}

/// The wildcards of a pattern in their order, each as its first character.
ATTZOO_API std::string wildcards(const std::string& pattern) {
  std::string found;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (wildcard_at(pattern, i) > 0) found += pattern[i];
  }
  return found;
}

ATTZOO_API std::optional<std::vector<std::string>> match_name(const std::string& pattern,
                                                              const std::string& name) {
  std::vector<std::string> pieces;
  size_t at = 0;  // of the name
  for (size_t i = 0; i < pattern.size();) {
    const size_t wildcard = wildcard_at(pattern, i);
    size_t end = at;
    if (pattern[i] == '*') {
      end = name.size();
    } else if (wildcard > 0) {
      while (end < name.size() && std::isdigit(static_cast<unsigned char>(name[end]))) ++end;
    } else if (at < name.size() && name[at] == pattern[i]) {
      ++end;
    }
    if (end == at) return std::nullopt;
    if (wildcard > 0) pieces.push_back(name.substr(at, end - at));
    i += std::max<size_t>(wildcard, 1);
    at = end;
  }
  if (at != name.size()) return std::nullopt;
  return pieces;
}

ATTZOO_API std::string fill_name(const std::string& pattern,
                                 const std::vector<std::string>& pieces) {
  std::string name;
  auto piece = pieces.begin();
  for (size_t i = 0; i < pattern.size();) {
    const size_t wildcard = wildcard_at(pattern, i);
    name += wildcard > 0 ? *piece++ : pattern.substr(i, 1);
    i += std::max<size_t>(wildcard, 1);
  }
  return name;
}

}  // namespace attzoo::core

namespace attzoo {

ATTZOO_API NameMap& NameMap::add_rule(NameRule rule) {
  const auto check = [&](const std::string& pattern, bool same) {
    const auto star = pattern.find('*');
    TORCH_CHECK_VALUE(!pattern.empty(), "NameMap: an empty pattern");
    TORCH_CHECK_VALUE(star == std::string::npos || star + 1 == pattern.size(),
                      "NameMap: * must be the last character, got ", pattern);
    TORCH_CHECK_VALUE(!same || core::wildcards(pattern) == core::wildcards(rule.from),
                      "NameMap: ", pattern, " must have the wildcards of ", rule.from);
  };
  check(rule.from, false);
  for (const auto& target : rule.to) check(target.name, true);
  if (!rule.tied_to.empty()) check(rule.tied_to, true);
  rules_.push_back(std::move(rule));
  return *this;
}

ATTZOO_API NameMap& NameMap::rename(const std::string& from, const std::string& to,
                                    TensorChange change) {
  return split(from, {NameTarget{to, std::move(change)}});
}

ATTZOO_API NameMap& NameMap::rename_layer(const std::string& from, const std::string& to) {
  return rename(from + ".weight", to + ".weight").rename(from + ".bias", to + ".bias");
}

ATTZOO_API NameMap& NameMap::split(const std::string& from, const std::vector<NameTarget>& to) {
  TORCH_CHECK_VALUE(!to.empty(), "NameMap: ", from, " needs a target");
  return add_rule({.from = from, .to = to});
}

ATTZOO_API NameMap& NameMap::ignore(const std::string& from) {
  return add_rule({.from = from, .to = {}});
}

ATTZOO_API NameMap& NameMap::tie(const std::string& from, const std::string& to,
                                 const std::string& tied_to) {
  return add_rule({.from = from, .to = {NameTarget{to}}, .tied_to = tied_to});
}

ATTZOO_API NameMap& NameMap::refuse(const std::string& from, const std::string& why) {
  return add_rule({.from = from, .to = {}, .refused = why});
}

ATTZOO_API NameMap& NameMap::add(const NameMap& more, const std::string& from,
                                 const std::string& to) {
  for (auto rule : std::vector<NameRule>(more.rules_)) {  // a copy: `more` may be this map
    rule.from = from + rule.from;
    for (auto& target : rule.to) target.name = to + target.name;
    if (!rule.tied_to.empty()) rule.tied_to = to + rule.tied_to;
    add_rule(std::move(rule));
  }
  return *this;
}

}  // namespace attzoo
