#pragma once
/// \file
/// What the kernels ask of the compiler beyond standard C++.

/// For the small functions that the kernels' loops call: inlined even where the user's program is
/// compiled without optimisation, so that the loop around them stays a loop over vectors.
#if defined(__GNUC__)
#define ATTZOO_ALWAYS_INLINE inline __attribute__((always_inline))
#define ATTZOO_INLINE_LAMBDA __attribute__((always_inline))  // behind a lambda's parameters
#else
#define ATTZOO_ALWAYS_INLINE inline
#define ATTZOO_INLINE_LAMBDA
#endif
