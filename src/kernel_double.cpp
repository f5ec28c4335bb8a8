// The kernels that compute in double.

#include <attzoo/kernel/attention/attention.ipp>
#include <attzoo/kernel/decode/chosen.ipp>
#include <attzoo/kernel/decode/layers.ipp>
#include <attzoo/kernel/recurrence/recurrence.ipp>
#include <attzoo/kernel/recurrence/short_convolution.ipp>

namespace attzoo::kernel {

template void attend(const Problem<double>&, const Modifiers<double>&, Runtime&);
template void attend_backward(const Problem<double>&, const Modifiers<double>&,
                              const Gradients<double>&, Runtime&);
template void attend_backward_tensors(const Problem<double>&, const Modifiers<double>&,
                                      const Gradients<double>&, const TensorGradients<double>&,
                                      Runtime&);
template void attend_chosen(const ChosenProblem<double>&, Runtime&);
template void attend_chosen_backward(const ChosenProblem<double>&, const Gradients<double>&,
                                     Runtime&);
template void multiply(const FewTokens<double>&);
template void add(const double*, const double*, double*, int64_t);
template void swiglu(const double*, const double*, double*, int64_t);
template void recur<double>(const RecurrenceProblem&, Runtime&);
template void recur_backward<double>(const RecurrenceProblem&, const RecurrenceGradients&,
                                     Runtime&);
template void convolve(const ConvolutionProblem<double>&, const View&, int64_t, int64_t);
template void convolve_backward(const ConvolutionProblem<double>&,
                                const ConvolutionGradients<double>&, Runtime&);

}  // namespace attzoo::kernel
