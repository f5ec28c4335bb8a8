#pragma once
/// \file
/// What the kernels ask of the compiler beyond standard C++.

#include <attzoo/config.hpp>

#if !defined(__GNUC__) || (defined(__clang__) ? __clang_major__ < 14 : __GNUC__ < 11)
#error attzoo needs g++ 11 or newer, or clang 14 or newer
#endif

/// For the small functions that the kernels' loops call: inlined even where the user's program is
/// compiled without optimisation, so that the loop around them stays a loop over vectors.
#define ATTZOO_ALWAYS_INLINE inline __attribute__((always_inline))
#define ATTZOO_INLINE_LAMBDA __attribute__((always_inline))  // behind a lambda's parameters

/// Before loops of fixed length: unroll it; vectorise it as it stands, whatever its pointers are.
/// (Unrolled first, as -O3 would, a loop over lanes is scalar code.)
#if defined(__clang__)
#define ATTZOO_UNROLL _Pragma("unroll")
#define ATTZOO_LANES _Pragma("clang loop vectorize(assume_safety)")
#else
#define ATTZOO_UNROLL _Pragma("GCC unroll 16")
#define ATTZOO_LANES _Pragma("GCC ivdep") _Pragma("GCC unroll 1")
#endif

/// Around all code of the kernels: it is the same whatever flags the user's program is compiled
/// with. GCC optimises it in any build type, and neither compiler reorders its sums and forgets
/// infinities under -ffast-math. (Clang cannot raise the level of optimisation within a file.)
#if defined(__clang__)
#define ATTZOO_BEGIN_KERNEL _Pragma("float_control(precise, on, push)")
#define ATTZOO_END_KERNEL _Pragma("float_control(pop)")
#else
#define ATTZOO_BEGIN_KERNEL \
  _Pragma("GCC push_options") _Pragma("GCC optimize(\"O2,tree-vectorize,no-fast-math\")")
#define ATTZOO_END_KERNEL _Pragma("GCC pop_options")
#endif

namespace attzoo::kernel {
/// With -ffast-math Clang takes the arguments and results of intrinsics for finite numbers, also
/// within ATTZOO_BEGIN_KERNEL; operators on vectors keep their meaning there.
#if defined(__clang__) && __FINITE_MATH_ONLY__
inline constexpr bool kOperatorsOnly = true;
#else
inline constexpr bool kOperatorsOnly = false;
#endif
}  // namespace attzoo::kernel
