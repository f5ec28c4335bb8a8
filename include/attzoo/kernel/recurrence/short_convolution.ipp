#pragma once
// Definitions of short_convolution.hpp.

#include <attzoo/kernel/bodies.hpp>
#include <attzoo/kernel/recurrence/short_convolution.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

template <class T>
void convolve(const ConvolutionProblem<T>& p, const View& out, int64_t begin, int64_t end) {
  ATTZOO_ON_THIS_CPU(run_convolve(p, out, begin, end));
}

template <class T>
void convolve_backward(const ConvolutionProblem<T>& p, const ConvolutionGradients<T>& g,
                       Runtime& runtime) {
  ATTZOO_ON_THIS_CPU(run_convolve_backward(p, g, runtime));
}

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL
