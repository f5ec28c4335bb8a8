// The kernels that compute in double.

#include <attzoo/kernel/attention/attention.ipp>
#include <attzoo/kernel/decode/layers.ipp>
#include <attzoo/kernel/recurrence/gated.ipp>
#include <attzoo/kernel/recurrence/scan.ipp>

namespace attzoo::kernel {

template void attend(const Problem<double>&, const Modifiers<double>&, Runtime&);
template void attend_backward(const Problem<double>&, const Modifiers<double>&,
                              const Gradients<double>&, Runtime&);
template void attend_backward_tensors(const Problem<double>&, const Modifiers<double>&,
                                      const Gradients<double>&, const TensorGradients<double>&,
                                      Runtime&);
template void multiply(const FewTokens<double>&);
template void add(const double*, const double*, double*, int64_t);
template void swiglu(const double*, const double*, double*, int64_t);
template void scan<double>(const ScanProblem&, Runtime&);
template void recur<double>(const GatedProblem&, Runtime&);
template void recur_backward<double>(const GatedProblem&, const GatedGradients&, Runtime&);

}  // namespace attzoo::kernel
