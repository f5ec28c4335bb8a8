#pragma once
// Definitions of rope.hpp.

#include <attzoo/module/rope.hpp>

#include <ostream>
#include <string>

namespace attzoo {

ATTZOO_API std::ostream& operator<<(std::ostream& stream, const Rope& rope) {
  const auto* o = rope.options();
  if (!o) return stream << "false";
  const RopeOptions plain;
  const bool is_plain = o->base == plain.base && o->pairs == plain.pairs && !o->dimensions &&
                        o->scaling.index() == plain.scaling.index();
  return is_plain ? stream << "true" : stream << *o;
}

ATTZOO_API bool operator==(const Rope& a, const Rope& b) {
  const auto *x = a.options(), *y = b.options();
  if (!x || !y) return x == y;
  return x->base == y->base && x->position_offset == y->position_offset &&
         x->positions.is_same(y->positions) && x->pairs == y->pairs &&
         x->dimensions == y->dimensions && x->scaling == y->scaling;
}

namespace core {

ATTZOO_API std::optional<RopePlan> plan_rope(const Rope& rope, int64_t head_dim,
                                             std::string_view who) {
  const auto* o = rope.options();
  if (!o) return std::nullopt;
  const auto argument = std::string(who) + ": rope";
  TORCH_CHECK_VALUE(o->position_offset == 0 && !o->positions.defined(), argument,
                    ": a module's RopeOptions have no position_offset and no positions, which come "
                    "with each call");
  TORCH_CHECK_VALUE(o->dimensions || head_dim % 2 == 0, argument,
                    " needs an even head size d_model / num_heads, got ", head_dim);
  return RopePlan{rope_frequencies(*o, head_dim, argument), o->pairs};
}

}  // namespace core
}  // namespace attzoo
