#pragma once
/// \file
/// The kernels' bodies, compiled once for each instruction set. Heavy: for definitions alone.

#include <attzoo/kernel/attention/key_gradients.hpp>
#include <attzoo/kernel/attention/products.hpp>
#include <attzoo/kernel/attention/tiling.hpp>
#include <attzoo/kernel/decode/chosen_problem.hpp>
#include <attzoo/kernel/decode/few_queries.hpp>
#include <attzoo/kernel/decode/few_tokens.hpp>
#include <attzoo/kernel/dropout.hpp>
#include <attzoo/kernel/half.hpp>
#include <attzoo/kernel/isa/isa.hpp>
#include <attzoo/kernel/math.hpp>
#include <attzoo/kernel/recurrence/convolution_problem.hpp>
#include <attzoo/kernel/recurrence/problem.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace attzoo::kernel {

template <class T, int kBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <class T, int kBytes>
using Vector = typename VectorOf<T, kBytes>::type;

}  // namespace attzoo::kernel

#define ATTZOO_BODY_HAS_VECTORS
#define ATTZOO_BODY <attzoo/kernel/bodies.inc>
#include <attzoo/kernel/isa/each.inc>
#undef ATTZOO_BODY_HAS_VECTORS
