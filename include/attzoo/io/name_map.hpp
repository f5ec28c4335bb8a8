#pragma once
/// \file
/// Weights that another library has named and laid out: a NameMap says what each of its tensors
/// becomes here. io/name_maps.hpp has the maps of well-known models.

#include <attzoo/config.hpp>

#include <torch/types.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace attzoo {

/// Makes one of our tensors from an upstream one: a transpose, a slice of rows. Without change it
/// is empty. It may give another floating dtype than it gets; the numbers are rounded once, into
/// the module's. It throws c10::Error for a tensor that it cannot take.
using TensorChange = std::function<torch::Tensor(const torch::Tensor&)>;

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
  /// One tensor becomes one. The functions throw c10::ValueError for patterns that do not fit.
  ATTZOO_API NameMap& rename(const std::string& from, const std::string& to,
                             TensorChange change = {});
  /// The same for `from` + ".weight" and `from` + ".bias".
  ATTZOO_API NameMap& rename_layer(const std::string& from, const std::string& to);
  /// One tensor becomes several.
  ATTZOO_API NameMap& split(const std::string& from, const std::vector<NameTarget>& to);
  /// The upstream model saves it and nothing needs it here.
  ATTZOO_API NameMap& ignore(const std::string& from);
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

}  // namespace core
}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/io/name_map.ipp>
#endif
