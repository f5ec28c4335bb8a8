#pragma once
/// \file
/// Weights that another library has named and laid out: a NameMap says what each of its tensors
/// becomes here. io/name_maps.hpp has the maps of well-known models.

#include <attzoo/config.hpp>

#include <torch/types.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace attzoo {

/// Makes one of our tensors from an upstream one: a transpose, a slice of rows. Without change it
/// is empty. It may give another floating dtype than it gets; the numbers are rounded once, into
/// the module's. It throws c10::Error for a tensor that it cannot take.
using TensorChange = std::function<torch::Tensor(const torch::Tensor&)>;

/// The way back: an upstream tensor from those of ours that were made of it, in their order.
using TensorJoin = std::function<torch::Tensor(const std::vector<torch::Tensor>&)>;

/// One of our tensors, and how it is made.
struct NameTarget {
  std::string name;
  TensorChange change = {};
};

/// What becomes of the upstream tensors whose name matches a pattern.
struct NameRule {
  std::string from;            ///< the pattern
  std::vector<NameTarget> to;  ///< empty: not needed here
  std::string tied_to = {};    ///< see NameMap::tie
  std::string refused = {};    ///< see NameMap::refuse
  bool zeros = false;          ///< see NameMap::ignore_zeros
  TensorJoin back = {};        ///< not needed for one tensor without change
};

/// Rules from upstream names to ours. In a pattern `{n}` stands for a number (of a layer), and `*`
/// at the end for the rest of the name, at least one character; our names carry the same in the
/// same order. Example:
/// ```
/// NameMap layer;
/// layer.rename("ln.weight", "norm.weight")
///     .split("qkv.weight", {{"w_q.weight", part(0)}, {"w_k.weight", part(1)}, ...})
///     .ignore("rotary.*");
/// NameMap model;
/// model.rename("wte.weight", "embed.weight").add(layer, "h.{n}.", "layers.{n}.");
/// ```
/// Several rules may match one name: the first one counts whose targets the module has, all of
/// them. So one map can serve an attention module, a block and a model.
class NameMap {
 public:
  /// One tensor becomes one. `back` undoes the change, for who saves under upstream names. The
  /// functions throw c10::ValueError for patterns that do not fit.
  ATTZOO_API NameMap& rename(const std::string& from, const std::string& to,
                             TensorChange change = {}, TensorChange back = {});
  /// The same for `from` + ".weight" and `from` + ".bias".
  ATTZOO_API NameMap& rename_layer(const std::string& from, const std::string& to);
  /// One tensor becomes several.
  ATTZOO_API NameMap& split(const std::string& from, const std::vector<NameTarget>& to,
                            TensorJoin back = {});
  /// The upstream model saves it and nothing needs it here.
  ATTZOO_API NameMap& ignore(const std::string& from);
  /// The same while it is all zeros, and so adds nothing; other numbers are an error.
  ATTZOO_API NameMap& ignore_zeros(const std::string& from);
  /// A weight that some models save although it is that of another layer: it becomes `to` if the
  /// module has that. Or else it becomes `tied_to`, if nothing else does; if something does, it
  /// must hold the same numbers, as the module's dtype has them, and is not needed.
  ATTZOO_API NameMap& tie(const std::string& from, const std::string& to,
                          const std::string& tied_to);
  /// A module that has no counterpart here: the error says `why`.
  ATTZOO_API NameMap& refuse(const std::string& from, const std::string& why);
  /// All rules of `more`, their names behind `from` and ours behind `to`.
  ATTZOO_API NameMap& add(const NameMap& more, const std::string& from = "",
                          const std::string& to = "");

  const std::vector<NameRule>& rules() const { return rules_; }

 private:
  ATTZOO_API NameMap& add_rule(NameRule rule);

  std::vector<NameRule> rules_;
};

namespace core {

/// What the wildcards of `pattern` stand for in `name`; nothing if it does not match.
ATTZOO_API std::optional<std::vector<std::string>> match_name(const std::string& pattern,
                                                              const std::string& name);

/// The pattern with its wildcards replaced.
ATTZOO_API std::string fill_name(const std::string& pattern,
                                 const std::vector<std::string>& pieces);

/// Our tensors under upstream names; `wrong` gets a line for each that has no way there.
ATTZOO_API std::map<std::string, torch::Tensor> upstream_tensors(
    const std::map<std::string, torch::Tensor>& own, const NameMap& names, std::string& wrong);

}  // namespace core
}  // namespace attzoo

#ifdef ATTZOO_DEFINE_IO

#include <attzoo/io/json.hpp>

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

/// Our tensors under upstream names.
class UpstreamNames {
 public:
  UpstreamNames(const std::map<std::string, torch::Tensor>& own, const NameMap& names)
      : own_(own), names_(names) {}

  /// All of them; `wrong` has a line for each that has no way there.
  std::map<std::string, torch::Tensor> map(std::string& wrong) {
    for (const auto& [name, tensor] : own_) {
      if (const auto why = place(name); !why.empty()) wrong += "\n  " + name + ": " + why;
    }
    return std::move(upstream_);
  }

 private:
  /// Makes the upstream tensor that `name` is a part of by the first rule that can; or why not.
  std::string place(const std::string& name) {
    std::string why = "has no upstream name";
    for (const auto& rule : names_.rules()) {
      for (const auto& target : rule.to) {
        const auto pieces = match_name(target.name, name);
        if (!pieces) continue;
        std::vector<torch::Tensor> parts;
        for (const auto& part : rule.to) {
          const auto found = own_.find(fill_name(part.name, *pieces));
          if (found != own_.end()) parts.push_back(found->second);
        }
        if (parts.size() < rule.to.size()) continue;  // another rule may need fewer
        const auto from = fill_name(rule.from, *pieces);
        const auto other = made_by_.find(from);
        if (other != made_by_.end() && other->second == &rule) return {};  // of another part
        if (other != made_by_.end()) {
          why = printable(from) + " is another tensor's name";
        } else if (!rule.back && (rule.to.size() > 1 || target.change)) {
          why = "the map knows no way back to " + printable(from);
        } else {
          why = make(from, rule, parts);
          if (why.empty()) return {};
        }
      }
    }
    return why;
  }

  std::string make(const std::string& from, const NameRule& rule,
                   const std::vector<torch::Tensor>& parts) {
    try {
      upstream_[from] = rule.back ? rule.back(parts).contiguous() : parts[0];
    } catch (const c10::Error& error) {
      return printable(from) + ": " + error.what_without_backtrace();
    }
    made_by_[from] = &rule;
    return {};
  }

  const std::map<std::string, torch::Tensor>& own_;
  const NameMap& names_;
  std::map<std::string, torch::Tensor> upstream_;
  std::map<std::string, const NameRule*> made_by_;
};

ATTZOO_API std::map<std::string, torch::Tensor> upstream_tensors(
    const std::map<std::string, torch::Tensor>& own, const NameMap& names, std::string& wrong) {
  return UpstreamNames(own, names).map(wrong);
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
                                    TensorChange change, TensorChange back) {
  TensorJoin join;
  if (back) join = [back](const std::vector<torch::Tensor>& one) { return back(one[0]); };
  return split(from, {NameTarget{to, std::move(change)}}, std::move(join));
}

ATTZOO_API NameMap& NameMap::rename_layer(const std::string& from, const std::string& to) {
  return rename(from + ".weight", to + ".weight").rename(from + ".bias", to + ".bias");
}

ATTZOO_API NameMap& NameMap::split(const std::string& from, const std::vector<NameTarget>& to,
                                   TensorJoin back) {
  TORCH_CHECK_VALUE(!to.empty(), "NameMap: ", from, " needs a target");
  return add_rule({.from = from, .to = to, .back = std::move(back)});
}

ATTZOO_API NameMap& NameMap::ignore(const std::string& from) {
  return add_rule({.from = from, .to = {}});
}

ATTZOO_API NameMap& NameMap::ignore_zeros(const std::string& from) {
  return add_rule({.from = from, .to = {}, .zeros = true});
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

#endif
