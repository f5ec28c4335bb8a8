#pragma once
// Definitions of isa.hpp.

#include <attzoo/kernel/isa.hpp>
#include <attzoo/kernel/isa/detect.ipp>

#include <string_view>

namespace attzoo::kernel {

ATTZOO_API Isa choose_isa(const char* wanted) {
  struct Entry {
    Isa isa;
    std::string_view name;
    bool (*has)();
  };
#define ATTZOO_ISA_ENTRY(enumerator, name, bodies, has, ...) \
  {Isa::enumerator, name, []() -> bool { return has; }},
  static constexpr Entry kTable[] = {ATTZOO_INSTRUCTION_SETS(ATTZOO_ISA_ENTRY, )};
#undef ATTZOO_ISA_ENTRY
  Isa best = Isa::kPortable;
  for (const auto& entry : kTable) {
    if (entry.has()) best = entry.isa;
    if (wanted && entry.name == wanted) break;
  }
  return best;
}

}  // namespace attzoo::kernel
