#pragma once

#include <attzoo/core/checks.hpp>
#include <attzoo/io/checkpoint.hpp>
#include <attzoo/io/copy_state.hpp>
#include <attzoo/io/json.hpp>
#include <attzoo/io/name_map.hpp>
#include <attzoo/io/safetensors_header.hpp>

#include <algorithm>
#include <cctype>
#include <set>
#include <string_view>
#include <utility>

namespace attzoo::core {

inline constexpr std::string_view kNumber = "{n}";

/// The wildcards of a pattern in their order: 'n' and '*'.
ATTZOO_API std::string wildcards(const std::string& pattern) {
  std::string found;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern.compare(i, kNumber.size(), kNumber) == 0) found += 'n';
    if (pattern[i] == '*') found += '*';
  }
  return found;
}

/// What the wildcards of `pattern` stand for in `name`; nothing if it does not match.
ATTZOO_API std::optional<std::vector<std::string>> match_name(const std::string& pattern,
                                                              const std::string& name) {
  std::vector<std::string> pieces;
  size_t at = 0;
  for (size_t i = 0; i < pattern.size(); ++at) {
    size_t end = at;
    if (pattern[i] == '*') {
      end = name.size();
      i += 1;
    } else if (pattern.compare(i, kNumber.size(), kNumber) == 0) {
      while (end < name.size() && std::isdigit(static_cast<unsigned char>(name[end]))) ++end;
      i += kNumber.size();
    } else {
      if (at >= name.size() || name[at] != pattern[i]) return std::nullopt;
      ++i;
      continue;
    }
    if (end <= at) return std::nullopt;
    pieces.push_back(name.substr(at, end - at));
    at = end - 1;
  }
  if (at != name.size()) return std::nullopt;
  return pieces;
}

/// The pattern with its wildcards replaced.
ATTZOO_API std::string fill_name(const std::string& pattern,
                                 const std::vector<std::string>& pieces) {
  std::string name;
  auto piece = pieces.begin();
  for (size_t i = 0; i < pattern.size();) {
    const bool number = pattern.compare(i, kNumber.size(), kNumber) == 0;
    if (number || pattern[i] == '*') {
      name += *piece++;
      i += number ? kNumber.size() : 1;
    } else {
      name += pattern[i++];
    }
  }
  return name;
}

/// What keeps `numbers`, made of the tensor `given`, from becoming our tensor `name`; empty if
/// nothing does.
using WhyNot = std::function<std::string(const std::string& name, const torch::Tensor& given,
                                         const torch::Tensor& numbers)>;

/// Tensors on their way from upstream names to ours. Our tensors may be empty, where names and
/// sizes alone are of interest.
class NameMapping {
 public:
  NameMapping(const std::map<std::string, torch::Tensor>& own, const NameMap& names, WhyNot why_not)
      : own_(own), names_(names), why_not_(std::move(why_not)) {}

  /// The tensors by our names; `wrong` has a line for each complaint.
  std::map<std::string, torch::Tensor> map(const std::map<std::string, torch::Tensor>& tensors,
                                           std::string& wrong) {
    for (const auto& [name, tensor] : tensors) place(name, tensor);
    for (const auto& [name, tied_to] : tied_) place_tied(name, tensors.at(name), tied_to);
    for (const auto& [name, tensor] : own_) {
      if (state_.count(name) == 0) find_missing(name, tensor);
    }
    if (!own_.empty() && !tensors.empty() && !matched_) complain(no_name_fits(own_, tensors));
    wrong = std::move(wrong_);
    return std::move(state_);
  }

 private:
  void complain(const std::string& what) { wrong_ += "\n  " + what; }
  static std::string from(const std::string& ours, const std::string& upstream) {
    return ours + " (from " + printable(upstream) + ")";
  }

  void place(const std::string& name, const torch::Tensor& tensor) {
    std::string first;  // the names that the module lacks
    for (const auto& rule : names_.rules()) {
      const auto pieces = match_name(rule.from, name);
      if (!pieces) continue;
      matched_ = true;
      if (!rule.refused.empty()) return complain(printable(name) + ": " + rule.refused);
      std::vector<NameTarget> targets = rule.to;
      std::string lacks;
      for (auto& target : targets) {
        target.name = fill_name(target.name, *pieces);
        if (own_.count(target.name) == 0) lacks += (lacks.empty() ? "" : ", ") + target.name;
      }
      if (lacks.empty()) {
        for (const auto& target : targets) give(target, name, tensor);
        return;
      }
      const auto tied_to = fill_name(rule.tied_to, *pieces);
      if (own_.count(tied_to) > 0) {
        tied_[name] = tied_to;
        return;
      }
      if (first.empty()) first = lacks;
    }
    complain("extra: " + printable(name) +
             (first.empty() ? "" : " (the module has no " + first + ")"));
  }

  void give(const NameTarget& target, const std::string& name, const torch::Tensor& tensor) {
    const auto [origin, fresh] = origins_.try_emplace(target.name, name);
    if (!fresh) {
      return complain("extra: " + from(target.name, name) + ": is given by " +
                      printable(origin->second) + " too");
    }
    std::string why = storage_problem(tensor);
    if (!why.empty()) {
      return complain(from(target.name, name) + ": expected a dense tensor, got " + why);
    }
    torch::Tensor numbers;
    try {
      torch::NoGradGuard no_grad;
      numbers = target.change ? target.change(tensor) : tensor;
      why = why_not_(target.name, tensor, numbers);
    } catch (const c10::Error& error) {
      why = error.what_without_backtrace();
    }
    if (!why.empty()) return complain(from(target.name, name) + ": " + why);
    state_[target.name] = numbers;
  }

  /// A weight in whose place we have `tied_to`. A file may have it alone.
  void place_tied(const std::string& name, const torch::Tensor& tensor,
                  const std::string& tied_to) {
    if (origins_.count(tied_to) == 0) return give({tied_to}, name, tensor);
    const auto given = state_.find(tied_to);
    if (given == state_.end()) return;  // which is an error already
    const auto& own = own_.at(tied_to);
    const auto becomes = [&](const torch::Tensor& t) {
      return t.to(torch::kCPU, own.scalar_type());
    };
    const bool same = storage_problem(tensor).empty() && tensor.sizes() == given->second.sizes() &&
                      (own.numel() == 0 || torch::equal(becomes(tensor), becomes(given->second)));
    if (!same) {
      complain(printable(name) + ": the module has " + tied_to +
               " in its place, but is given other numbers for that");
    }
  }

  void find_missing(const std::string& name, const torch::Tensor& tensor) {
    for (const auto& [other, numbers] : state_) {
      if (is_same_tensor(tensor, own_.at(other))) {
        state_[name] = torch::Tensor(numbers);
        return;
      }
    }
    if (origins_.count(name) > 0) return;  // given, and complained about
    std::string upstream;
    for (const auto& rule : names_.rules()) {
      for (const auto& target : rule.to) {
        const auto pieces = match_name(target.name, name);
        if (pieces) upstream += (upstream.empty() ? "" : " or ") + fill_name(rule.from, *pieces);
      }
    }
    complain("missing: " + (upstream.empty() ? name : from(name, upstream)));
  }

  const std::map<std::string, torch::Tensor>& own_;
  const NameMap& names_;
  WhyNot why_not_;
  bool matched_ = false;                        // a name is one of the map's
  std::map<std::string, torch::Tensor> state_;  // by our names
  std::map<std::string, std::string> origins_;  // our name -> upstream
  std::map<std::string, std::string> tied_;     // upstream name -> ours that has its numbers
  std::string wrong_;
};

ATTZOO_API void check_sizes(const std::map<std::string, std::vector<int64_t>>& sizes,
                            const std::map<std::string, torch::Tensor>& tensors,
                            const NameMap& names, const std::string& who) {
  std::map<std::string, torch::Tensor> own;
  for (const auto& [name, size] : sizes) own[name] = torch::empty({0});
  const auto why_not = [&](const std::string& name, const torch::Tensor&,
                           const torch::Tensor& numbers) {
    const auto& expected = sizes.at(name);
    return numbers.sizes() == expected
               ? std::string()
               : c10::str("expected ", torch::IntArrayRef(expected), ", got ", numbers.sizes());
  };
  std::string wrong;
  NameMapping(own, names, why_not).map(tensors, wrong);
  TORCH_CHECK_VALUE(wrong.empty(), who, ":", wrong);
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

ATTZOO_API void load_state_dict(torch::nn::Module& module,
                                const std::map<std::string, torch::Tensor>& tensors,
                                const NameMap& names, const LoadOptions& options) {
  const std::string who = "load_state_dict: the tensors do not fit the module " + module.name();
  const auto own = state_dict(module);
  core::naming(who, [&] {
    std::string wrong;
    const auto why_not = [&](const std::string& name, const torch::Tensor& given,
                             const torch::Tensor& numbers) {
      return core::cannot_copy(own.at(name), given, numbers, options.convert_dtype);
    };
    const auto state = core::NameMapping(own, names, why_not).map(tensors, wrong);
    if (wrong.empty()) wrong = core::check_shared(own, state);
    TORCH_CHECK_VALUE(wrong.empty(), who, ":", wrong);
    core::copy_state(own, state);
  });
}

ATTZOO_API void load_state_dict(torch::nn::Module& module, const std::filesystem::path& path,
                                const NameMap& names, const LoadOptions& options) {
  const auto tensors = open_checkpoint(path).tensors;
  core::naming(core::named("load_state_dict", path),
               [&] { load_state_dict(module, tensors, names, options); });
}

ATTZOO_API std::map<std::string, torch::Tensor> tensors_under(
    const std::map<std::string, torch::Tensor>& tensors, const std::string& prefix) {
  std::map<std::string, torch::Tensor> under;
  for (const auto& [name, tensor] : tensors) {
    if (name.starts_with(prefix)) under[name.substr(prefix.size())] = tensor;
  }
  TORCH_CHECK_VALUE(!under.empty(), "tensors_under: no tensor has a name that begins with \"",
                    core::printable(prefix), "\"");
  return under;
}

}  // namespace attzoo
