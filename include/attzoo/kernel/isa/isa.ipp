#pragma once
// Definitions of isa.hpp.

#include <attzoo/kernel/isa/detect.ipp>
#include <attzoo/kernel/isa/isa.hpp>

#include <algorithm>
#include <iterator>
#include <string_view>

namespace attzoo::kernel {

ATTZOO_API bool is_isa_name(const char* wanted) {
  const std::string_view name(wanted ? wanted : "");
  const auto* const end = std::end(kIsaNames);
  return name.empty() || std::find(std::begin(kIsaNames), end, name) != end;
}

#define ATTZOO_ISA_IS_NAMED(enumerator, name, ...)                                               \
  static_assert(std::find(std::begin(kIsaNames), std::end(kIsaNames), std::string_view(name)) != \
                std::end(kIsaNames));
ATTZOO_INSTRUCTION_SETS(ATTZOO_ISA_IS_NAMED, )
#undef ATTZOO_ISA_IS_NAMED

ATTZOO_API Isa choose_isa(const char* wanted) {
  struct Entry {
    Isa isa;
    std::string_view name;
    bool (*has)();
    bool (*worth)();
  };
#define ATTZOO_ISA_ENTRY(enumerator, name, bodies, has, worth, ...) \
  {Isa::enumerator, name, []() -> bool { return has; }, []() -> bool { return worth; }},
  static constexpr Entry kTable[] = {ATTZOO_INSTRUCTION_SETS(ATTZOO_ISA_ENTRY, )};
#undef ATTZOO_ISA_ENTRY
  const auto asked = std::find_if(std::begin(kTable), std::end(kTable), [&](const Entry& entry) {
    return wanted && entry.name == wanted;
  });
  auto at = asked == std::end(kTable) ? asked - 1 : asked;
  while (!at->has() || !(at == asked || at->worth())) --at;  // the first fits every CPU
  return at->isa;
}

}  // namespace attzoo::kernel
