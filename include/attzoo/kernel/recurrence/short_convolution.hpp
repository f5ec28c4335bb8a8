#pragma once
/// \file
/// A short causal convolution in every channel, forward and backward. T is float or double.

#include <attzoo/kernel/recurrence/convolution_problem.hpp>
#include <attzoo/kernel/runtime.hpp>

ATTZOO_BEGIN_KERNEL
namespace attzoo::kernel {

/// Writes the tokens [begin, end) of all B * n to out, in x's type. Their bits do not depend on
/// where such parts begin and end.
template <class T>
void convolve(const ConvolutionProblem<T>& p, const View& out, int64_t begin, int64_t end);

/// Writes the gradients. Their bits do not depend on the number of threads.
template <class T>
void convolve_backward(const ConvolutionProblem<T>& p, const ConvolutionGradients<T>& g,
                       Runtime& runtime);

#ifdef ATTZOO_COMPILED
extern template void convolve(const ConvolutionProblem<float>&, const View&, int64_t, int64_t);
extern template void convolve(const ConvolutionProblem<double>&, const View&, int64_t, int64_t);
extern template void convolve_backward(const ConvolutionProblem<float>&,
                                       const ConvolutionGradients<float>&, Runtime&);
extern template void convolve_backward(const ConvolutionProblem<double>&,
                                       const ConvolutionGradients<double>&, Runtime&);
#endif

}  // namespace attzoo::kernel
ATTZOO_END_KERNEL

#ifndef ATTZOO_COMPILED
#include <attzoo/kernel/recurrence/short_convolution.ipp>
#endif
