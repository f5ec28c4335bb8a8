// The kernels that compute in float.

#include <attzoo/kernel/attention/attention.ipp>
#include <attzoo/kernel/decode/chosen.ipp>
#include <attzoo/kernel/decode/layers.ipp>
#include <attzoo/kernel/recurrence/recurrence.ipp>
#include <attzoo/kernel/recurrence/short_convolution.ipp>

namespace attzoo::kernel {

template void attend(const Problem<float>&, const Modifiers<float>&, Runtime&);
template void attend_backward(const Problem<float>&, const Modifiers<float>&,
                              const Gradients<float>&, Runtime&);
template void attend_backward_tensors(const Problem<float>&, const Modifiers<float>&,
                                      const Gradients<float>&, const TensorGradients<float>&,
                                      Runtime&);
template void attend_chosen(const ChosenProblem<float>&, Runtime&);
template void attend_chosen_backward(const ChosenProblem<float>&, const Gradients<float>&,
                                     Runtime&);
template void multiply(const FewTokens<float>&);
template void add(const float*, const float*, float*, int64_t);
template void swiglu(const float*, const float*, float*, int64_t);
template void recur<float>(const RecurrenceProblem&, Runtime&);
template void recur_backward<float>(const RecurrenceProblem&, const RecurrenceGradients&, Runtime&);
template void convolve(const ConvolutionProblem<float>&, const View&, int64_t, int64_t);
template void convolve_backward(const ConvolutionProblem<float>&,
                                const ConvolutionGradients<float>&, Runtime&);

}  // namespace attzoo::kernel
