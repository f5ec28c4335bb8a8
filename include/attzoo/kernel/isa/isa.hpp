#pragma once
/// \file
/// Which of the kernels' bodies to run. A user's program needs no -march: the bodies are compiled
/// once for each instruction set of isa/table.hpp, and the choice is made at run time.

#include <attzoo/kernel/isa/table.hpp>

#include <cstdlib>
#include <string_view>

namespace attzoo::kernel {

#define ATTZOO_ISA_ENUMERATOR(enumerator, ...) enumerator,
enum class Isa { ATTZOO_INSTRUCTION_SETS(ATTZOO_ISA_ENUMERATOR, ) };
#undef ATTZOO_ISA_ENUMERATOR

/// What ATTZOO_ISA may be, on any CPU, so that one setting serves all: what a CPU lacks becomes the
/// best that it has up to there.
inline constexpr std::string_view kIsaNames[] = {"portable",   "avx2", "avx512",
                                                 "avx512bf16", "amx",  "best"};

/// Whether it is one of them; so is nothing (null, or no letter). Kernels do not throw: who calls
/// them asks this first.
ATTZOO_API bool is_isa_name(const char* wanted);

/// The best instruction set of this CPU, or a lesser one by its name.
ATTZOO_API Isa choose_isa(const char* wanted);

/// The one that runs, chosen by the environment variable ATTZOO_ISA.
inline Isa isa() {
  static const Isa chosen = choose_isa(std::getenv("ATTZOO_ISA"));
  return chosen;
}

/// Returns, out of the function around it, an expression that begins in the namespace of the bodies
/// for this CPU: `ATTZOO_ON_THIS_CPU(scan<T>(p, runtime));`
#define ATTZOO_ON_THIS_CPU(...)                                                              \
  switch (::attzoo::kernel::isa()) { ATTZOO_INSTRUCTION_SETS(ATTZOO_ISA_CASE, __VA_ARGS__) } \
  __builtin_unreachable()
#define ATTZOO_ISA_CASE(enumerator, name, bodies, has, worth, ...) \
  case ::attzoo::kernel::Isa::enumerator:                          \
    return ::attzoo::kernel::bodies::__VA_ARGS__;

}  // namespace attzoo::kernel

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/isa/isa.ipp>
#endif
