#pragma once
/// \file
/// The option `rope` of modules.

#include <attzoo/functional/rope.hpp>

#include <concepts>
#include <iosfwd>
#include <optional>
#include <utility>

namespace attzoo {

/// Whether a module turns its queries and keys by their positions, and how: `.rope = true` for the
/// defaults of RopeOptions, or `.rope = RopeOptions{.base = 5e5, .pairs = RopePairs::kHalves}`,
/// whose position_offset and positions stay as they are: positions come with each call.
class Rope {
 public:
  /// No rotation.
  Rope() = default;
  /// On with the defaults, or off. A bool alone, and nothing that converts to one.
  template <std::same_as<bool> Bool>
  Rope(Bool on) {  // NOLINT: true and false are options
    if (on) options_.emplace();
  }
  /// On.
  Rope(RopeOptions options) : options_(std::move(options)) {}  // NOLINT: so are these

  /// Whether it is on.
  explicit operator bool() const { return options_.has_value(); }
  /// How; null if it is off.
  const RopeOptions* options() const { return options_ ? &*options_ : nullptr; }

  /// Whether both turn by the same angles.
  ATTZOO_API friend bool operator==(const Rope& a, const Rope& b);

 private:
  std::optional<RopeOptions> options_;
};

/// `true` for the defaults, `false`, or the options.
ATTZOO_API std::ostream& operator<<(std::ostream& stream, const Rope& rope);

namespace core {

/// What a module with RoPE knows of it from the beginning.
struct RopePlan {
  RopeFrequencies frequencies;
  RopePairs pairs;
};

/// Throws c10::ValueError for options out of range and for positions among them, naming `who`.
ATTZOO_API std::optional<RopePlan> plan_rope(const Rope& rope, int64_t head_dim,
                                             std::string_view who);

}  // namespace core
}  // namespace attzoo

#ifndef ATTZOO_COMPILED
#include <attzoo/module/rope.ipp>
#endif
