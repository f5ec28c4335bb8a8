#include "support/every_mechanism.hpp"

namespace attzoo::testing {
namespace {

/// In the options of a mechanism, or of those in a wrapper.
template <class Config>
void turn_on_rope(Config& config) {
  if constexpr (requires { config.rope; }) config.rope = true;
  if constexpr (requires { config.attn; }) turn_on_rope(config.attn);
  if constexpr (requires { config.attn_a; })
    turn_on_rope(config.attn_a), turn_on_rope(config.attn_b);
}

}  // namespace

std::vector<Listed> every_mechanism(const Size& size) {
  std::vector<Listed> all;
  for_each_mechanism([&](const char* name, Cost, auto make) {
    all.push_back({name, [make, size]() -> AnyAttention {
                     using Module = decltype(make(size));
                     auto config = make(size)->get_config();
                     turn_on_rope(config);
                     return Module(config);
                   }});
  });
  return all;
}

}  // namespace attzoo::testing
